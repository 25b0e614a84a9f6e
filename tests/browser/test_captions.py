"""The Train tab's captions as a person keeps them, in Chromium.

None is replaced without a question, and what a tool replaced can be brought back.
"""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from core.nano.lessons import make_airbrush_set
from tests.browser.parts import open_part


@pytest.fixture
def page(page):
    open_part(page, "tab", "Train")
    page.locator("#captions button").first.click()
    return page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with three pictures, one with a caption, and a file that is no zip."""
    for i, (picture, _) in enumerate(make_airbrush_set(3)):
        picture.save(tmp_path / f"{i}.png")
    (tmp_path / "0.txt").write_text("a girl of mine")
    (tmp_path / "torn.zip").write_bytes(b"PK\3\4 torn")
    return tmp_path


def expect_captions(page, *parts: str) -> None:
    """Wait until row `i` of the table holds `parts[i]`."""
    for row, part in enumerate(parts):
        expect(page.locator("#table").get_by_role("gridcell").nth(3 * row + 2)).to_contain_text(
            part, timeout=30_000
        )


def test_a_caption_of_ones_own_is_replaced_only_after_a_question_and_comes_back(
    page, folder: Path, screenshots: Path
) -> None:
    page.locator("#train-files input[type=file]").set_input_files(
        [folder / name for name in ("0.png", "0.txt", "1.png")]
    )
    page.locator("#train-data").get_by_text("2 images, 1 with a caption").wait_for()
    page.locator("#tag").click()
    page.locator("#changed-captions").get_by_text("Captions changed: 1. Unchanged: 1.").wait_for()
    expect_captions(page, "a girl of mine", "1girl")
    page.locator("#tag-all").click()
    page.locator("#tag-question").get_by_text("Replace the captions of 2 of 2 images?").wait_for()
    page.screenshot(path=screenshots / "captions-question-1280.png", full_page=True)
    page.locator("#tag-no").click()
    page.locator("#tag-question").wait_for(state="hidden")
    expect_captions(page, "a girl of mine")
    page.locator("#tag-all").click()
    page.locator("#tag-yes").click()
    expect_captions(page, "1girl", "1girl")
    page.locator("#tag-question").wait_for(state="hidden")
    page.locator("#undo").click()
    expect_captions(page, "a girl of mine", "1girl")
    page.locator("#undo").wait_for(state="hidden")


def test_what_was_written_stays_when_more_is_brought(page, folder: Path) -> None:
    bring = page.locator("#train-files input[type=file]")
    bring.set_input_files([folder / "0.png", folder / "1.png"])
    page.locator("#train-data").get_by_text("2 images, 0 with a caption").wait_for()
    page.locator("#tag").click()
    page.locator("#train-data").get_by_text("2 images, 2 with a caption").wait_for()
    bring.set_input_files(folder / "2.png")
    page.locator("#train-data").get_by_text("3 images, 2 with a caption").wait_for()
    page.locator("#train-data").get_by_text("Existing captions kept: 2.").wait_for()
    open_part(page, "button", "Regularisation images (optional)")
    page.locator("#train-others input[type=file]").set_input_files(folder / "torn.zip")
    page.locator("#train-data").get_by_text("The previous dataset was kept: 3 images").wait_for()
    expect_captions(page, "1girl", "1girl")
