"""Words that somebody else wrote, in a file or a request.

They are plain text on the page, are not in the log, and break no drawing or reading.
"""

import ast
import logging
from itertools import pairwise
from pathlib import Path

import pytest
from gradio_client import Client
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from core.models import bases, loader
from core.publish import measured
from core.schema.errors import UserError
from core.schema.types import Model
from core.sweep import charts
from core.system.concurrency import drain
from core.train.trainer.settings import load_recipes, resolve_settings
from tabs.generate.settings import load_settings
from tabs.generate.tab import _get_preset_values
from tabs.shared.train_form import parse_overrides
from tabs.sweep import controls, edit_panel
from tests.publish.test_card import EXAMPLE, REPORT
from tests.trust.raw import RawClient

EVIL = "![x](https://evil.example/p.png)<img src='https://evil.example/q.png'>"
TABS = Path(controls.__file__).parent.parent


@pytest.fixture
def evil_lora(tmp_path: Path) -> Path:
    """Save a LoRA with a hostile key; the error for it names the key."""
    tensors = load_file(EXAMPLE)
    save_file(
        {**tensors, f"{EVIL}.lora_down.weight": next(iter(tensors.values())).clone()},
        tmp_path / "evil.safetensors",
    )
    return tmp_path / "evil.safetensors"


def assert_plain_text(text: str) -> None:
    assert "evil.example" in text, "the words are not even there"
    assert "![" not in text
    assert "<img" not in text.replace("\\<", "")


def test_a_files_words_are_text_in_the_studios_own(evil_lora: Path, tmp_path: Path) -> None:
    told = PngInfo()
    model = EVIL.replace("https://", "").replace("/", ".")  # of a path, only the end is shown
    told.add_text(
        "parameters",
        f"1girl\nSteps: 20, Sampler: Euler a, CFG scale: 5, Seed: 1, Size: 128x128, Model: {model}",
    )
    Image.new("RGB", (128, 128)).save(tmp_path / "evil.png", pnginfo=told)
    _, read = load_settings(str(tmp_path / "evil.png"), "nano", _get_preset_values)
    for said in (
        controls.describe_lora(str(evil_lora), None),
        edit_panel._rewrite_lora(str(evil_lora), None, "all", "", 1.0)[1],
        read,
    ):
        assert_plain_text(said)


def test_a_refusal_has_its_sign_from_one_place() -> None:
    """If other code put the sign before foreign text, that text could be Markdown of a file."""
    for file in TABS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for sign, told in pairwise(parts):
                signed = isinstance(sign, ast.Constant) and str(sign.value).endswith("⚠️ ")
                assert not (signed and isinstance(told, ast.FormattedValue)), f"{file.name}:{node.lineno}"


def test_a_message_begins_no_tag(raw: RawClient, evil_lora: Path) -> None:
    """Gradio shows messages as HTML, so a tag in one would be live on the page."""
    answer = raw.call_endpoint("/edit_lora", lora=raw.upload("evil.safetensors", evil_lora.read_bytes()))
    assert "refused: lora: " in answer
    assert "evil.example" in answer
    assert "<img" not in answer


@pytest.mark.parametrize(
    "name", [r"$\frac{$", "$" + "{" * 900 + "}" * 900 + "$", "half \ud800"], ids=["formula", "braces", "half"]
)
def test_a_reports_name_is_no_formula(name: str) -> None:
    curve = [
        {"strength": strength, "effect": 0.5, "effect_low": 0.4, "effect_high": 0.6}
        for strength in (0.0, 1.0)
    ]
    charts.draw_curves(
        measured.parse_sweep_report({**REPORT, "lora": name, "model": name, "curve": curve}, REPORT["sha256"])
    )


@pytest.mark.parametrize(
    "text",
    [f"a = {5000 * '9'}", f"a = {3000 * '['}", f"rate = {400 * '9'}", f"betas = [0.9, {400 * '9'}]"],
    ids=lambda text: text[:12],
)
def test_other_settings_that_are_none_are_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^overrides: "):
        resolve_settings(next(iter(load_recipes())), bases.find_model("nano"), parse_overrides(text))


def test_what_is_refused_before_its_check_is_said_and_not_logged(
    client: Client, raw: RawClient, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = raw.press_generate(client, "Sampler", "her own words")
    assert answer.is_client_error
    assert "her own words" in answer.text
    said = "".join(capfd.readouterr())
    assert '"kind": "gradio"' in said
    assert "her own words" not in said


def test_a_model_that_cannot_be_opened_is_logged_by_its_commit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "hers.safetensors").write_bytes(b"no weights")
    commit = "a" * 40
    hers = Model(
        name=f"her/own@{commit}:hers.safetensors",
        title="her/own",
        source="her/own",
        revision=commit,
        config="core/nano/weights/nano",
        licence="mit",
    )
    with caplog.at_level(logging.WARNING), pytest.raises(UserError):
        drain(loader.open_pipeline(hers, tmp_path / "hers.safetensors", {}))
    assert commit in caplog.text
    assert "her" not in caplog.text.replace("cannot", "")
