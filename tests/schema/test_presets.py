"""Presets become records; the error for a bad one names file, field, value and allowed values."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.prompts.grammar import compose_prompt
from core.schema import presets
from core.schema.errors import UserError

NANO_PRESET = (presets.PRESETS_FOLDER / "prompts" / "nano.toml").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a presets folder of the test's own, with the real models.toml."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "models.toml").write_text((presets.PRESETS_FOLDER / "models.toml").read_text())
    monkeypatch.setattr(presets, "PRESETS_FOLDER", tmp_path)
    for table in (presets.get_models, presets.get_prompt_presets):
        table.cache_clear()
    yield tmp_path
    for table in (presets.get_models, presets.get_prompt_presets):
        table.cache_clear()


def test_the_shipped_presets_are_right() -> None:
    assert next(iter(presets.get_prompt_presets())) == "nano"
    assert {
        "nano",
        "baxl-v3",
        "kohaku-xl-delta",
        "illustrious-xl",
        "pony-v6",
        "animagine-xl-3.1",
        "sdxl-base",
    } <= presets.get_models().keys()
    for model in presets.get_models().values():
        assert model.licence
        assert (model.revision is None) == (
            model.source.startswith("core/") or model.source.endswith(".safetensors")
        )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("steps = 25", "steps = 0", "prompts/bad.toml: steps: 0 is not valid"),
        ("steps = 25", "steps = true", "prompts/bad.toml: steps: True is not valid. Use a whole number"),
        ("steps = 25", "", "prompts/bad.toml: steps: it is missing"),
        ("steps = 25", "steps = 25\nstrength = 1", "prompts/bad.toml: strength: it is not a field"),
        ("steps = 25", "steps = = 25", "prompts/bad.toml: it is not TOML"),
        ('model = "nano"', 'model = "mano"', "'mano' is not in models.toml; it has nano"),
        ("cfg = 5.0", "cfg = 12", "cfg: 12.0 is outside its own range, 1.0 to 10.0"),
        ("width = 128", "width = 100", "width: 100 is not valid"),
        ("steps = 25", "steps = 25\nlike = ['a']", "prompts/bad.toml: like: ['a'] is unknown"),
        ("size_step = 32", "size_step = 0", "prompts/bad.toml: size_step: 0 is not valid"),
        ("{quality}", "{mood}", "{mood} is not a part of a prompt"),
        ("[64, 256]", "[64]", "too few or too many entries"),
        ('"Euler a"', '"Euler z"', "sampler: 'Euler z' is unknown"),
    ],
)
def test_a_wrong_preset_is_named(folder: Path, old: str, new: str, says: str) -> None:
    (folder / "prompts" / "bad.toml").write_text(NANO_PRESET.replace(old, new))
    with pytest.raises(UserError) as caught:
        presets.get_prompt_presets()
    assert says in str(caught.value)


def test_a_preset_of_version_01_names_the_schedule_with_the_sampler() -> None:
    table = {**tomllib.loads(NANO_PRESET), "sampler": "DPM++ 2M Karras"}
    found = presets.parse_prompt_preset(table, "own")
    assert (found.sampler, found.schedule) == ("DPM++ 2M", "Karras")


def test_presets_of_models_that_predict_v_rescale_guidance() -> None:
    found = presets.get_prompt_presets()
    assert [name for name, preset in found.items() if preset.cfg_rescale] == ["noobai-xl-vpred"]
    assert found["noobai-xl-vpred"].cfg_rescale == 0.7


def test_parts_make_the_prompt() -> None:
    recipe = presets.get_prompt_presets()["nano"]
    assert (
        compose_prompt(recipe, subject="1girl", character="", general="smile, ", quality="masterpiece")
        == "1girl, smile, masterpiece"
    )
    assert (
        compose_prompt(recipe, subject="1girl", character="a {b}", general="(x, y:1.2)", quality="")
        == "1girl, a {b}, (x, y:1.2)"
    )


@pytest.mark.parametrize(
    "template", ["{subject:\n>3000000000}", "{", "{subject!r}", "{0}", "{general.__class__}", "x" * 20_000]
)
def test_a_hostile_template_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="template: "):
        presets.parse_prompt_preset({**tomllib.loads(NANO_PRESET), "template": template}, "own")


@pytest.mark.timeout(20)
def test_a_megabyte_of_commas_is_put_together_at_once() -> None:
    text = compose_prompt(
        presets.get_prompt_presets()["nano"],
        subject="1girl",
        character="",
        general="," * 1_000_000,
        quality="(a, b:1.2)",
    )
    assert text == "1girl, (a, b:1.2)"


def test_a_value_in_place_of_a_table_is_named(folder: Path) -> None:
    (folder / "models.toml").write_text("nano = 5\n")
    with pytest.raises(UserError, match=r"models.toml: 'nano' is not a table"):
        presets.get_models()


def test_a_preset_without_prompts_for_a_sweep_is_named() -> None:
    with pytest.raises(UserError, match=r"prompts/bad.toml: neutral: it is empty"):
        presets.parse_prompt_preset({**tomllib.loads(NANO_PRESET), "neutral": []}, "bad")
