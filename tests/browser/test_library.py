"""A file that is put into a person's folder is in the lists of the page, without a restart."""

import shutil
from pathlib import Path

import pytest

from core.system import paths
from tests.browser.parts import open_part

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
