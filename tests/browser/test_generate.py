"""The Generate tab as a person uses it, in Chromium."""

import re
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from core.prompts import png_metadata
from core.prompts.infotext import create_infotext, parse_infotext
from core.schema.types import Hires, Request
from tests.browser.parts import open_part

NANO_HIRES = Hires(upscaler="nano DAT x2", factor=1.5, steps=3)


def test_case_18_a_prompt_becomes_a_picture_whose_download_tells_it(
    page, screenshots: Path, tmp_path: Path
) -> None:
    prompt = page.locator("#prompt textarea")
    prompt.fill("1girl, pink hair, twintails, green eyes, smile, blue sky, upper body, school uniform")
    page.locator("#tokens").get_by_text(re.compile(r"\d+ / 75 tokens")).wait_for()
    page.locator("#seed input").fill("42")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#status").get_by_text(re.compile(r"Step \d+ of 25")).wait_for()
    page.locator("#status").get_by_text(re.compile(r"1 image in [\d.]+ s")).wait_for(timeout=60_000)
    expect(page.locator("#settings textarea")).to_have_value(re.compile("Seed: 42"))
    page.screenshot(path=screenshots / "generate-1280.png", full_page=True)
    page.locator("#gallery img").first.click()
    with page.expect_download() as download:
        page.locator("#gallery").get_by_label(re.compile("[Dd]ownload")).first.click()
    download.value.save_as(tmp_path / "picture.png")
    fields = png_metadata.read_infotext(tmp_path / "picture.png").fields
    assert fields["prompt"].startswith("1girl, pink hair")
    assert fields["seed"] == 42


def test_parts_are_inserted_and_ratios_make_the_size(page) -> None:
    open_part(page, "button", "Build it from parts")
    page.get_by_label("Character").fill("arona")
    page.locator("#insert").click()
    expect(page.locator("#prompt textarea")).to_have_value(re.compile("^1girl, arona, "))
    page.locator("#ratio").get_by_text("2:3").click()
    page.wait_for_function("document.querySelector('#height input[type=number]').value === '160'")
    assert page.locator("#width input[type=number]").input_value() == "96"


def choose_preset(page, name: str) -> None:
    page.locator("#preset input").click()
    page.get_by_role("option", name=name).click()


def test_what_was_written_is_not_overwritten_by_parts_or_a_preset(page, screenshots: Path) -> None:
    prompt, negative = page.locator("#prompt textarea"), page.locator("#negative textarea")
    start = [text.input_value() for text in (prompt, negative)]
    choose_preset(page, "Illustrious-XL v0.1")
    expect(prompt).not_to_have_value(start[0])  # the preset filled it in
    choose_preset(page, "nano (built-in, 128 px)")
    # An answer fills every text at once: a text written before it came would be lost.
    for text, value in zip((prompt, negative), start, strict=True):
        expect(text).to_have_value(value)
    expect(page.locator("#kept-texts")).to_have_text("")
    prompt.fill("a long prompt of my own")
    negative.fill("nothing bad")
    open_part(page, "button", "Build it from parts")
    page.get_by_label("Subject").press_sequentially("s")
    page.wait_for_timeout(500)  # an answer would come in this time
    assert prompt.input_value() == "a long prompt of my own"
    choose_preset(page, "Illustrious-XL v0.1")
    page.locator("#kept-texts").get_by_text(
        "Your text was kept: Prompt, Negative prompt, Subject."
    ).wait_for()
    assert (prompt.input_value(), negative.input_value()) == ("a long prompt of my own", "nothing bad")
    page.screenshot(path=screenshots / "kept-1280.png", full_page=True)
    page.locator("#insert").click()
    expect(prompt).to_have_value(re.compile("^a long prompt of my own, 1girls, .*masterpiece, best quality$"))


def test_pictures_stay_when_a_press_is_refused_or_stopped(page) -> None:
    page.get_by_label("Steps").first.fill("2")
    generate = page.get_by_role("button", name="Generate", exact=True)
    generate.click()
    status = page.locator("#status")
    status.get_by_text(re.compile(r"1 image in [\d.]+ s")).wait_for(timeout=60_000)
    picture, settings = page.locator("#gallery img").first, page.locator("#settings textarea")
    made, said = picture.get_attribute("src"), settings.input_value()
    assert made
    choose_preset(page, "SDXL base")
    generate.click()
    # the job was refused after it had begun
    status.get_by_text("cannot be downloaded").wait_for(timeout=60_000)
    expect(picture).to_have_attribute("src", made)
    assert settings.input_value() == said
    choose_preset(page, "nano (built-in, 128 px)")
    # the preset has filled in its values, steps among them
    expect(page.locator("#width input").first).to_have_value("128", timeout=60_000)
    page.get_by_label("Steps").first.fill("150")
    # Or a fast machine is done before Stop is pressed.
    page.get_by_label("Batch count").first.fill("16")
    generate.click()
    # the base is opened again
    status.get_by_text(re.compile(r"Step \d+ of 150")).wait_for(timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    status.get_by_text("Stopped").wait_for()
    expect(picture).to_have_attribute("src", made)
    assert settings.input_value() == said


def test_case_23_stop_acts_within_two_steps(page) -> None:
    page.get_by_label("Steps").first.fill("150")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#status").get_by_text(re.compile(r"Step \d+ of 150")).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator("#status").get_by_text("Stopped").wait_for()
    page.wait_for_timeout(1500)
    assert "Stopped" in page.locator("#status").inner_text(), "steps went on after Stop"


def test_readable_on_a_phone(studio: str, chromium, screenshots: Path) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(studio)
    page.get_by_role("button", name="Generate", exact=True).wait_for()
    wide = page.evaluate("document.documentElement.scrollWidth")
    page.screenshot(path=screenshots / "generate-390.png", full_page=True)
    context.close()
    assert wide <= 390, f"the page is {wide} px wide on a screen of 390"


def test_a_picture_dropped_on_the_tab_fills_it(page, tmp_path: Path) -> None:
    request = Request(
        model="nano",
        prompt="1girl, (red hair:1.2)",
        negative="sketch",
        width=200,
        height=128,
        steps=4,
        cfg=7,
        sampler="DDIM",
        seed=2**53 + 1,  # one that JavaScript's numbers do not have
        hires=NANO_HIRES,
    )
    png_metadata.save_png(Image.new("RGB", (8, 8)), tmp_path / "picture.png", create_infotext(request))
    page.get_by_text("Load or save settings").click()
    page.locator("#load input[type=file]").set_input_files(tmp_path / "picture.png")
    page.locator("#said").get_by_text("Settings loaded.").wait_for()
    assert page.locator("#prompt textarea").input_value() == "1girl, (red hair:1.2)"
    assert page.locator("#seed input").input_value() == "9007199254740993"
    assert page.locator("#hires input").is_checked()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#status").get_by_text(re.compile(r"1 image in [\d.]+ s")).wait_for(timeout=60_000)
    text = page.locator("#settings textarea").input_value()
    assert parse_infotext(text).fields == parse_infotext(create_infotext(request)).fields, (
        "it asks for what the picture said"
    )


def test_the_whole_recipe_from_one_click(page, screenshots: Path) -> None:
    page.locator("#preset input").click()
    page.get_by_role("option", name="nano, full BAXL recipe").click()
    page.wait_for_function("document.querySelector('#detail input').checked")
    page.get_by_label("Steps").first.fill("8")
    page.locator("#seed input").fill("5")
    page.evaluate(
        """() => {
            const status = document.querySelector('#status')
            window.said = []
            new MutationObserver(() => window.said.push(status.innerText)).observe("""
        """status, {childList: true, subtree: true, characterData: true})
        }"""
    )
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#status").get_by_text(re.compile(r"1 image in [\d.]+ s")).wait_for(timeout=60_000)
    said = "\n".join(page.evaluate("window.said"))
    for stage in ("Adding tags|Added:", r"Step \d+ of 8", r"Hires: step \d+ of 8", r"Details: step \d+ of 3"):
        assert re.search(stage, said), f"{stage} is not among what the page said:\n{said}"
    assert page.locator("#added [class*=token]").count() > 0, "what was added is shown"
    page.locator("#compare").wait_for()
    page.screenshot(path=screenshots / "recipe-1280.png", full_page=True)
    assert "Hires upscaler: nano DAT x2" in page.locator("#settings textarea").input_value()
    page.locator("#prompt textarea").fill("1girl, red hair")
    # they were added to another prompt
    page.locator("#added [class*=token]").first.wait_for(state="detached")
    page.locator("#added input").click()
    page.wait_for_timeout(300)
    assert page.get_by_role("option").count() == 0, "and are not offered for this one"
