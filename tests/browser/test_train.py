"""The Train tab as a person uses it, in Chromium.

15 pictures, captions, a recipe, a run that outlives its page, and where its LoRA works.
"""

import re
from pathlib import Path

import pytest
from gradio_client import Client

from core.lora import file as lora_file
from core.nano.lessons import make_airbrush_set
from core.runtime import torch_thread
from core.system.device import is_zerogpu
from tests.browser.parts import open_part


@pytest.fixture
def page(page):
    open_part(page, "tab", "Train")
    page.get_by_role("button", name="Train", exact=True).wait_for()
    return page


@pytest.fixture(scope="module")
def soft_pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Save 15 pictures of soft airbrush gradients and return their files."""
    folder = tmp_path_factory.mktemp("soft")
    for i, (picture, _) in enumerate(make_airbrush_set()):
        picture.save(folder / f"soft{i:02d}.png")
    return sorted(folder.glob("*.png"))


def drop_pictures(page, files: list[Path]) -> None:
    page.locator("#train-files input[type=file]").set_input_files(files)
    page.locator("#train-data").get_by_text(f"{len(files)} images").wait_for()


@pytest.mark.skipif(
    is_zerogpu(), reason="a lent GPU trains as long as the page is there, and its time is not known before"
)
def test_case_22_fifteen_pictures_become_a_lora_while_the_page_is_away(
    page, soft_pictures: list[Path], screenshots: Path, tmp_path: Path
) -> None:
    drop_pictures(page, soft_pictures)
    page.locator("#crops img").first.wait_for()
    page.locator("#captions button").first.click()
    page.locator("#drop textarea").fill("airbrush\nflat color\nsketch\npixel art")
    page.get_by_role("button", name="Auto-caption").click()
    page.locator("#advice").get_by_text("1girl (15)").wait_for()
    page.locator("#recipe input").click()
    page.get_by_role("option", name=re.compile("Style: soft")).click()
    page.locator("#recipe-help").get_by_text("expect it to work at 2 to 3").wait_for()
    page.locator("#expected").get_by_text(
        re.compile(r"About \d+ min \d+ s · \+.* memory · .* disk")
    ).wait_for()
    page.screenshot(path=screenshots / "train-before-1280.png", full_page=True)
    # enough for the page; what 300 steps learn is for a sweep
    page.locator("#train-steps input").fill("60")
    page.get_by_role("button", name="Train", exact=True).click()
    status = page.locator("#train-status")
    status.get_by_text(re.compile(r"Step \d+ of 60 · loss [\d.]+")).wait_for(timeout=60_000)
    page.reload()
    open_part(page, "tab", "Train")
    # the page attached itself again
    status.get_by_text(re.compile(r"Step \d+ of 60")).wait_for(timeout=20_000)
    status.get_by_text("Done. Step 60 of 60").wait_for(timeout=240_000)
    page.locator("#film img").wait_for()
    page.locator("#losses img").wait_for()
    page.screenshot(path=screenshots / "train-1280.png", full_page=True)
    with page.expect_download() as download:
        page.locator("#trained a").last.click()
    lora = tmp_path / "doro.safetensors"
    download.value.save_as(lora)
    page.get_by_role("button", name="Send to Sweep").click()
    page.locator("#sweep-lora").get_by_text("doro-soft-gradients").wait_for()
    page.locator("#sweep-lora-line").get_by_text("for nano").wait_for()
    # Its training images are the references: without them, a sweep says where images change, no more.
    open_part(page, "button", "How it is measured")
    page.locator("#references").get_by_text(".png").first.wait_for()
    assert len(page.locator("#prompts textarea").input_value().splitlines()) == 8, "enough for a verdict"
    found = lora_file.read_lora_file(lora)
    assert (found.rank, found.scale, found.components) == (4, 0.5, ("unet",))


@pytest.mark.skipif(is_zerogpu(), reason="a lent GPU trains in its turn, between pictures")
def test_a_run_is_shown_and_stopped_while_pictures_are_made(
    page, client: Client, soft_pictures: list[Path]
) -> None:
    drop_pictures(page, soft_pictures[:3])
    page.locator("#trigger textarea, #trigger input").fill("soft")
    page.locator("#train-steps input").fill("5000")
    work = [client.submit(prompt="1girl", steps=150, count=16, api_name="/generate") for _ in range(2)]
    page.get_by_role("button", name="Train", exact=True).click()
    status, shown = (
        page.locator("#train-status"),
        re.compile(r"Queued|Preparing images|Step \d+ of 5000 · loss"),
    )
    status.get_by_text(shown).wait_for()
    page.locator("#train-stop").click()
    status.get_by_text("Stopped. Step").wait_for(timeout=90_000)
    page.locator("#resume").click()
    status.get_by_text(shown).wait_for()
    assert torch_thread.run_if_idle(lambda: "free") is None, (
        "the pictures were ready before: nothing was shown while they were made"
    )
    page.locator("#train-stop").click()
    for each in work:
        each.cancel()


@pytest.mark.soak
def test_stop_resume_and_a_fork(page, soft_pictures: list[Path]) -> None:
    drop_pictures(page, soft_pictures[:3])
    page.locator("#trigger textarea, #trigger input").fill("soft")
    page.locator("#train-steps input").fill("200")
    page.get_by_role("button", name="Train", exact=True).click()
    status = page.locator("#train-status")
    status.get_by_text(re.compile(r"Step \d+ of 200")).wait_for(timeout=60_000)
    page.locator("#train-stop").click()
    status.get_by_text("Stopped. Step").wait_for(timeout=30_000)
    page.locator("#resume").click()
    status.get_by_text(re.compile(r"Step \d+ of 200 · loss")).wait_for(timeout=60_000)
    page.locator("#train-stop").click()
    status.get_by_text("Stopped. Step").wait_for(timeout=30_000)


@pytest.mark.soak
def test_another_run_is_chosen(page, soft_pictures: list[Path]) -> None:
    drop_pictures(page, soft_pictures[:3])
    page.locator("#trigger textarea, #trigger input").fill("soft")
    status = page.locator("#train-status")
    for steps in ("2", "3"):
        page.locator("#train-steps input").fill(steps)
        page.get_by_role("button", name="Train", exact=True).click()
        status.get_by_text(f"Done. Step {steps} of {steps}").wait_for(timeout=90_000)
    page.locator("#runs input").click()
    page.get_by_role("option").last.click()
    status.get_by_text("Done. Step 2 of 2").wait_for()
    # runs that are done by now are offered there
    for tab, box in (("Transfer", "#transfer-runs input"), ("Publish", "#publish-run input")):
        open_part(page, "tab", tab)
        page.locator(box).click()
        page.get_by_role("option", name="soft on nano").nth(1).wait_for()
        page.keyboard.press("Escape")
    page.reload()
    open_part(page, "tab", "Train")
    status.get_by_text("Done. Step 3 of 3").wait_for(timeout=20_000)  # the run that was begun last


def test_bad_choices_are_said_before_anything_starts(page, soft_pictures: list[Path], tmp_path: Path) -> None:
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_text("dataset: add images first").first.wait_for()
    text = tmp_path / "text.png"
    text.write_text("no picture")
    page.locator("#train-files input[type=file]").set_input_files([*soft_pictures[:2], text])
    page.locator("#train-data").get_by_text("Skipped files: 1").wait_for()
    page.locator("#train-data").get_by_text("text.png").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_text("trigger: it is empty and no image has a caption").first.wait_for()
    page.locator("#expected").get_by_text("trigger: it is empty").wait_for()
    page.locator("#trigger textarea, #trigger input").fill("soft")
    page.locator("#trigger textarea, #trigger input").blur()
    page.locator("#expected").get_by_text("trigger: it is empty").wait_for(state="detached")
    page.locator("#train-alpha input").fill("9")
    page.locator("#expected").get_by_text("alpha: 9 is more than the rank, 4").wait_for()


def test_it_is_readable_on_a_telephone(page, screenshots: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=screenshots / "train-390.png", full_page=True)
