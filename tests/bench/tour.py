"""Walk the README's tour with the LoRA of the library, in a browser: `python tests/bench/tour.py`.

Prints the seconds of the sweep, from Rescale to the file, and from Preview to the model card, beside
the tests' Hub; saves the last tab to build/screenshots/tour.png.
"""

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.bench.lessons import open_studio, press_sweep  # noqa: E402
from tests.bench.report import save_report  # noqa: E402
from tests.hub.server import serve_hub  # noqa: E402

LORA = "nano-airbrush"


def measure_seconds(step: Callable[[], object]) -> float:
    """Return the seconds that a step takes, from its click to what the person waits for."""
    begin = time.monotonic()
    step()
    return round(time.monotonic() - begin, 1)


def press_rescale(page: Page) -> None:
    """Rescale the LoRA, and wait for the file."""
    page.locator("#normalise").click()
    page.locator("#edited a").first.wait_for()


def press_preview(page: Page) -> None:
    """Preview the repository, and wait for the model card with its curves."""
    page.locator("#publish-preview").click()
    page.locator("#publish-status").get_by_text(re.compile(r"ann/airbrush: \d+ files")).wait_for()
    page.locator("#card-curves img").wait_for()


def walk_through(page: Page) -> dict[str, Any]:
    """Use the tabs as the README says, and return the seconds of each step."""
    page.get_by_role("tab", name="Sweep").click()
    page.locator("#sweep-shelf input").click()
    page.get_by_role("option", name=LORA).click()
    page.locator("#explained").get_by_text("rank, alpha").wait_for()
    begin = time.monotonic()
    found: dict[str, Any] = {"images": press_sweep(page), "sweep": round(time.monotonic() - begin, 1)}
    found["verdict"] = page.locator("#answer").inner_text().splitlines()[0]
    found["rescale"] = measure_seconds(lambda: press_rescale(page))
    page.locator("#sweep-publish").click()
    page.locator("#publish-reports").get_by_text("report").first.wait_for()
    page.locator("#repo input, #repo textarea").first.fill("ann/airbrush")
    found["preview"] = measure_seconds(lambda: press_preview(page))
    page.screenshot(path=ROOT / "build" / "screenshots" / "tour.png", full_page=True)
    return found


def main() -> None:
    with serve_hub({"hf_ann": "ann"}) as server:
        os.environ |= {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        with open_studio() as (page, _):
            save_report("tour", walk_through(page))


if __name__ == "__main__":
    main()
