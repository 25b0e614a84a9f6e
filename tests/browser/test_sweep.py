"""The Sweep tab as a person uses it, in Chromium.

A LoRA is dropped, a grid fills, and a sentence says at which strengths it works.
"""

import json
import re
from pathlib import Path

import pytest

from core.lora import edit
from core.lora import file as lora_file
from tests.browser.parts import open_part

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"
PROMPTS = """1girl, blue hair, short hair, red eyes, smile, upper body, white background
1girl, pink hair, twintails, blue eyes, open mouth, upper body, blue sky
1girl, green hair, long hair, green eyes, smile, portrait, sunset
1girl, black hair, ponytail, purple eyes, upper body, classroom"""


@pytest.fixture
def page(page):
    open_part(page, "tab", "Sweep")
    page.get_by_role("button", name="Sweep", exact=True).wait_for()
    return page


def start_sweep(page, strengths: str, seeds: str) -> None:
    """Drop the example LoRA, wait for what its file says, fill in the rest and press Sweep."""
    page.locator("#sweep-lora input[type=file]").set_input_files(EXAMPLE)
    page.locator("#explained").get_by_text("U-Net only, alpha/rank 1").wait_for()
    # The strengths and prompts that the page suggests come with this line, not with the one above.
    page.locator("#sweep-lora-line").get_by_text("rank 4 · for nano").wait_for()
    page.locator("#prompts textarea").fill(PROMPTS)
    page.locator("#strengths input, #strengths textarea").fill(strengths)
    page.locator("#seeds input, #seeds textarea").fill(seeds)
    page.get_by_role("button", name="Sweep", exact=True).click()


def test_a_lora_is_dropped_and_its_sweet_spot_becomes_one(page, screenshots: Path, tmp_path: Path) -> None:
    start_sweep(page, "0-3 (+0.5)", "1, 2")
    page.locator("#sweep-status").get_by_text(re.compile(r"\d+ of \d+ images")).wait_for(timeout=60_000)
    page.locator("#sheet img").wait_for()
    page.locator("#curves img").wait_for()
    page.locator("#sweep-status").get_by_text(re.compile(r"\d+ images in [\d.]+ s")).wait_for(timeout=120_000)
    answer = page.locator("#answer").inner_text()
    told = re.search(r"Changes [\d.]+( to [\d.]+)? · middle ([\d.]+) · breaks at [\d.]+", answer)
    assert told, answer
    assert "that other prompts and seeds agree" in answer
    page.locator("#cells img").last.wait_for()
    page.screenshot(path=screenshots / "sweep-1280.png", full_page=True)

    page.get_by_role("button", name="Rescale: make 1.0 the middle").click()
    page.locator("#normalised").get_by_text("Saved. 1.0 in this copy equals").wait_for()
    with page.expect_download() as download:
        page.locator("#edited a").first.click()
    download.value.save_as(tmp_path / "edited.safetensors")
    edited = lora_file.read_lora_file(tmp_path / "edited.safetensors")
    assert edited.scale == pytest.approx(float(told[2]), rel=1e-6)

    page.locator("#cells button.thumbnail-item, #cells .thumbnail-lg").nth(8).click()
    page.get_by_role("button", name="Send to Generate").click()
    page.get_by_role("button", name="Generate", exact=True).wait_for()
    assert page.locator("#prompt textarea").input_value() in PROMPTS.splitlines()
    assert page.locator("#seed input").input_value() in ("1", "2")


def test_a_study_stays_when_another_is_refused_and_so_do_prompts(page, screenshots: Path) -> None:
    start_sweep(page, "0, 2", "1, 2")
    page.locator("#sweep-status").get_by_text(re.compile(r"16 images in [\d.]+ s")).wait_for(timeout=120_000)
    answer = page.locator("#answer").inner_text()
    page.locator("#sweep-preset input").click()
    page.get_by_role("option", name="SDXL base").click()
    page.locator("#prompts").get_by_text("your prompts were kept").wait_for()
    assert page.locator("#prompts textarea").input_value() == PROMPTS
    page.locator("#sweep-preset input").click()
    page.get_by_role("option", name="nano (built-in, 128 px)").click()
    open_part(page, "button", "How it is measured")
    page.get_by_label("Feature extractor").first.click()
    page.get_by_role("option", name="DINOv2 small").click()
    page.get_by_role("button", name="Sweep", exact=True).click()
    # the job was refused after it had begun
    page.get_by_text(re.compile("cannot be downloaded")).first.wait_for()
    for part in ("#curves img", "#sheet img", "#cells img", "#files a"):
        assert page.locator(part).first.is_visible(), f"{part} is gone"
    page.screenshot(path=screenshots / "sweep-refused-1280.png")
    assert answer in page.locator("#answer").inner_text()


@pytest.mark.soak
def test_stop_keeps_what_is_finished_and_sweep_goes_on(page) -> None:
    start_sweep(page, "0-3 (+1)", "31-34")
    page.locator("#sweep-status").get_by_text(re.compile(r"Image 17 of 64, step \d+ of 25")).wait_for(
        timeout=60_000
    )
    page.get_by_role("button", name="Stop").last.click()
    status = page.locator("#sweep-status")
    status.get_by_text("Stopped. Finished images are kept").wait_for()
    # at once: the page may not know yet that the job is gone
    page.get_by_role("button", name="Sweep", exact=True).click()
    said = page.locator("#sweep-status").get_by_text(re.compile(r"\d+ images in [\d.]+ s \(\d+ reused\)"))
    said.wait_for(timeout=120_000)
    assert int(re.search(r"(\d+) reused", said.inner_text())[1]) >= 8  # type: ignore[index]


def test_a_lora_that_shows_nothing_is_told_so_before_an_image(page, tmp_path: Path) -> None:
    assert page.locator("#strengths textarea, #strengths input").get_attribute("placeholder") == "automatic"
    weak = edit.rewrite_lora(lora_file.read_lora_file(EXAMPLE), tmp_path, multiply=0.01)
    page.locator("#sweep-lora input[type=file]").set_input_files(weak)
    page.locator("#sweep-lora-line").get_by_text("rank 4 · for nano").wait_for()
    page.locator("#prompts textarea").fill("1girl, blue hair")
    page.get_by_role("button", name="Sweep", exact=True).click()
    page.locator("#sweep-status").get_by_text("Finding the strengths").wait_for(timeout=60_000)
    page.locator("#answer").get_by_text("No change: even at 5").wait_for(timeout=120_000)
    page.locator("#files a").first.wait_for()
    assert not page.locator("#sheet img").count()


def test_it_is_readable_on_a_telephone(page, screenshots: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=screenshots / "sweep-390.png", full_page=True)


def test_a_list_that_is_none_is_said_beside_its_field(page) -> None:
    start_sweep(page, "0 to 3", "1, 2")
    page.get_by_text("strengths: '0 to 3' is neither a number nor a range").first.wait_for()


def test_the_example_on_the_shelf_is_what_it_says() -> None:
    """The example has kohya's layout, at most a megabyte and an alpha that is its rank.

    tests/lora/example.py makes it.
    """
    found = lora_file.read_lora_file(EXAMPLE)
    assert (found.format, found.family, found.scale, found.components) == ("kohya", "nano", 1.0, ("unet",))
    assert EXAMPLE.stat().st_size <= 2**20
    assert "airbrush" not in json.dumps(found.tags), "the style is not in the captions"
