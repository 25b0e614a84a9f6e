"""Settings in and out of the Generate tab: own presets, own pictures and those of other tools."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from core.generate import picture_file, request
from core.lora.apply import get_lora_file
from core.models import lora_library
from core.models.model_settings import ModelSettings, save_settings
from core.prompts import png_metadata
from core.prompts.infotext import create_infotext
from core.schema import presets
from core.schema.records import read_form
from core.schema.types import Detail, Grain, Hires, Request
from core.system import paths
from core.system.tensor_files import calculate_payload_sha256
from tabs.generate import settings, stages
from tabs.generate import tab as generate_tab
from tests.prompts import tool_pictures


def fill_page(name: str = "nano", **changes: Any) -> dict[str, Any]:
    """Return what the controls hold after a preset was chosen, with `changes`."""
    values = {
        **generate_tab._get_preset_values(presets.get_prompt_presets()[name]),
        "preset": name,
        "model": "",
        "seed": -1,
        "count": 1,
    }
    plain = {
        key: value["value"] if isinstance(value, dict) and "value" in value else value
        for key, value in values.items()
    }
    return {key: plain.get(key) for key in (*generate_tab.INPUT_NAMES, *generate_tab.PROMPT_PARTS)} | changes


def load_settings(file: Path, name: str = "nano") -> tuple[dict[str, Any], str]:
    return settings.load_settings(str(file), name, generate_tab._get_preset_values)


@pytest.mark.parametrize("name", presets.get_prompt_presets())
def test_every_recipe_is_written_and_read_back(name: str, tmp_path: Path) -> None:
    recipe = presets.get_prompt_presets()[name]
    (tmp_path / "r.toml").write_text(presets.format_prompt_preset(recipe), encoding="utf-8")
    assert (
        replace(presets.parse_prompt_preset(presets.read_preset_toml(tmp_path / "r.toml"), name), name=name)
        == recipe
    )


def test_settings_are_saved_and_loaded_back() -> None:
    changed = fill_page(
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
    update, said = settings.save_preset("my own", **changed)
    assert said.startswith("Saved: my own")
    values, said = load_settings(Path(update["value"]), "baxl-v3")
    assert said == "Loaded: my own."
    assert values["preset"] == "nano"
    for name in (
        "steps",
        "negative",
        "general",
        "hires",
        "hires_factor",
        "hires_steps",
        "detail",
        "detail_prompt",
        "expand_ban",
        "expand_without",
    ):
        assert values[name] == changed[name], name
    assert values["cfg"]["value"] == 9.5


@pytest.fixture
def own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a checkpoint of one's own, of the family of Pony."""
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    monkeypatch.setattr(paths, "MODEL_ROOTS", [])
    (tmp_path / "models/checkpoints").mkdir(parents=True)
    save_file({"x": torch.ones(1)}, tmp_path / "models/checkpoints/my-pony.safetensors")
    return "my-pony"


def test_the_model_is_kept_with_the_settings(own_checkpoint: str) -> None:
    """Else the same settings would give pictures of another model."""
    saved, _ = settings.save_preset("mine", **fill_page("pony-v6", model=own_checkpoint))
    values, said = load_settings(Path(saved["value"]))
    assert (values["preset"], values["model"]) == ("pony-v6", own_checkpoint), said


def test_a_picture_of_ones_own_checkpoint_chooses_it(own_checkpoint: str, tmp_path: Path) -> None:
    png_metadata.save_png(
        Image.new("RGB", (64, 64)),
        tmp_path / "a.png",
        "1girl\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 1024x1024, Model: my-pony",
    )
    values, said = load_settings(tmp_path / "a.png")
    assert (values["preset"], values["model"]) == ("pony-v6", own_checkpoint), said
    form = request.PictureForm(prompt="1girl", model=own_checkpoint)
    assert (form.prompt_preset.name, request.fill_form(form).request.model) == ("pony-v6", own_checkpoint)
    kept = request.PictureForm(prompt="1girl", model=own_checkpoint, preset="sdxl-base")
    assert (kept.prompt_preset.name, request.fill_form(kept).request.model) == ("sdxl-base", own_checkpoint)


def test_a_picture_of_another_vae_is_told(own_checkpoint: str, tmp_path: Path) -> None:
    """The same settings give other colours with another VAE."""
    vaes = paths.MODELS / "vae"
    vaes.mkdir()
    save_file({"x": torch.ones(1)}, vaes / "clear.safetensors")
    save_settings(own_checkpoint, ModelSettings(vae="clear.safetensors"))
    made = Request(
        model=own_checkpoint, prompt="1girl", negative="", width=64, height=64, steps=1, cfg=1.0,
        sampler="Euler", seed=1,
    )  # fmt: skip
    text = picture_file.save_picture(Image.new("RGB", (64, 64)), made, tmp_path / "a.png")
    assert "VAE: clear.safetensors" in text
    assert "VAE" not in load_settings(tmp_path / "a.png")[1]
    save_settings(own_checkpoint, ModelSettings())
    said = load_settings(tmp_path / "a.png")[1]
    assert "Made with the VAE clear.safetensors; its own is set for my-pony." in said


def test_a_prompt_changed_by_hand_is_saved_as_it_stands() -> None:
    update, _ = settings.save_preset(
        "", **fill_page(prompt="{odd} (1girl:1.2)", grain=True, grain_amount=0.2)
    )
    values, _ = load_settings(Path(update["value"]))
    assert values["prompt"] == "{odd} (1girl:1.2)"
    assert (values["grain"], values["grain_amount"]) == (True, 0.2)


def test_what_is_not_allowed_is_not_saved() -> None:
    _, said = settings.save_preset("", **fill_page(width=1001))
    assert "width: 1001 is not valid" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title = ", "is not TOML"),
        ("title = 'x'", "is missing"),
        ("\x00", "is not TOML"),
        ("a = 1\n" * 50_000, "it is too long; the limit is 100,000 bytes"),
        ("a = " + "[" * 20_000, "is nested too deeply"),
        ("a = " + "9" * 5_000, "is not TOML"),
    ],
)
def test_a_bad_preset_changes_nothing(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    values, said = load_settings(tmp_path / "bad.toml")
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
        schedule="Beta",
        cfg_rescale=0.3,
        seed=2**64 - 1,
        hires=Hires(upscaler="nano DAT x2", factor=1.5, steps=7, prompt="1boy", sampler="DPM++ 2M", cfg=3.5),
        hires_loras=(),
        detail=Detail(detector="nano face", prompt="face, smile", padding=8),
        grain=Grain(amount=0.1),
    )
    picture_file.save_picture(Image.new("RGB", (8, 8)), request, tmp_path / "ours.png")
    values, said = load_settings(tmp_path / "ours.png", "baxl-v3")
    assert said == "Settings loaded."
    assert values["preset"] == "nano"
    for name in ("prompt", "negative", "steps", "sampler", "schedule", "cfg_rescale", "seed"):
        assert values[name] == getattr(request, name)
    assert (values["cfg"]["value"], values["cfg"]["maximum"]) == (12, 12), (
        "the slider reaches as far as the picture went"
    )
    assert (values["hires"], values["hires_factor"], values["hires_steps"]) == (True, 1.5, 7)
    assert (values["detail"], values["detail_prompt"], values["detail_steps"]) == (True, "face, smile", 0)
    assert (values["grain"], values["grain_amount"], values["expand"]) == (True, 0.1, False)
    assert (values["hires_prompt"], values["hires_sampler"], values["hires_schedule"]) == (
        "1boy", "DPM++ 2M", "",
    )  # fmt: skip
    held = {
        name: value["value"] if isinstance(value, dict) and "value" in value else value
        for name, value in values.items()
    }
    from core.generate import request as picture_request

    page_values = {**fill_page(), **{name: held[name] for name in generate_tab.INPUT_NAMES if name in held}}
    form = read_form(picture_request.PictureForm, stages.build_form_values(page_values))
    (cell,) = picture_request.build_cells(form)
    assert cell.request == request, "what was read makes the same request"


@pytest.mark.parametrize(("hashes", "which"), [({}, "unknown"), ({"Model hash": "0123456789"}, "other")])
def test_a_picture_of_other_weights_is_told(hashes: dict[str, str], which: str, tmp_path: Path) -> None:
    """Nano is trained anew now and then: its old pictures cannot be made again as they were."""
    request = Request(
        model="nano",
        prompt="1girl",
        negative="",
        width=128,
        height=128,
        steps=9,
        cfg=5,
        sampler="Euler a",
        seed=1,
    )
    text = create_infotext(request, extra=hashes)
    png_metadata.save_png(Image.new("RGB", (8, 8)), tmp_path / "old.png", text)
    values, said = load_settings(tmp_path / "old.png")
    assert said == (
        f"Settings loaded. Made with {which} weights of nano; the same settings may give another image."
    )
    assert values["steps"] == 9


def test_a_picture_with_embeddings_that_are_not_here_names_each_once(tmp_path: Path) -> None:
    text = (
        "1girl, embedding:gonezz\nNegative prompt: easynegativezz\n"
        'Steps: 9, Sampler: Euler a, Seed: 1, TI hashes: "gonezz: 0123456789, easynegativezz: 0123456789ab"'
    )
    png_metadata.save_png(Image.new("RGB", (8, 8)), tmp_path / "theirs.png", text)
    values, said = load_settings(tmp_path / "theirs.png")
    assert said.count("gonezz") == said.count("easynegativezz") == 1
    assert "TI hashes" not in said
    assert (values["prompt"], values["negative"]) == ("1girl, embedding:gonezz", "easynegativezz")


def test_another_tools_picture_says_what_was_left(tmp_path: Path) -> None:
    text = (
        "1girl\nNegative prompt: bad\nSteps: 20, Sampler: DPM adaptive, CFG scale: 7, Seed: 1, "
        "Size: 1001x1216, Model: someXL, Clip skip: 2, Denoising strength: 0.45, Hires upscale: 2, "
        "Hires upscaler: 4x-UltraSharp, ADetailer model: face_yolov8n.pt, Version: v1.10"
    )
    png_metadata.save_png(Image.new("RGB", (8, 8)), tmp_path / "theirs.png", text)
    values, said = load_settings(tmp_path / "theirs.png")
    assert values["preset"] == "nano"
    assert "someXL, is not here" in said
    assert "sampler: 'DPM adaptive' is unknown" in said
    assert "width: 1001 is not valid" in said
    assert "hires.upscaler: '4x-UltraSharp' is unknown" in said
    assert "detail.detector: 'face_yolov8n.pt' is unknown" in said.replace("\\", ""), "what is theirs is text"
    assert "nano DAT x2 is set" in said
    assert "nano face is set" in said
    assert said.startswith("Settings of A1111 loaded.")
    assert "Ignored: Clip skip, Version." in said
    assert (values["hires"], values["hires_upscaler"], values["hires_denoise"]) == (True, "nano DAT x2", 0.45)
    assert (values["detail"], values["detail_detector"], values["sampler"]) == (True, "nano face", "Euler a")


def test_a_picture_of_civitai_brings_its_loras_and_names_what_is_missing(tmp_path: Path) -> None:
    resources = (
        '[{"type":"checkpoint","modelName":"Some XL"},{"type":"lora","weight":0.7,"modelName":'
        '"Nano-Airbrush"},{"type":"lora","weight":0.5,"modelName":"gone style"}]'
    )
    text = f"1girl Negative prompt: bad Steps: 9, Sampler: Euler a, Seed: -1, Civitai resources: {resources}"
    png_metadata.save_png(Image.new("RGB", (8, 8)), tmp_path / "theirs.png", text)
    values, said = load_settings(tmp_path / "theirs.png")
    assert said.startswith("Settings of Civitai loaded.")
    assert (values["prompt"], values["negative"], values["steps"]) == (
        "1girl <lora:nano-airbrush:0.7>",
        "bad",
        9,
    )
    for once in ("Some XL, is not here", "The LoRA gone style (0.5) is not here", "seed: '-1' is not valid"):
        assert said.replace("\\", "").count(once) == 1, said


def test_a_lora_with_another_name_here_is_found_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    monkeypatch.setattr(paths, "MODEL_ROOTS", [])
    (tmp_path / "models/loras").mkdir(parents=True)
    example = lora_library.locate_lora("nano-airbrush")
    digest = calculate_payload_sha256(example)
    metadata = {**get_lora_file(str(example)).metadata, "sshs_model_hash": digest}
    save_file(load_file(example), tmp_path / "models/loras/mine.safetensors", metadata)
    text = (
        "1girl <lora:their name:0.7> <lora:gone:1>\nSteps: 9, Sampler: Euler a, Seed: 1, "
        f'Lora hashes: "their name: {digest[:12]}, gone: 0123456789ab"'
    )
    png_metadata.save_png(Image.new("RGB", (8, 8)), tmp_path / "theirs.png", text)
    values, said = load_settings(tmp_path / "theirs.png")
    assert values["prompt"] == "1girl <lora:mine:0.7> <lora:gone:1>"
    assert "The LoRA their name is called mine here." in said
    assert said.count("gone") == 1


def test_a_comfyui_picture_fills_the_page(tmp_path: Path) -> None:
    graph = json.loads(json.dumps(tool_pictures.COMFYUI_GRAPH).replace("a style", "nano-airbrush"))
    file = tool_pictures.save_texts(tmp_path / "a.png", {"prompt": json.dumps(graph)})
    values, said = load_settings(file)
    assert said.startswith("Settings of ComfyUI loaded. Its model, wai, is not here")
    assert values["prompt"] == "a cat 笑顔 <lora:nano-airbrush:0.5:0.8>"
    assert (values["negative"], values["steps"], values["seed"], values["hires_factor"]) == (
        "a dog",
        20,
        7,
        1.5,
    )


def test_an_upscaler_is_found_by_its_name_without_ending(tmp_path: Path) -> None:
    text = "1girl\nSteps: 9, Sampler: Euler a, Seed: 1, Hires upscale: 1.5, Hires upscaler: Nano DAT x2.pth"
    png_metadata.save_png(Image.new("RGB", (8, 8)), tmp_path / "theirs.png", text)
    values, said = load_settings(tmp_path / "theirs.png", "baxl-v3")
    assert values["hires_upscaler"] == "nano DAT x2", said


def test_a_picture_of_version_01_is_remade_as_it_was(tmp_path: Path) -> None:
    text = (
        "1girl\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 1, Size: 128x128, "
        "Model: nano, Sweetspot: 0.1.0"
    )
    png_metadata.save_png(Image.new("RGB", (8, 8)), tmp_path / "old.png", text)
    values, _ = load_settings(tmp_path / "old.png")
    assert (values["sampler"], values["schedule"]) == ("DPM++ 2M", "Sweetspot 0.1 Karras")


def test_a_picture_without_cfg_rescale_does_not_get_the_presets(tmp_path: Path) -> None:
    text = "1girl\nSteps: 20, Sampler: Euler, CFG scale: 5, Seed: 1, Size: 832x1216, Model: noobai-xl-vpred"
    png_metadata.save_png(Image.new("RGB", (8, 8)), tmp_path / "theirs.png", text)
    values, _ = load_settings(tmp_path / "theirs.png")
    assert (values["preset"], values["cfg_rescale"]) == ("noobai-xl-vpred", 0.0)


def test_a_hostile_picture_fills_nothing(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    values, said = load_settings(tmp_path / "torn.png")
    assert values == {}
    assert "cannot be read" in said
