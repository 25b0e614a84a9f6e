"""Words that somebody else wrote, in a file or a request: text on the page, nothing in the log, and no drawing or reading breaks on them."""

import ast
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from core import charts, models, opening
from core.aside import drain
from core.publish import measured
from core.train.settings import recipes, settings
from core.types import Model, UserError
from tabs import sweep
from tabs.expected import lines
from tabs.generate import _filled
from tabs.settings import loaded
from tests.publish.test_card import EXAMPLE, REPORT
from tests.trust.raw import Raw

EVIL = "![x](https://evil.example/p.png)<img src='https://evil.example/q.png'>"
TABS = Path(sweep.__file__).parent


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A LoRA with a key that is refused by its name."""
    tensors = load_file(EXAMPLE)
    save_file({**tensors, f"{EVIL}.lora_down.weight": next(iter(tensors.values())).clone()}, tmp_path / "evil.safetensors")
    return tmp_path / "evil.safetensors"


def is_text(said: str) -> None:
    assert "evil.example" in said, "the words are not even there"
    assert "![" not in said
    assert "<img" not in said.replace("\\<", "")


def test_a_files_words_are_text_in_the_studios_own(evil: Path, tmp_path: Path) -> None:
    told = PngInfo()
    told.add_text("parameters", f"1girl\nSteps: 20, Sampler: Euler a, CFG scale: 5, Seed: 1, Size: 128x128, Model: {EVIL}")
    Image.new("RGB", (128, 128)).save(tmp_path / "evil.png", pnginfo=told)
    _, read = loaded(str(tmp_path / "evil.png"), "nano", _filled)
    for said in (sweep._explained(str(evil), None), sweep._written(str(evil), None, "all", "", 1.0)[1], read):
        is_text(said)


def test_a_refusal_has_its_sign_from_one_place() -> None:
    """Where another puts it before what it was told, Markdown of a file could be behind it."""
    for file in TABS.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for sign, told in pairwise(parts):
                signed = isinstance(sign, ast.Constant) and str(sign.value).endswith("⚠️ ")
                assert not (signed and isinstance(told, ast.FormattedValue)), f"{file.name}:{node.lineno}"


def test_a_message_begins_no_tag(raw: Raw, evil: Path) -> None:
    """Gradio shows messages as HTML."""
    answer = raw.answer("/edit_lora", lora=raw.upload("evil.safetensors", evil.read_bytes()))
    assert "refused: lora: " in answer
    assert "evil.example" in answer
    assert "<img" not in answer


@pytest.mark.parametrize("name", [r"$\frac{$", "$" + "{" * 900 + "}" * 900 + "$", "half \ud800"], ids=["formula", "braces", "half"])
def test_a_reports_name_is_no_formula(name: str) -> None:
    curve = [{"strength": strength, "effect": 0.5, "effect_low": 0.4, "effect_high": 0.6} for strength in (0.0, 1.0)]
    charts.curves(measured.sweep({**REPORT, "lora": name, "model": name, "curve": curve}, REPORT["sha256"]))


@pytest.mark.parametrize("text", [f"a = {5000 * '9'}", f"a = {3000 * '['}", f"rate = {400 * '9'}", f"betas = [0.9, {400 * '9'}]"], ids=lambda text: text[:12])
def test_other_settings_that_are_none_are_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^overrides: "):
        settings(next(iter(recipes())), models.find("nano"), lines(text))


def test_what_is_refused_before_its_check_is_said_and_not_logged(client: Client, raw: Raw, capfd: pytest.CaptureFixture[str]) -> None:
    config: Any = client.config
    make = next(each for each in config["dependencies"] if each["api_name"] == "_make")
    props = {each["id"]: each["props"] for each in config["components"]}
    data = ["her own words" if props[number].get("label") == "Sampler" else props[number].get("value") for number in make["inputs"]]
    answer = raw.post("queue/join", {"data": data, "fn_index": make["id"], "session_hash": "hers"})
    assert answer.is_client_error
    assert "her own words" in answer.text
    said = "".join(capfd.readouterr())
    assert '"kind": "gradio"' in said
    assert "her own words" not in said


def test_a_model_that_cannot_be_opened_is_logged_by_its_commit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "hers.safetensors").write_bytes(b"no weights")
    commit = "a" * 40
    hers = Model(name=f"her/own@{commit}:hers.safetensors", title="her/own", source="her/own", revision=commit, config="core/nano/weights/nano", licence="mit")
    with caplog.at_level(logging.WARNING), pytest.raises(UserError):
        drain(opening.opened(hers, tmp_path / "hers.safetensors", {}))
    assert commit in caplog.text
    assert "her" not in caplog.text.replace("cannot", "")
