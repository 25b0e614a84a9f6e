"""The Train tab as a person uses it, in Chromium: 15 pictures, captions, a recipe, a run that outlives its page, and where its LoRA works."""

import re
from pathlib import Path

import pytest
from gradio_client import Client

from core import gpu, lorafile
from core.device import on_zero_gpu
from core.nano.lessons import airbrushed


@pytest.fixture
def page(studio: str, chromium):
    context = chromium.new_context(viewport={"width": 1280, "height": 960}, accept_downloads=True)
    page = context.new_page()
    page.goto(studio)
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="Train", exact=True).wait_for()
    yield page
    context.close()


@pytest.fixture(scope="module")
def soft(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """15 pictures of soft airbrush gradients."""
    folder = tmp_path_factory.mktemp("soft")
    for i, (picture, _) in enumerate(airbrushed()):
        picture.save(folder / f"soft{i:02d}.png")
    return sorted(folder.glob("*.png"))


def brought(page, files: list[Path]) -> None:
    page.locator("#train-files input[type=file]").set_input_files(files)
    page.locator("#train-data").get_by_text(f"{len(files)} pictures").wait_for()


@pytest.mark.skipif(on_zero_gpu(), reason="a lent GPU trains as long as the page is there, and its time is not known before")
def test_case_22_fifteen_pictures_become_a_lora_while_the_page_is_away(page, soft: list[Path], screenshots: Path, tmp_path: Path) -> None:
    brought(page, soft)
    page.locator("#crops img").first.wait_for()
    page.locator("#captions button").first.click()
    page.locator("#drop textarea").fill("airbrush\nflat color\nsketch\npixel art")
    page.get_by_role("button", name="Caption by tagger").click()
    page.locator("#advice").get_by_text("1girl (15)").wait_for()
    page.locator("#recipe input").click()
    page.get_by_role("option", name=re.compile("DORO: soft")).click()
    page.locator("#recipe-help").get_by_text("expect it to work at 2 to 3").wait_for()
    page.locator("#expected").get_by_text(re.compile(r"about \d+ min \d+ s, .* of memory, .* on disk")).wait_for()
    page.screenshot(path=screenshots / "train-before-1280.png", full_page=True)
    page.locator("#train-steps input").fill("60")  # enough for a page; what 300 make is for a sweep
    page.get_by_role("button", name="Train", exact=True).click()
    status = page.locator("#train-status")
    status.get_by_text(re.compile(r"Step \d+ of 60 · loss [\d.]+")).wait_for(timeout=60_000)
    page.reload()
    page.get_by_role("tab", name="Train").click()
    status.get_by_text(re.compile(r"Step \d+ of 60")).wait_for(timeout=20_000)  # the page attached itself again
    status.get_by_text("Done. Step 60 of 60").wait_for(timeout=240_000)
    page.locator("#film img").wait_for()
    page.locator("#losses img").wait_for()
    page.screenshot(path=screenshots / "train-1280.png", full_page=True)
    with page.expect_download() as download:
        page.locator("#trained a").last.click()
    lora = tmp_path / "doro.safetensors"
    download.value.save_as(lora)
    page.get_by_role("button", name="Open in Sweep").click()
    page.locator("#sweep-lora").get_by_text("doro-soft-gradients").wait_for()
    found = lorafile.read(lora)
    assert (found.rank, found.scale, found.components) == (4, 0.5, ("unet",))


@pytest.mark.skipif(on_zero_gpu(), reason="a lent GPU trains in its turn, between pictures")
def test_a_run_is_shown_and_stopped_while_pictures_are_made(page, client: Client, soft: list[Path]) -> None:
    brought(page, soft[:3])
    page.locator("#trigger textarea, #trigger input").fill("soft")
    page.locator("#train-steps input").fill("5000")
    work = [client.submit(prompt="1girl", steps=150, count=16, api_name="/generate") for _ in range(2)]
    page.get_by_role("button", name="Train", exact=True).click()
    status, shown = page.locator("#train-status"), re.compile(r"Waiting for its turn|Preparing pictures|Step \d+ of 5000 · loss")
    status.get_by_text(shown).wait_for()
    page.locator("#train-stop").click()
    status.get_by_text("Stopped. Step").wait_for(timeout=90_000)
    page.locator("#resume").click()
    status.get_by_text(shown).wait_for()
    assert gpu.alone(lambda: "free") is None, "the pictures were ready before: nothing was shown while they were made"
    page.locator("#train-stop").click()
    for each in work:
        each.cancel()


@pytest.mark.soak
def test_stop_resume_and_a_fork(page, soft: list[Path]) -> None:
    brought(page, soft[:3])
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


def test_another_run_is_chosen(page, soft: list[Path]) -> None:
    brought(page, soft[:3])
    page.locator("#trigger textarea, #trigger input").fill("soft")
    status = page.locator("#train-status")
    for steps in ("2", "3"):
        page.locator("#train-steps input").fill(steps)
        page.get_by_role("button", name="Train", exact=True).click()
        status.get_by_text(f"Done. Step {steps} of {steps}").wait_for(timeout=90_000)
    page.locator("#runs input").click()
    page.get_by_role("option").last.click()
    status.get_by_text("Done. Step 2 of 2").wait_for()
    for tab, box in (("Transfer", "#transfer-runs input"), ("Publish", "#publish-run input")):  # what is done by now is offered there
        page.get_by_role("tab", name=tab).click()
        page.locator(box).click()
        page.get_by_role("option", name="soft on nano").nth(1).wait_for()
        page.keyboard.press("Escape")
    page.reload()
    page.get_by_role("tab", name="Train").click()
    status.get_by_text("Done. Step 3 of 3").wait_for(timeout=20_000)  # the one that was begun last


def test_bad_choices_are_said_before_anything_starts(page, soft: list[Path], tmp_path: Path) -> None:
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_text("dataset: bring pictures first").first.wait_for()
    text = tmp_path / "text.png"
    text.write_text("no picture")
    page.locator("#train-files input[type=file]").set_input_files([*soft[:2], text])
    page.locator("#train-data").get_by_text("1 files were left out").wait_for()
    page.locator("#train-data").get_by_text("text.png").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_text("trigger: it is empty and no picture has a caption").first.wait_for()
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
