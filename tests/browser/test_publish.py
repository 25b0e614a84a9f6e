"""The Publish tab as a person uses it, in Chromium.

The card with its table and curve, the files, and what is refused.
"""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.browser.parts import open_part
from tests.hub.server_state import Hub
from tests.publish.test_card import EXAMPLE, REPORT


@pytest.fixture
def page(hub_server: Hub, page):
    open_part(page, "tab", "Publish")
    page.locator("#publish-preview").wait_for()
    return page


def fill_form(page, tmp_path: Path) -> None:
    curve = [
        {
            "strength": s / 2,
            "effect": s * 0.4,
            "effect_low": s * 0.3,
            "effect_high": s * 0.5,
            "style": None,
            "composition": 1 - s / 12,
        }
        for s in range(10)
    ]
    (tmp_path / "report.json").write_text(json.dumps({**REPORT, "curve": curve}))
    page.locator("#publish-file input[type=file]").set_input_files(EXAMPLE)
    page.locator("#publish-file").get_by_text("nano-airbrush").wait_for()
    page.locator("#publish-reports input[type=file]").set_input_files(tmp_path / "report.json")
    page.locator("#publish-reports").get_by_text("report").first.wait_for()
    page.locator("#repo input, #repo textarea").first.fill("ann/soft")
    page.locator("#publish-title input, #publish-title textarea").first.fill("Soft <b>light</b>")
    page.locator("#description textarea").fill(
        "Gradients <script>document.title = 'taken'</script> without a line."
    )


def test_the_card_is_seen_before_anything_is_sent(
    page,
    hub_server: Hub,
    tmp_path: Path,
    screenshots: Path,
) -> None:
    fill_form(page, tmp_path)
    page.locator("#publish-preview").click()
    page.locator("#publish-status").get_by_text(
        re.compile(r"ann/soft: 5 files, [\d,]+ bytes\. New repository\.")
    ).wait_for()
    card = page.locator("#card")
    card.get_by_role("cell", name="2.75", exact=True).wait_for()
    card.get_by_role("heading", name="Soft <b>light</b>").wait_for()
    assert page.title() == "Sweetspot", "a script of the description ran"
    page.locator("#card-curves img").wait_for()
    page.screenshot(path=screenshots / "publish-1280.png", full_page=True)
    assert not [one for one in hub_server.requests if one.method in ("POST", "PUT")]
    page.locator("#publish").click()
    page.locator("#publish-status").get_by_text("login: tick the use of this computer's login").wait_for()
    assert not hub_server.repos
    page.locator("#repo input, #repo textarea").first.fill("my lora")
    page.locator("#publish-preview").click()
    page.locator("#publish-status").get_by_text("repo: 'my lora' is not valid").wait_for()
    assert card.get_by_role("cell", name="2.75", exact=True).is_visible(), (
        "what was shown is gone though nothing took its place"
    )


def test_a_lora_of_the_hub_is_fetched_and_what_was_measured_is_taken_here(
    page,
    hub_server: Hub,
    screenshots: Path,
) -> None:
    api = HfApi(token="hf_ann")
    api.create_repo("ann/soft")
    api.upload_file(path_or_fileobj=EXAMPLE, path_in_repo="soft.safetensors", repo_id="ann/soft")
    open_part(page, "tab", "Sweep")
    page.locator("#sweep-hub input, #sweep-hub textarea").first.fill("ann/gone")
    page.locator("#sweep-hub-fetch").click()
    page.locator("#sweep-hub-arrived").get_by_text(
        "lora: ann/gone is private or does not exist on Hugging Face."
    ).wait_for()
    page.locator("#sweep-hub input, #sweep-hub textarea").first.fill("ann/soft")
    page.locator("#sweep-hub-fetch").click()
    page.locator("#sweep-hub-arrived").get_by_text(
        f"Downloaded: ann/soft@{hub_server.list_commits('ann/soft')[-1].oid}:soft.safetensors"
    ).wait_for()
    page.locator("#explained").get_by_text("rank, alpha").wait_for()
    page.locator("#strengths input, #strengths textarea").first.fill("0, 2")
    page.locator("#seeds input, #seeds textarea").first.fill("1, 2")
    page.locator("#prompts textarea").fill("1girl, smile")
    page.locator("#sweep").click()
    page.locator("#sweep-status").get_by_text("4 images in").wait_for(timeout=120_000)
    page.locator("#sweep-publish").click()
    page.locator("#publish-reports").get_by_text("report").first.wait_for()
    page.locator("#publish-file").get_by_text("soft").first.wait_for()
    page.locator("#repo input, #repo textarea").first.fill("ann/mine")
    page.locator("#publish-preview").click()
    page.locator("#publish-status").get_by_text(re.compile(r"ann/mine: \d+ files")).wait_for()
    page.locator("#card").get_by_text("ann/soft@").wait_for()
    page.screenshot(path=screenshots / "publish-taken-1280.png", full_page=True)


def test_what_is_not_allowed_is_said(page, tmp_path: Path) -> None:
    fill_form(page, tmp_path)
    page.locator("#repo input, #repo textarea").first.fill("my lora")
    page.locator("#publish-preview").click()
    page.locator("#publish-status").get_by_text("repo: 'my lora' is not valid").wait_for()


def test_it_is_readable_on_a_telephone(page, screenshots: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=screenshots / "publish-390.png", full_page=True)
