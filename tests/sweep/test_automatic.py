"""A sweep without strengths finds its own, and makes no picture of a LoRA that shows nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file

from core.lora import edit
from core.lora import file as lora_file
from core.runtime import gpu
from core.schema.errors import UserError
from core.schema.events import Event, Failed, Picture
from core.schema.records import read_form
from core.sweep import cell_cache
from core.sweep.plan import FIRST_STRENGTHS, SweepForm, plan_sweep
from core.sweep.report import build_sweep_report, export_sweep
from core.sweep.strengths import place_strengths
from core.sweep.study import SweepStudy
from core.transfer.plan import TransferForm, plan_transfer
from tabs.sweep.results import format_answer
from tests.sweep.conftest import EXAMPLE
from tests.transfer.conftest import build_values

Multiply = Callable[[float], Path]
VALUES: dict[str, Any] = {
    "lora": str(EXAMPLE),
    "preset": "nano",
    "prompts": "1girl, red hair\n1boy, hat",
    "seeds": "3, 4",
}


def plan(**values: Any) -> SweepStudy:
    return SweepStudy(plan_sweep(read_form(SweepForm, {**VALUES, **values})))


def probe_only(cells: list, **asked: Any) -> Iterator[Event]:
    """Make no pictures."""
    yield from [Failed(message="enough")] if cells else gpu.generate_on_gpu(cells, **asked)


@pytest.fixture
def multiply(tmp_path: Path) -> Multiply:
    """Return a function that writes the example with another alpha."""
    return lambda times: edit.rewrite_lora(lora_file.read_lora_file(EXAMPLE), tmp_path, multiply=times)


@pytest.mark.usefixtures("few_steps")
def test_a_lora_of_any_norm_meets_its_range(multiply: Multiply) -> None:
    studies = [plan(lora=str(file), prompts="1girl") for file in (EXAMPLE, multiply(20))]
    for study in studies:
        list(study.run(probe_only))
    plain, strong = (study.strengths for study in studies)
    assert strong[1] == pytest.approx(plain[1] / 20, rel=0.3)
    assert len(strong) == FIRST_STRENGTHS
    assert strong[-1] < 1.5, "20 times as strong, and nothing is left long before 5"


@pytest.mark.usefixtures("few_steps")
def test_what_shows_nothing_ends_before_a_picture(multiply: Multiply, tmp_path: Path) -> None:
    study = plan(lora=str(multiply(0.02)))
    events = list(study.run(gpu.generate_on_gpu))
    assert not [event for event in events if isinstance(event, Picture | Failed)]
    report = export_sweep(study, tmp_path).report
    assert report["why"].startswith("No change: even at 5, the greatest strength that is allowed")
    assert (report["strengths"], report["curve"], report["cells"]) == ([], [], [])
    (limit,) = report["probe"]
    assert limit["strength"] == 5
    assert 0 < limit["change"] < 0.03


@pytest.mark.usefixtures("few_steps")
def test_the_report_says_what_placed_the_strengths_and_a_second_sweep_has_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cell_cache, "FOLDER", tmp_path)
    study = plan(prompts="1girl", seeds="3")
    list(study.run(gpu.generate_on_gpu))
    report = build_sweep_report(study)
    assert len(report["cells"]) == len(report["strengths"]) == FIRST_STRENGTHS
    assert place_strengths({row["strength"]: row["change"] for row in report["probe"]}) == study.strengths
    assert f"Strengths found: 0, {study.strengths[1]:g}, " in format_answer(report)
    again = plan(prompts="1girl", seeds="3")
    assert not list(again.run(lambda *_, **__: pytest.fail("something is made again")))
    assert again.strengths == study.strengths
    torn = next(tmp_path.rglob("*.json"))
    torn.write_bytes(torn.read_bytes()[:5])
    third = plan(prompts="1girl", seeds="3")
    list(third.run(gpu.generate_on_gpu))
    assert third.strengths == study.strengths


def test_a_study_goes_on_beyond_its_last_strength_within_the_limit() -> None:
    study = plan(strengths="0, 1, 2")
    assert study._find_further() == [4]
    study.strengths = [0, 1, 2, 5]
    assert study._find_further() == []
    below = plan(strengths="-2, -1")
    assert below._find_further() == [-4]
    full = plan(strengths="0-1 [32]", prompts="a\nb", seeds="1-16")
    assert not full._find_further(), "more images than a sweep may have"


def test_a_job_that_fails_leaves_no_strengths_behind() -> None:
    study = plan(prompts="1girl, nothing is kept of it")
    (event,) = study.run(lambda *_, **__: iter([Failed(message="no GPU")]))
    assert isinstance(event, Failed)
    assert (study.strengths, study.changes, study.verdict) == ([], {}, None)


@pytest.mark.parametrize(
    ("text", "limit"), [(None, 5), (" ", 5), ("auto", 5), ("-auto", -5), ("0, 1", 5), ("-1", -5)]
)
def test_strengths_are_found_where_none_are_asked_for(text: str | None, limit: float) -> None:
    found = plan_sweep(SweepForm(**VALUES, strengths=text))
    assert (bool(found.strengths), found.limit) == (text in ("0, 1", "-1"), limit)


def test_as_many_images_as_a_first_pass_may_take_are_counted() -> None:
    prompts = "\n".join(f"{number} girls" for number in range(6))
    with pytest.raises(UserError, match="12 strengths x 6 prompts x 16 seeds are 1152 images"):
        plan(prompts=prompts, seeds="1-16")


def test_transfer_finds_the_strengths_of_each_pair_where_it_is_told_none() -> None:
    found = plan_transfer(read_form(TransferForm, build_values(strengths="-auto")))
    assert (found.strengths, found.limit) == ((), -5)


def test_sweep_says_that_nothing_changes(client: Client, multiply: Multiply) -> None:
    _, curve, _, report = client.predict(
        lora=handle_file(multiply(0.02)), prompts="1girl", seeds="1, 2", api_name="/sweep"
    )
    assert (curve, report["strengths"]) == ([], [])
    assert report["why"].startswith("No change")
