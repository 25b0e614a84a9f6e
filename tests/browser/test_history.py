"""Pictures of before, and settings from anywhere, as a person uses them in Chromium."""

import re
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from core.generate import outputs
from core.prompts import png_metadata
from tests.browser.parts import open_part

DROP_JS = """(target, [bytes, name]) => {
    const files = new DataTransfer()
    files.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}))
    for (const kind of ["dragover", "drop"])
        target.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: files}))
}"""
PASTE_JS = """(target, text) => {
    const clipboardData = new DataTransfer()
    clipboardData.setData("text/plain", text)
    target.dispatchEvent(new ClipboardEvent("paste", {bubbles: true, cancelable: true, clipboardData}))
}"""
INFOTEXT = "a cat\nSteps: 9, Sampler: Euler a, CFG scale: 4, Seed: {seed}, Size: 128x128"


def list_kept() -> list[Path]:
    kept = outputs.find_outputs()
    assert kept
    return outputs.list_pictures(kept.folder)


def test_pictures_are_chosen_kept_and_deleted(page, screenshots: Path) -> None:
    before = list_kept()
    page.get_by_label("Steps").first.fill("2")
    page.get_by_label("Batch count").first.fill("2")
    page.locator("#seed input").fill("41")
    page.locator("#prompt textarea").fill("1girl, smile")
    page.locator("#prompt textarea").press("Control+Enter")
    page.locator("#status").get_by_text(re.compile(r"2 images in .* Kept in ")).wait_for(timeout=60_000)
    made = [file for file in list_kept() if file not in before]
    assert [png_metadata.read_infotext(file).fields["seed"] for file in made] == [42, 41]
    settings = page.locator("#settings textarea")
    expect(settings).to_have_value(re.compile("Seed: 42"))
    page.locator("#gallery").get_by_label("Thumbnail 1 of 2").click()
    expect(settings).to_have_value(re.compile("Seed: 41"))

    open_part(page, "button", "History")
    page.locator("#history-grid").get_by_label(re.compile("Thumbnail 2 of")).click()
    expect(page.locator("#history-settings textarea")).to_have_value(re.compile("Seed: 41"))
    page.screenshot(path=screenshots / "history-1280.png", full_page=True)
    page.locator("#prompt textarea").fill("something else")
    page.locator("#history-use").click()
    expect(page.locator("#prompt textarea")).to_have_value("1girl, smile")
    page.locator("#history-sweep").click()
    expect(page.locator("#seeds input, #seeds textarea")).to_have_value("41-44")
    expect(page.locator("#prompts textarea")).to_have_value("1girl, smile")
    page.locator("#sweep-status").get_by_text("names no LoRA").wait_for()
    open_part(page, "tab", "Generate")
    page.locator("#history-delete").click()
    page.locator("#history-confirm").click()
    expect(page.locator("#history-settings")).not_to_be_visible()
    assert list_kept() == [made[0], *before]


def test_settings_come_from_anywhere_on_the_tab(page, tmp_path: Path) -> None:
    """And a prompt that is pasted stays one."""
    prompt, seed = page.locator("#prompt textarea"), page.locator("#seed input")
    png_metadata.save_png(Image.new("RGB", (64, 64)), tmp_path / "a.png", INFOTEXT.format(seed=1))
    page.locator("#dropped input").wait_for(state="attached")
    page.locator("#gallery").evaluate(DROP_JS, [list((tmp_path / "a.png").read_bytes()), "a.png"])
    expect(seed).to_have_value("1")
    for number, place in enumerate(("#status", "#prompt textarea"), 2):
        page.locator(place).evaluate(PASTE_JS, INFOTEXT.format(seed=number))
        expect(seed).to_have_value(str(number))
    expect(prompt).to_have_value("a cat")
    prompt.fill("my own")
    for text in ("1girl, size difference, seed", "1girl, size: large"):
        prompt.evaluate(PASTE_JS, text)
    page.locator("#said").get_by_text("the last line has none").wait_for()
    expect(prompt).to_have_value("my own")
    expect(seed).to_have_value("3")
