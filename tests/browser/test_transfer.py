"""The Transfer tab as a person uses it, in Chromium.

A LoRA over two bases, a heat map, and any cell's pictures at full size.
"""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from core.lora import file as lora_file
from core.nano.lessons import make_airbrush_set
from tests.browser.parts import open_part
from tests.transfer.conftest import EXAMPLE, PROMPTS


@pytest.fixture
def page(page):
    open_part(page, "tab", "Transfer")
    page.get_by_role("button", name="Transfer", exact=True).wait_for()
    return page


def test_a_lora_is_crossed_and_any_cell_opens(page, screenshots: Path, tmp_path: Path) -> None:
    page.locator("#transfer-files input[type=file]").set_input_files(EXAMPLE)
    page.locator("#transfer-files").get_by_text("nano-airbrush").wait_for()
    for name in ("nano-cel", "nano-merge"):
        page.locator("#transfer-models label").filter(has_text=f"{name} (").locator("input").uncheck()
    page.locator("#transfer-prompts textarea").fill(PROMPTS)
    page.locator("#transfer-seeds input, #transfer-seeds textarea").fill("1, 2")
    page.get_by_role("button", name="Transfer", exact=True).click()
    page.locator("#transfer-status").get_by_text(re.compile(r"32 of 32 images in [\d.]+ s")).wait_for(
        timeout=120_000
    )
    answer = page.locator("#transfer-answer").inner_text()
    assert "nano-airbrush: " in answer
    page.locator("#heat img").wait_for()
    page.locator("#transfer-sheet img").wait_for()
    pair = page.locator("#matrix").get_by_role("gridcell").nth(2)
    expect(pair).to_have_text(re.compile(r"^\s*\?"))
    assert "Use at least 4 prompts" in answer, "two prompts bear no verdict, and it says what is missing"
    pair.click()
    page.locator("#pair").get_by_text("nano-airbrush on nano-paint").wait_for()
    page.locator("#pair img").nth(15).wait_for()
    page.screenshot(path=screenshots / "transfer-1280.png", full_page=True)
    with page.expect_download() as download:
        page.locator("#transfer-out a").nth(1).click()
    download.value.save_as(tmp_path / "study.html")
    assert "At strength 0.7" in (tmp_path / "study.html").read_text()


@pytest.mark.soak
def test_one_training_set_on_two_bases_is_trained_and_crossed(page, tmp_path: Path) -> None:
    for i, (picture, _) in enumerate(make_airbrush_set(3)):
        picture.save(tmp_path / f"{i}.png")
    open_part(page, "tab", "Train")
    page.locator("#train-files input[type=file]").set_input_files(sorted(tmp_path.glob("*.png")))
    page.locator("#train-data").get_by_text("3 images").wait_for()
    page.locator("#trigger textarea, #trigger input").fill("soft")
    page.locator("#train-steps input").fill("3")
    open_part(page, "tab", "Transfer")
    page.locator("#transfer-strengths input, #transfer-strengths textarea").fill("1")
    page.locator("#transfer-seeds input, #transfer-seeds textarea").fill("1, 2")
    page.locator("#transfer-prompts textarea").fill(PROMPTS)
    open_part(page, "button", "Train on several bases first")
    page.locator("#across").click()
    page.locator("#transfer-status").get_by_text(re.compile(r"48 of 48 images in [\d.]+ s")).wait_for(
        timeout=200_000
    )
    answer = page.locator("#transfer-answer").inner_text()
    assert "soft on nano:" in answer
    assert "soft on nano-cel:" in answer


def test_two_blocks_become_one_file(page, tmp_path: Path) -> None:
    open_part(page, "button", "Merge style + content")
    page.locator("#style-from input[type=file]").set_input_files(EXAMPLE)
    page.locator("#content-from input[type=file]").set_input_files(EXAMPLE)
    page.locator("#content-from").get_by_text("nano-airbrush").wait_for()
    page.get_by_role("button", name="Merge", exact=True).click()
    with page.expect_download() as download:
        page.locator("#combined a").first.click()
    for place in ("#style-from", "#content-from"):
        # also once the file's size and buttons stand beside it
        expect(page.locator(place).get_by_text("nano-airbrush")).to_be_visible()
    download.value.save_as(tmp_path / "both.safetensors")
    assert lora_file.read_lora_file(tmp_path / "both.safetensors").modules


def test_what_is_missing_is_said(page) -> None:
    page.get_by_role("button", name="Transfer", exact=True).click()
    page.get_by_text("loras: choose at least one LoRA.").first.wait_for()


def test_it_is_readable_on_a_telephone(page, screenshots: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=screenshots / "transfer-390.png", full_page=True)
