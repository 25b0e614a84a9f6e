"""The model card that a person publishes.

Its YAML says the same whatever words are in it, words stay words in its body, and its figures are
of this file alone.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from core.lora import apply as lora
from core.lora import edit
from core.models import bases
from core.publish.bundle import build_bundle
from core.publish.card import render_card
from core.publish.licences import LICENCES, Licence, find_licence
from core.publish.plan import Publication, PublicationForm, plan_publication
from core.schema import presets
from core.schema.errors import UserError
from core.schema.records import read_form
from core.system.atomic_files import link_or_copy
from core.system.tensor_files import calculate_sha256
from core.transfer.plan import TransferEntry, TransferForm, split_by_block
from core.transfer.plan import plan_transfer as transfer_plan
from core.transfer.report import build_transfer_report
from core.transfer.study import TransferStudy
from tabs.sweep.results import format_answer
from tests.train.parts import make_dataset, prepare_run

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n"), max_size=60).map(
    str.strip
)
REPORT: dict[str, Any] = {
    "lora": "nano-airbrush",
    "sha256": calculate_sha256(EXAMPLE),
    "model": "nano",
    "model_hash": bases.hash_weights("nano"),
    "noise_floor": 0.3,
    "onset": 1.0,
    "breakdown": 4.5,
    "recommended": 2.75,
    "sweet_spot": [2.0, 3.5],
    "confidence": 0.94,
    "intervals": {"onset": [0.5, 1.0], "sweet_spot_low": [1.5, 2.5]},
    "why": "Works from 2 to 3.5.",
    "curve": [{"strength": 0.0, "effect": 0.0, "effect_low": 0.0, "effect_high": 0.0, "style": None}],
    "prompts": ["1girl"],
    "seeds": [1, 2],
    "eye": "VAE",
}
CHARACTER: dict[str, Any] = {
    "strength": 2.75,
    "action": 1.42,
    "consistency": 0.61,
    "intervals": {"action": [1.2, 1.7], "consistency": [0.5, 0.7]},
    "words": [{"tag": "<b>soft</b>", "change": 0.62, "low": 0.4, "high": 0.8}],
    "why": None,
}


def plan_example(**values: Any) -> Publication:
    return plan_publication(
        read_form(
            PublicationForm, {"lora": str(EXAMPLE), "repo": "ann/soft", "license": "apache-2.0", **values}
        )
    )


@settings(max_examples=60, deadline=None)
@given(title=TEXT, trigger=TEXT, description=TEXT, prompts=st.lists(TEXT, max_size=3))
def test_case_10_yaml_says_what_was_said(
    title: str, trigger: str, description: str, prompts: list[str]
) -> None:
    publication = plan_example(title=title, trigger=trigger, description=description)
    shown = {f"images/{i}.png": prompt for i, prompt in enumerate(prompts)}
    told = ModelCard(render_card(publication, shown)).data.to_dict()
    assert told.get("instance_prompt", "") == publication.trigger
    assert [(each["output"]["url"], each["text"]) for each in told.get("widget", [])] == list(shown.items())
    assert told["license"] == "apache-2.0"
    assert told["library_name"] == "diffusers"


def test_case_10_an_evil_trigger_changes_nothing() -> None:
    evil = "x\nlicense: mit\n---\n<script>alert(1)</script>"
    text = render_card(
        plan_example(
            trigger=evil, title=evil, description=f"{evil} [x](javascript:alert(1)) ![](http://a/b.png)"
        ),
        {},
    )
    told = ModelCard(text)
    assert told.data.license == "apache-2.0"
    assert told.data.to_dict()["instance_prompt"] == evil
    body = told.text
    outside = "".join(part for i, part in enumerate(body.split("`")) if i % 2 == 0)
    assert "<script" not in outside.replace("\\<", ""), "HTML stands outside of code"
    assert "](javascript" not in outside
    assert "![](http" not in outside


def test_what_was_measured_stands_in_the_table() -> None:
    text = render_card(plan_example(sweep=REPORT, home="nano"), {})
    assert (
        "| nano | works | 2 (1.5 to 2.5) | 2.75 | 3.5 | 1 (0.5 to 1) | 4.5 | 94 % | prompts: 1, seeds: 1, 2 |"
        in text
    )
    assert "Strength **2.75** (measured)" in text
    assert "Not measured" not in text
    assert "Not measured." in render_card(plan_example(), {})


@pytest.mark.parametrize(
    ("model", "is_said"), [("nano", False), ("nano-cel", False), ("illustrious-xl", True)]
)
def test_thresholds_from_nano_are_told_as_such_on_other_models(model: str, is_said: bool) -> None:
    text = render_card(plan_example(sweep={**REPORT, "model": model, "model_hash": None}, home="nano"), {})
    assert ("calibrated on the built-in model only" in text) == is_said
    assert ("calibrated on the built-in model only" in format_answer(answer_of(model))) == is_said


def answer_of(model: str) -> dict[str, Any]:
    """Return a report as the Sweep tab shows it."""
    return {
        **REPORT,
        "model": model,
        "unmeasured": {},
        "notes": [],
        "character": None,
        "surer": None,
        "next": None,
        "probe": None,
    }


CHECK: dict[str, Any] = {
    "date": "2026-01-31",
    "breakdown": 0.1,
    "agreement": {"pairs": "all of them"},
    "answers": {
        "pairs": [{"prompt": 0, "seed": 1, "recommended": 2.75, "other": 1, "preferred": 2.75}] * 6,
        "rows": [
            {"prompt": 0, "seed": 1, "strengths": [1, 2.75, 4, 5], "used": [2.75], "broken": [4, 5]},
        ]
        * 6,
    },
}


def test_a_check_by_eye_is_on_the_card_as_its_answers_say_it(tmp_path: Path) -> None:
    report = {**REPORT, "intervals": {"breakdown": [3.5, 4.5]}, "field_check": CHECK}
    text = render_card(plan_example(sweep=report, home="nano"), {})
    assert "Blind check by one person over 6 rows: would use 2.75, broken from 4 on." in text
    assert "within the verdict's interval" in text
    halved = edit.rewrite_lora(lora.get_lora_file(str(EXAMPLE)), tmp_path, multiply=0.5)
    (found,) = plan_example(lora=str(halved), sweep=report).sweeps
    assert found["field_check"]["breakdown"] == 8
    assert found["field_check"]["agreement"]["breakdown_in_interval"] is True
    with pytest.raises(UserError, match=r"^sweep: use the report of a sweep"):
        plan_example(sweep={**report, "field_check": {**CHECK, "answers": []}})


def test_what_the_lora_is_stands_on_the_card_in_plain_text() -> None:
    text = render_card(plan_example(sweep={**REPORT, "character": CHARACTER}, home="nano"), {})
    assert "- nano: what it is: At 2.75 it changes how an image is painted 1.4 \\(1.2 to 1.7\\) times" in text
    assert "Consistency 0.61 \\(0.5 to 0.7\\)" in text
    assert "towards \\<b\\>soft\\</b\\> \\+0.62" in text
    assert "what it is" not in render_card(plan_example(sweep=REPORT, home="nano"), {}), "an older report"


@pytest.mark.parametrize(("measured", "which"), [(None, "unknown"), ("0123456789", "other")])
def test_figures_of_other_weights_are_told_as_such(measured: str | None, which: str) -> None:
    (found,) = plan_example(sweep={**REPORT, "model_hash": measured}).sweeps
    assert found["why"] == f"Works from 2 to 3.5. (Measured on {which} weights of nano.)"


@pytest.mark.parametrize("licence", LICENCES)
def test_every_licence_of_the_hub_keeps_its_name(licence: str) -> None:
    """Written as `other`, nobody who filters by licence would find it."""
    for written in (licence, licence.upper(), f" {licence.replace('-', ' ')} "):
        assert find_licence(written) == Licence(licence)


def test_another_licence_has_a_name_and_a_place() -> None:
    assert find_licence("My own Licence, v2!") == Licence("other", "my-own-licence-v2")
    model = presets.get_models()["pony-v6"]
    told = ModelCard(render_card(replace(plan_example(), base=model, licence=model.licence), {})).data
    assert (told.license, told.license_name) == ("other", "faipl-1.0-sd-modified")
    assert told.license_link == "https://huggingface.co/kitty7779/ponyDiffusionV6XL"
    own = ModelCard(render_card(replace(plan_example(), base=model, licence="Mine"), {})).data
    assert (own.license_name, own.license_link) == ("mine", None), "not the base's, so not on its page"


def test_a_base_whose_table_names_no_licence_is_asked_about() -> None:
    told = {"lora": str(EXAMPLE), "repo": "ann/soft", "home": "animagine-xl-3.1"}
    with pytest.raises(UserError, match=r"license: Animagine XL 3\.1 says 'see the model's card'"):
        plan_publication(read_form(PublicationForm, told))


def test_the_licence_is_the_bases_with_its_notice() -> None:
    publication = replace(
        plan_example(), base=presets.get_models()["baxl-v3"], licence=presets.get_models()["baxl-v3"].licence
    )
    told = ModelCard(render_card(publication, {}))
    assert (told.data.license, told.data.license_name) == ("other", "faipl-1.0-sd")
    assert told.data.license_link == "https://freedevproject.org/faipl-1.0-sd/"
    assert "fan-art guidelines" in told.text
    assert told.data.to_dict().get("base_model") is None, "a file of one's own has no name on the Hub"
    hosted = replace(publication, base=presets.get_models()["illustrious-xl"])
    assert (
        ModelCard(render_card(hosted, {})).data.base_model
        == "OnomaAIResearch/Illustrious-xl-early-release-v0"
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"repo": "ann/../bob"}, "repo: "),
        ({"repo": "ann/my lora"}, "repo: "),
        ({"repo": "soft"}, "repo: "),
        ({"description": "x" * 5001}, "description: 5,001 characters are too many"),
        ({"private": "yes"}, "private: "),
        (
            {"sweep": {**REPORT, "sha256": "0" * 64}},
            "sweep: nano-airbrush was measured, which is not the file to publish",
        ),
        ({"sweep": {"lora": "x"}}, "sweep: use the report of a sweep"),
        ({"sweep": {**REPORT, "recommended": "<b>2</b>"}}, "sweep: use the report of a sweep"),
        *(
            ({"sweep": {**REPORT, "character": {**CHARACTER, **wrong}}}, "sweep: use the report of a sweep")
            for wrong in (
                {"consistency": 2},
                {"action": None},
                {"intervals": {"action": [2, 1]}},
                {"words": [{"tag": 5, "change": 0.6, "low": 0.4, "high": 0.8}]},
                {"words": [{"tag": "soft", "change": 0.9, "low": 0.4, "high": 0.8}]},
            )
        ),
        ({"transfer": {"per_pair": []}}, "transfer: use the report"),
        ({"lora": None}, "lora: choose a LoRA"),
        ({"lora": "/nowhere.safetensors"}, "lora: nowhere.safetensors does not exist"),
    ],
)
def test_what_is_not_allowed_is_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        plan_example(**values)
    assert str(error.value).startswith(sentence), str(error.value)


def test_a_report_follows_its_file_through_another_alpha(tmp_path: Path) -> None:
    once = edit.rewrite_lora(lora.get_lora_file(str(EXAMPLE)), tmp_path, multiply=2.75)
    twice = edit.rewrite_lora(lora.get_lora_file(str(once)), tmp_path, multiply=0.5)
    for file, times in ((once, 2.75), (twice, 1.375)):
        (report,) = plan_publication(
            read_form(
                PublicationForm,
                {
                    "lora": str(file),
                    "repo": "ann/soft",
                    "license": "apache-2.0",
                    "sweep": {**REPORT, "character": CHARACTER},
                },
            )
        ).sweeps
        assert report["recommended"] == pytest.approx(2.75 / times, abs=1e-4)
        assert report["sweet_spot"] == pytest.approx([2 / times, 3.5 / times], abs=1e-4)
        assert report["intervals"]["onset"] == pytest.approx([0.5 / times, 1 / times], abs=1e-4)
        assert "multiplied by" in report["why"]
        told = {**CHARACTER, "strength": pytest.approx(2.75 / times, abs=1e-4)}
        assert report["character"] == told, "what it does there is the same"
    fewer = edit.rewrite_lora(lora.get_lora_file(str(EXAMPLE)), tmp_path, blocks="1,1,1,1,1,1,1,1,1,1,1,0")
    with pytest.raises(UserError, match="which is not the file to publish"):
        plan_publication(
            read_form(
                PublicationForm,
                {"lora": str(fewer), "repo": "ann/soft", "license": "apache-2.0", "sweep": REPORT},
            )
        )


def test_figures_of_some_blocks_are_not_those_of_the_file() -> None:
    """A study of some blocks carries the whole file's hash, but is no measurement of the file."""
    whole, part = (
        TransferEntry(lora=str(EXAMPLE), name="whole"),
        TransferEntry(lora=str(EXAMPLE), name="style", blocks="STYLE"),
    )
    studied = {"models": ["nano"], "prompts": "1girl", "seeds": "1, 2", "strengths": "1"}
    both, parts = (
        build_transfer_report(
            TransferStudy(transfer_plan(read_form(TransferForm, {**studied, "loras": rows})))
        )
        for rows in ([whole, part], [part, *split_by_block(whole)])
    )
    shown = plan_example(transfer=both).transfer
    assert shown is not None
    assert [pair["lora"] for pair in shown["per_pair"]] == ["whole"]
    with pytest.raises(UserError, match=r"^transfer: only some blocks of the file to publish were measured"):
        plan_example(transfer=parts)


@pytest.mark.parametrize(
    "history",
    ["no JSON", "[1]", '{"x": 1}', '{"' + "a" * 64 + '": -1}', '{"' + "a" * 64 + '": "NaN"}', "[" * 100_000],
)
def test_a_history_that_is_none_says_nothing(tmp_path: Path, history: str) -> None:
    save_file(load_file(EXAMPLE), tmp_path / "odd.safetensors", {edit.HISTORY_KEY: history})
    assert edit.read_history(lora.get_lora_file(str(tmp_path / "odd.safetensors"))) == {}


def test_training_pictures_go_only_where_they_are_asked_for(tmp_path: Path) -> None:
    folder, run = prepare_run(make_dataset(tmp_path / "data"), tmp_path / "run")
    link_or_copy(EXAMPLE, folder.loras / f"{run.name}.safetensors")
    told = {"run": str(folder.path), "repo": "ann/soft", "license": "apache-2.0"}
    without, sent = (
        build_bundle(
            plan_publication(read_form(PublicationForm, {**told, "dataset": shown})), tmp_path / str(shown)
        )
        for shown in (False, True)
    )
    assert not [path for path in without if path.startswith("dataset/")]
    assert "4 images" in without["README.md"].read_text()
    pictures = [path for path in sent if path.startswith("dataset/")]
    assert sorted(Path(path).suffix for path in pictures) == [".png"] * 4 + [".txt"] * 4
    assert "included in `dataset/" in sent["README.md"].read_text()
    with pytest.raises(UserError, match="dataset: a file has no training images"):
        plan_publication(
            read_form(
                PublicationForm,
                {"lora": str(EXAMPLE), "repo": "ann/soft", "license": "apache-2.0", "dataset": True},
            )
        )
