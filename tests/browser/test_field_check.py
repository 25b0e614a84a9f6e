"""The check by a person's eyes in Chromium: alone, as a command serves it, and below a finished sweep."""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import app
from tests.browser.parts import open_part
from tests.sweep.finished_sweep import make_report, write_sweep

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_sweep(tmp_path, make_report())


@pytest.fixture
def check_page(archive: Path, chromium: Any) -> Iterator[Any]:
    served = app.build_check_page(archive)
    _, url, _ = served.launch(
        prevent_thread_lock=True,
        quiet=True,
        server_name="127.0.0.1",
        app_kwargs=app.make_app_kwargs(served),
        **app.LAUNCH_OPTIONS,
    )
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    page.goto(url)
    yield page
    page.close()
    served.close()


def wait_for_screen(page: Any, number: int, total: int) -> None:
    page.locator("#field-task").get_by_text(f"{number} of {total}").wait_for()
    page.locator("#field-pictures img").first.wait_for()


def test_a_report_is_checked_on_a_telephone(check_page: Any, archive: Path, screenshots: Path) -> None:
    page = check_page
    page.get_by_role("button", name="Check with your own eyes").click()
    wait_for_screen(page, 1, 16)
    page.get_by_role("button", name="Next").click()
    page.get_by_text("Choose A, B or no difference.").wait_for()
    for number in range(1, 9):
        wait_for_screen(page, number, 16)
        page.get_by_label("A", exact=True).check()
        page.get_by_role("button", name="Next").click()
    for number in range(9, 17):
        wait_for_screen(page, number, 16)
        if number == 9:
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            boxes = [each.bounding_box() for each in page.locator("#field-pictures .thumbnail-item").all()]
            assert [box["x"] + box["width"] <= 390 for box in boxes] == [True] * 6, "an image is cut off"
            page.screenshot(path=screenshots / "field-check-390.png", full_page=True)
            assert not re.search(r"prompt\d+-seed|cells/", page.content()), "the page tells a strength"
        page.locator("#field-used").get_by_label("A", exact=True).check()
        page.locator("#field-broken").get_by_label("none", exact=True).check()
        page.get_by_role("button", name="Next").click()
    page.locator("#field-summary").get_by_text("Blind check by one person over 8 rows").wait_for()
    page.locator("#field-file a").first.wait_for()
    with zipfile.ZipFile(archive) as found:
        check = json.loads(found.read("report.json"))["field_check"]
    assert (len(check["answers"]["pairs"]), len(check["answers"]["rows"])) == (8, 8)
    assert check["breakdown"] is None


def test_a_finished_sweep_can_be_checked_and_left(page: Any, screenshots: Path) -> None:
    open_part(page, "tab", "Sweep")
    assert not page.locator("#field-start").is_visible(), "nothing is finished yet"
    page.locator("#sweep-lora input[type=file]").set_input_files(EXAMPLE)
    page.locator("#sweep-lora-line").get_by_text("rank 4 · for nano").wait_for()
    page.locator("#prompts textarea").fill("1girl, blue hair, smile\n1girl, red hair, beach")
    page.locator("#strengths input, #strengths textarea").fill("0, 2, 4")
    page.locator("#seeds input, #seeds textarea").fill("1-3")
    page.get_by_role("button", name="Sweep", exact=True).click()
    page.locator("#field-start").wait_for(timeout=240_000)
    page.locator("#field-start").click()
    page.locator("#field-task").get_by_text(re.compile(r"1 of (6|12)")).wait_for()
    page.locator("#field-pictures img").first.wait_for()
    page.screenshot(path=screenshots / "field-check-1280.png", full_page=True)
    page.get_by_role("button", name="Leave the check").click()
    page.locator("#field-next").wait_for(state="hidden")
