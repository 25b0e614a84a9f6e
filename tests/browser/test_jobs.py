"""'Send to a Job' as a person uses it, in Chromium: no price, no start; then a run that waits for its hardware and is stopped."""

import re
from pathlib import Path

import pytest
from huggingface_hub import constants
from playwright.sync_api import APIResponse, Route, expect

from core.nano.lessons import airbrushed
from tests.publish.conftest import hub_server  # noqa: F401  (a fixture)
from tests.publish.hub import Hub
from tests.publish.hub_jobs import Yard


@pytest.fixture
def page(studio: str, chromium, hub_server: Hub):  # noqa: F811
    context = chromium.new_context(viewport={"width": 1280, "height": 960})
    page = context.new_page()
    page.goto(studio)
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="Send to a Job").click()
    page.locator("#job-list").wait_for()
    yield page
    context.close()


def held(page, while_: Hub) -> list[tuple[Route, APIResponse]]:
    """What the page is answered while the Hub has not been told to go on: a slow connection brings it when the test does."""
    late: list[tuple[Route, APIResponse]] = []

    def answered(route: Route) -> None:
        response = route.fetch()
        if while_.go.is_set() or not (route.request.post_data_json or {})["data"]:
            return route.fulfill(response=response)
        late.append((route, response))
        return None

    page.route(re.compile("/run/predict"), answered)
    return late


def test_nothing_is_sent_before_its_price_is_there(page, hub_server: Hub, tmp_path: Path, screenshots: Path) -> None:  # noqa: F811
    assert isinstance(hub_server.yard, Yard)
    hub_server.yard.full = True
    for i, (picture, _) in enumerate(airbrushed(3)):
        picture.save(tmp_path / f"{i}.png")
    page.locator("#train-files input[type=file]").set_input_files([tmp_path / f"{i}.png" for i in range(3)])
    page.locator("#train-data").get_by_text("3 pictures").wait_for()
    page.get_by_label("Trigger").first.fill("soft")
    page.locator("#job-list").click()
    page.locator("#job-price").get_by_text("login: tick that this computer's login may be used").wait_for()
    assert not hub_server.asked
    Path(constants.HF_TOKEN_PATH).write_text("hf_ann")
    page.locator("#job-login input").check()
    page.locator("#job-list").click()
    page.locator("#job-price").get_by_text("Choose one.").wait_for()
    send = page.locator("#job-send-new")
    assert send.is_disabled()
    page.locator("#job-hardware input").click()
    page.get_by_role("option", name="1x Nvidia L4 (24 GB), $0.80 an hour").click()
    page.locator("#job-minutes input").fill("27")
    page.locator("#job-price").get_by_text("about $0.40, at most $1.20 (its timeout, 90 min)").wait_for()
    page.locator("#job-space input, #job-space textarea").first.fill("ann/sweetspot")
    assert not hub_server.yard.jobs
    hub_server.fail("POST /api/jobs/ann", "held")
    late = held(page, while_=hub_server)
    send.click()
    page.wait_for_timeout(1_500)  # whatever the page asks beside it is asked by now
    hub_server.go.set()
    status = page.locator("#job-status")
    expect(status).to_contain_text("on l4x1 waits for its hardware", timeout=30_000)
    for route, response in late:
        route.fulfill(response=response)
    page.wait_for_timeout(500)
    expect(status).to_contain_text("on l4x1 waits for its hardware", timeout=1)  # and no answer from before it was there takes its place
    page.locator("#train-status").get_by_text("Waiting for the Job's hardware.").wait_for(timeout=20_000)
    page.screenshot(path=screenshots / "job-1280.png", full_page=True)
    page.locator("#job-stop").click()
    (job,) = hub_server.yard.jobs.values()
    assert not job.stage, "it is asked first"
    page.locator("#job-stop-yes").click()
    status.get_by_text("was stopped").wait_for(timeout=20_000)
    page.locator("#train-status").get_by_text("Set up. Step 0 of").wait_for(timeout=20_000)
    assert job.stage == "CANCELED"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
