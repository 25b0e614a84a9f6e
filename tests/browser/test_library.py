"""A file that is put into a person's folder is in the lists of the page, without a restart."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from core.models.measured_strengths import MeasuredStrength, record_strength
from core.system import paths
from tests.browser.parts import open_part
from tests.models.library import write_lora

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"


def test_a_new_lora_can_be_chosen_at_once(page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    open_part(page, "tab", "Sweep")
    folder = tmp_path / "models/loras/characters"
    folder.mkdir(parents=True)
    shutil.copy(EXAMPLE, folder / "brought.safetensors")
    page.locator("#sweep-shelf input").click()
    page.get_by_role("option", name="brought").click()
    page.locator("#explained").get_by_text("alpha/rank").first.wait_for()


def test_choosing_a_lora_fills_in_its_strength_and_shows_what_is_known(
    page, shelf: Path, screenshots: Path
) -> None:
    shutil.copy(EXAMPLE, shelf / "brought.safetensors")
    (shelf / "brought.json").write_text('{"preferred weight": 1.7, "activation text": "<b>soft</b> light"}')
    Image.new("RGB", (512, 768), "teal").save(shelf / "brought.preview.png")
    write_lora(shelf / "horse.safetensors", {"ss_sd_model_name": "ponyDiffusionV6XL.safetensors"})
    prompt, facts = page.locator("#prompt textarea"), page.locator("#lora-facts")
    prompt.fill("1girl")
    open_part(page, "button", "LoRA")
    page.locator("#shelf input").click()
    page.get_by_role("option", name="brought").click()
    facts.get_by_text("trigger: <b>soft</b> light · strength 1.7, from its sidecar").wait_for()
    expect(prompt).to_have_value("1girl, <b>soft</b> light <lora:brought:1.7>")
    assert facts.locator("img").evaluate("image => image.naturalHeight") == 160
    page.screenshot(path=screenshots / "library-1280.png", full_page=True)
    page.locator("#shelf input").click()
    page.get_by_role("option", name="horse").click()
    facts.get_by_text("⚠️ horse is made for Pony, but nano").wait_for()
    open_part(page, "tab", "Sweep")
    page.locator("#sweep-shelf input").click()
    page.get_by_role("option", name="brought").click()
    expect(page.locator("#strengths").get_by_role("textbox")).to_have_value("0-4 (+0.5)")


def test_the_library_can_be_sorted_by_how_strongly_a_lora_acts(page, shelf: Path) -> None:
    for number, (name, action) in enumerate((("mild", 0.5), ("wild", 2.0))):
        file = write_lora(shelf / f"{name}.safetensors", value=number)
        record_strength(
            file, MeasuredStrength(model="nano", recommended=1, interval=(0.5, 1.5), action=action)
        )
    open_part(page, "button", "LoRA")
    page.locator("#shelf-order").get_by_label("how strongly it acts").check()
    page.locator("#shelf input").click()
    expect(page.get_by_role("option")).to_have_text(
        [re.compile("wild · action 2.00"), re.compile("mild · action 0.50"), re.compile("nano-airbrush")]
    )


def test_a_new_upscaler_can_be_chosen_at_once(page, shelf: Path) -> None:
    folder = shelf.parent / "upscalers"
    folder.mkdir()
    (folder / "4x-sharp.safetensors").write_bytes(b"")
    open_part(page, "button", "Hires. fix")
    page.get_by_label("Upscaler").click()
    page.get_by_role("option", name="4x-sharp").wait_for()


def test_a_new_checkpoint_can_be_chosen_at_once(
    page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    folder = tmp_path / "models/checkpoints"
    folder.mkdir(parents=True)
    (folder / "my-merge.safetensors").write_bytes(b"")
    open_part(page, "tab", "Train")
    page.locator("#train-model input").click()
    page.get_by_role("option", name="my-merge").wait_for()
    page.keyboard.press("Escape")
    open_part(page, "tab", "Transfer")
    page.get_by_label("my-merge").first.wait_for()
