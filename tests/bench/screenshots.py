"""The README's pictures of four tabs: `python tests/bench/screenshots.py` goes through the studio with one LoRA, in Chromium, and writes them.

That of Publish, which needs a Hub, is what tests/browser/test_publish.py leaves in build/screenshots.
"""

import re
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.bench.lessons import prepared, studio, sweep, train  # noqa: E402


def kept(page: Page, name: str) -> None:
    """The whole page as it stands, in 256 colours."""
    page.wait_for_timeout(1000)  # pictures fade in
    picture = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(ROOT / "docs" / f"{name}.png", optimize=True)


def main() -> None:
    """Make pictures, train, sweep, cross; look at each tab once it is done."""
    with studio() as (page, work):
        page.locator("#seed input").fill("42")
        page.get_by_label("number input for Pictures").fill("4")
        page.get_by_role("button", name="Generate", exact=True).click()
        page.locator("#status").get_by_text("4 pictures in").wait_for()
        kept(page, "generate")
        prepared(page, work)
        train(page)
        kept(page, "train")
        sweep(page)
        page.locator("#cells").scroll_into_view_if_needed()  # what is out of sight is not loaded
        page.locator("#cells img").first.wait_for()
        kept(page, "sweep")
        page.get_by_role("tab", name="Transfer").click()
        page.locator("#transfer-runs input").click()
        page.get_by_role("option").first.click()
        page.get_by_role("button", name="Transfer", exact=True).click()
        page.locator("#transfer-status").get_by_text(re.compile(r"pictures in [\d.]+ s")).wait_for()
        page.locator("#matrix").get_by_role("gridcell").nth(2).click()
        page.locator("#pair").scroll_into_view_if_needed()
        page.locator("#pair img").first.wait_for()
        kept(page, "transfer")


if __name__ == "__main__":
    main()
