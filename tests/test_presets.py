"""Presets become records; a wrong one names its file, field, value and what is allowed."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import presets
from core.prompts import compose
from core.types import UserError

NANO = (presets.FOLDER / "prompts" / "nano.toml").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A presets folder of the test's own, with the real models."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "models.toml").write_text((presets.FOLDER / "models.toml").read_text())
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    for table in (presets.models, presets.recipes):
        table.cache_clear()
    yield tmp_path
    for table in (presets.models, presets.recipes):
        table.cache_clear()


def test_the_shipped_presets_are_right() -> None:
    assert next(iter(presets.recipes())) == "nano"
    assert {"nano", "baxl-v3", "kohaku-xl-delta", "illustrious-xl", "pony-v6", "animagine-xl-3.1", "sdxl-base"} <= presets.models().keys()
    for model in presets.models().values():
        assert model.licence
        assert (model.revision is None) == (model.source.startswith("core/") or model.source.endswith(".safetensors"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("steps = 25", "steps = 0", "prompts/bad.toml: steps: 0 is not allowed"),
        ("steps = 25", "steps = true", "prompts/bad.toml: steps: True is not of type int"),
        ("steps = 25", "", "prompts/bad.toml: steps is missing"),
        ("steps = 25", "steps = 25\nstrength = 1", "prompts/bad.toml: 'strength' is not a field"),
        ("steps = 25", "steps = = 25", "prompts/bad.toml: it is not TOML"),
        ('model = "nano"', 'model = "mano"', "'mano' is not in models.toml; it has nano"),
        ("cfg = 5.0", "cfg = 12", "cfg: 12.0 is outside its own range, 1.0 to 10.0"),
        ("width = 128", "width = 100", "width: 100 is not allowed"),
        ("{quality}", "{mood}", "{mood} is not a part of a prompt"),
        ("[64, 256]", "[64]", "not a list of 2 numbers"),
        ('"Euler a"', '"Euler z"', "sampler: 'Euler z' is unknown"),
    ],
)
def test_a_wrong_preset_is_named(folder: Path, old: str, new: str, says: str) -> None:
    (folder / "prompts" / "bad.toml").write_text(NANO.replace(old, new))
    with pytest.raises(UserError) as caught:
        presets.recipes()
    assert says in str(caught.value)


def test_parts_make_the_prompt() -> None:
    recipe = presets.recipes()["nano"]
    assert compose(recipe, subject="1girl", character="", general="smile, ", quality="masterpiece") == "1girl, smile, masterpiece"
    assert compose(recipe, subject="1girl", character="a {b}", general="(x, y:1.2)", quality="") == "1girl, a {b}, (x, y:1.2)"


@pytest.mark.parametrize("template", ["{subject:\n>3000000000}", "{", "{subject!r}", "{0}", "{general.__class__}", "x" * 20_000])
def test_a_hostile_template_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="template: "):
        presets.recipe({**tomllib.loads(NANO), "template": template}, "own")


@pytest.mark.timeout(20)
def test_a_megabyte_of_commas_is_put_together_at_once() -> None:
    text = compose(presets.recipes()["nano"], subject="1girl", character="", general="," * 1_000_000, quality="(a, b:1.2)")
    assert text == "1girl, (a, b:1.2)"
