"""Take the pictures of the tabs in README and docs: `python tests/bench/screenshots.py`.

It goes through the studio with one LoRA, in Chromium, beside the tests' Hub.
"""

import os
import re
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.bench.lessons import (  # noqa: E402
    open_studio,
    prepare_training,
    press_sweep,
    press_train,
    send_to_sweep,
)
from tests.hub.server import serve_hub  # noqa: E402


def save_screenshot(page: Page, name: str) -> None:
    """Save the whole page as it is, in 256 colours."""
    page.wait_for_timeout(1000)  # pictures fade in
    picture = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(ROOT / "docs" / f"{name}.png", optimize=True)


def main() -> None:
    """Generate, train, sweep, transfer and preview, and take a picture of each tab once it is done."""
    with serve_hub({"hf_ann": "ann"}) as server:
        os.environ |= {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        walk_through()


def walk_through() -> None:
    """Use the tabs in the order in which a LoRA is made, and save a picture of each."""
    with open_studio() as (page, work):
        page.locator("#seed input").fill("42")
        page.get_by_label("number input for Batch count").fill("4")
        page.get_by_role("button", name="Generate", exact=True).click()
        page.locator("#status").get_by_text("4 images in").wait_for()
        save_screenshot(page, "generate")
        prepare_training(page, work)
        page.locator("#expected").get_by_text("About").wait_for()
        press_train(page)
        save_screenshot(page, "train")
        send_to_sweep(page)
        press_sweep(page)
        page.locator("#cells").scroll_into_view_if_needed()  # what is out of sight is not loaded
        page.locator("#cells img").first.wait_for()
        save_screenshot(page, "sweep")
        page.locator("#sweep-publish").click()
        page.locator("#publish-reports").get_by_text("report").first.wait_for()
        page.locator("#repo input, #repo textarea").first.fill("ann/soft-light")
        page.locator("#publish-title input, #publish-title textarea").first.fill("Soft light")
        page.locator("#publish-preview").click()
        page.locator("#publish-status").get_by_text(re.compile(r"ann/soft-light: \d+ files")).wait_for()
        page.locator("#card-curves img").wait_for()
        save_screenshot(page, "publish")
        page.get_by_role("tab", name="Transfer").click()
        page.locator("#transfer-runs input").click()
        page.get_by_role("option").first.click()
        page.get_by_role("button", name="Transfer", exact=True).click()
        page.locator("#transfer-status").get_by_text(re.compile(r"images in [\d.]+ s")).wait_for()
        page.locator("#matrix").get_by_role("gridcell").nth(2).click()
        page.locator("#pair").scroll_into_view_if_needed()
        page.locator("#pair img").first.wait_for()
        save_screenshot(page, "transfer")


if __name__ == "__main__":
    main()
