"""Settings in and out of the Generate tab: presets of one's own, pictures of ours and of others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core import presets, record
from core.infotext import infotext, read
from core.types import Detail, Grain, Hires, Request, UserError
from tabs import generate, settings, stages


def page(name: str = "nano", **changes: Any) -> dict[str, Any]:
    """What the controls hold after a preset was chosen."""
    values = {**generate._filled(presets.recipes()[name]), "preset": name, "seed": -1, "count": 1}
    plain = {key: value["value"] if isinstance(value, dict) and "value" in value else value for key, value in values.items()}
    return {key: plain.get(key) for key in (*generate.ASKED, *generate.PARTS)} | changes


def load(file: Path, name: str = "nano") -> tuple[dict[str, Any], str]:
    return settings.loaded(str(file), name, generate._filled)


@pytest.mark.parametrize("name", presets.recipes())
def test_every_recipe_is_written_and_read_back(name: str, tmp_path: Path) -> None:
    recipe = presets.recipes()[name]
    (tmp_path / "r.toml").write_text(presets.written(recipe), encoding="utf-8")
    assert replace(presets.recipe(presets.read_toml(tmp_path / "r.toml"), name), name=name) == recipe


def test_settings_are_saved_and_loaded_back() -> None:
    changed = page(
        cfg=9.5,
        steps=33,
        negative='say "no"\\',
        general="smile 🎯",
        prompt="1girl, smile 🎯, masterpiece",
        hires=True,
        hires_factor=1.5,
        hires_steps=9,
        detail_prompt="a face",
        expand_ban="*halo*\n.*sky.*",
        expand_without=["hair"],
    )
    update, said = settings.saved("my own", **changed)
    assert said.startswith("Saved: my own")
    values, said = load(Path(update["value"]), "baxl-v3")
    assert said == "Loaded: my own."
    assert values["preset"] == "nano"
    for name in ("steps", "negative", "general", "hires", "hires_factor", "hires_steps", "detail", "detail_prompt", "expand_ban", "expand_without"):
        assert values[name] == changed[name], name
    assert values["cfg"]["value"] == 9.5


def test_a_prompt_changed_by_hand_is_saved_as_it_stands() -> None:
    update, _ = settings.saved("", **page(prompt="{odd} (1girl:1.2)", grain=True, grain_amount=0.2))
    values, _ = load(Path(update["value"]))
    assert values["prompt"] == "{odd} (1girl:1.2)"
    assert (values["grain"], values["grain_amount"]) == (True, 0.2)


def test_what_is_not_allowed_is_not_saved() -> None:
    _, said = settings.saved("", **page(width=1001))
    assert "width: 1001 is not allowed" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title = ", "is not TOML"),
        ("title = 'x'", "is missing"),
        ("\x00", "is not TOML"),
        ("a = 1\n" * 50_000, "it is too long; TOML takes up to 100,000 bytes"),
        ("a = " + "[" * 20_000, "is nested too deeply"),
        ("a = " + "9" * 5_000, "is not TOML"),
    ],
)
def test_a_bad_preset_changes_nothing(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    values, said = load(tmp_path / "bad.toml")
    assert values == {}
    assert says in said


def test_a_picture_fills_what_it_speaks_of(tmp_path: Path) -> None:
    request = Request(
        model="nano",
        prompt="1girl, (smile:1.2)",
        negative="sketch",
        width=192,
        height=128,
        steps=31,
        cfg=12,
        sampler="DDIM",
        seed=99,
        hires=Hires(upscaler="nano DAT x2", factor=1.5, steps=7),
        detail=Detail(detector="nano face", prompt="face, smile", padding=8),
        grain=Grain(amount=0.1),
    )
    record.save_png(Image.new("RGB", (8, 8)), tmp_path / "ours.png", infotext(request))
    values, said = load(tmp_path / "ours.png", "baxl-v3")
    assert said == "Settings read. Not used: Sweetspot."
    assert values["preset"] == "nano"
    for name in ("prompt", "negative", "steps", "sampler", "seed"):
        assert values[name] == getattr(request, name)
    assert (values["cfg"]["value"], values["cfg"]["maximum"]) == (12, 12), "the slider reaches as far as the picture went"
    assert (values["hires"], values["hires_factor"], values["hires_steps"]) == (True, 1.5, 7)
    assert (values["detail"], values["detail_prompt"], values["detail_steps"]) == (True, "face, smile", 0)
    assert (values["grain"], values["grain_amount"], values["expand"]) == (True, 0.1, False)
    held = {name: value["value"] if isinstance(value, dict) and "value" in value else value for name, value in values.items()}
    from core import asking

    (cell,) = asking.cells(stages.said({**page(), **{name: held[name] for name in generate.ASKED if name in held}}))
    assert cell.request == request, "what was read makes the same request"


def test_another_tools_picture_says_what_was_left(tmp_path: Path) -> None:
    text = (
        "1girl\nNegative prompt: bad\nSteps: 20, Sampler: LCM, CFG scale: 7, Seed: 1, Size: 1000x1216, Model: someXL, Clip skip: 2, "
        "Denoising strength: 0.45, Hires upscale: 2, Hires upscaler: 4x-UltraSharp, ADetailer model: face_yolov8n.pt, Version: v1.10"
    )
    record.save_png(Image.new("RGB", (8, 8)), tmp_path / "theirs.png", text)
    values, said = load(tmp_path / "theirs.png")
    assert values["preset"] == "nano"
    assert "someXL, is not among the presets" in said
    assert "sampler: 'LCM' is unknown" in said
    assert "width: 1000 is not allowed" in said
    assert "hires.upscaler: '4x-UltraSharp' is unknown" in said
    assert "detail.detector: 'face_yolov8n.pt' is unknown" in said.replace("\\", ""), "what is theirs is text"
    assert "Not used: Clip skip, Version." in said
    assert (values["hires"], values["hires_upscaler"], values["hires_denoise"]) == (True, "nano DAT x2", 0.45)
    assert (values["detail"], values["detail_detector"], values["sampler"]) == (True, "nano face", "Euler a")


def test_a_hostile_picture_fills_nothing(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    info = "x\nSteps: 1e9, Sampler: y, Seed: -5, Size: 1x1"
    with pytest.raises(UserError):
        read(info)
    values, said = load(tmp_path / "torn.png")
    assert values == {}
    assert "cannot be read" in said
