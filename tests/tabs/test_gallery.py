"""What stands below the gallery belongs to the chosen image, and goes on to Sweep without a loss unsaid."""

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from core.prompts import png_metadata
from core.schema.events import Cell, Picture
from core.schema.types import Request
from tabs.generate import gallery, send_buttons
from tabs.generate import tab as generate_tab
from tabs.server import page_files

SETTINGS = "Steps: 5, Sampler: Euler a, CFG scale: 4, Seed: 7, Size: 64x64, Model: nano"


def save_picture(file: Path, prompt: str, settings: str = SETTINGS) -> str:
    png_metadata.save_png(Image.new("RGB", (64, 64)), file, f"{prompt}\n{settings}")
    return str(file)


def test_before_and_after_are_of_the_chosen_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a person compares two different images, and judges hires by what the seed did."""
    monkeypatch.setattr(page_files, "FILES_FOLDER", tmp_path / "files")
    request = Request(
        prompt="", negative="", width=32, height=32, steps=1, cfg=1.0, sampler="Euler", model="nano", seed=1
    )
    made = [save_picture(tmp_path / f"{name}.png", name) for name in ("small", "plain", "large")]
    for file, colour in ((made[0], "red"), (made[2], "blue")):
        before = Image.new("RGB", (32, 32), colour)
        event = Picture(index=0, cell=Cell(label="", request=request), image=Image.open(file), before=before)
        gallery.keep_before(event, Path(file))

    def show(chosen: int | None) -> tuple[Any, Any]:
        shown = gallery._show_picture(made, chosen)
        assert shown["compare"]["visible"] == (shown["compare"]["value"] is not None)
        return shown["picture"], shown["compare"]["value"]

    assert show(1) == (made[1], None)
    for chosen, place, colour in ((0, 0, (255, 0, 0)), (2, 2, (0, 0, 255)), (None, 2, (0, 0, 255))):
        picture, (before, after) = show(chosen)
        assert (picture, after) == (made[place], made[place])
        with Image.open(before) as image:
            assert (image.size, image.getpixel((0, 0))) == ((64, 64), colour)


def read_for_sweep(file: str, uploaded: str | None = None) -> dict[str, Any]:
    c = {"at_use": gr.Button(render=False), "at_sweep": None, "preset": gr.State("nano"), "lora_file": None}
    with gr.Blocks():
        sent = send_buttons.wire_send_buttons(
            c, "at", gr.State(""), {"fn": None, "outputs": []}, generate_tab._load_settings
        )
    return sent.read(file, uploaded, "nano")


def test_an_image_goes_to_sweep_with_its_lora_prompt_and_seed(tmp_path: Path) -> None:
    """A person sweeps around the image, and hears what Sweep does not take from it."""
    prompt = "1girl, smile,\nhat <lora:nano-airbrush:1.5> <lora:another:1>"
    values = read_for_sweep(save_picture(tmp_path / "a.png", prompt), "/other.safetensors")
    assert (values["shelf"], values["lora_file"]) == ("nano-airbrush", None)
    assert (values["prompts"], values["seeds"], values["preset"]) == ("1girl, smile, hat", "7-10", "nano")
    for said in ("one LoRA only; left out: another", "from the preset"):
        assert said in values["status"]


def test_an_image_made_with_an_upload_brings_the_upload(tmp_path: Path) -> None:
    file, upload = save_picture(tmp_path / "a.png", "1girl <lora:my_style:1>"), "/up/my style.safetensors"
    assert read_for_sweep(file, upload)["lora_file"] == upload
    values = read_for_sweep(file)
    assert "lora_file" not in values, "what is chosen in Sweep stays"
    assert "my\\_style is not in the library: upload it" in values["status"]


def test_a_seed_at_the_end_of_its_range_stays_within_it(tmp_path: Path) -> None:
    file = save_picture(tmp_path / "a.png", "1girl", SETTINGS.replace("Seed: 7", f"Seed: {2**64 - 2}"))
    values = read_for_sweep(file)
    assert values["seeds"] == f"{2**64 - 4}-{2**64 - 1}"
    assert "names no LoRA: choose one" in values["status"]


def test_nothing_is_sent_before_an_image_is_chosen() -> None:
    with pytest.raises(gr.Error, match="choose one"):
        read_for_sweep("")
