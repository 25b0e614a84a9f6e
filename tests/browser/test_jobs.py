"""'Train on Hugging Face Jobs' as a person uses it, in Chromium.

No price, no start; then a run that waits for its hardware and is stopped.
"""

import re
from pathlib import Path

import pytest
from huggingface_hub import constants
from playwright.sync_api import APIResponse, Route, expect

from core.nano.lessons import make_airbrush_set
from tests.browser.parts import open_part
from tests.hub.server_jobs import JobService
from tests.hub.server_state import Hub


@pytest.fixture
def page(hub_server: Hub, page):
    open_part(page, "tab", "Train")
    open_part(page, "button", "Train on Hugging Face Jobs")
    page.locator("#job-list").wait_for()
    return page


def delay_answers(page, hub: Hub) -> list[tuple[Route, APIResponse]]:
    """Hold back the answers of the time before `hub.release` is set, as a slow connection does.

    The list that is returned fills with them; the test delivers each by `route.fulfill`.
    """
    late: list[tuple[Route, APIResponse]] = []

    def delay_answer(route: Route) -> None:
        response = route.fetch()
        if hub.release.is_set() or not (route.request.post_data_json or {})["data"]:
            return route.fulfill(response=response)
        late.append((route, response))
        return None

    page.route(re.compile("/run/predict"), delay_answer)
    return late


def test_nothing_is_sent_before_its_price_is_there(
    page,
    hub_server: Hub,
    tmp_path: Path,
    screenshots: Path,
) -> None:
    assert isinstance(hub_server.service, JobService)
    hub_server.service.is_full = True
    for i, (picture, _) in enumerate(make_airbrush_set(3)):
        picture.save(tmp_path / f"{i}.png")
    page.locator("#train-files input[type=file]").set_input_files([tmp_path / f"{i}.png" for i in range(3)])
    page.locator("#train-data").get_by_text("3 images").wait_for()
    page.get_by_label("Trigger").first.fill("soft")
    page.locator("#job-list").click()
    page.locator("#job-price").get_by_text("login: tick the use of this computer's login").wait_for()
    assert not hub_server.requests
    Path(constants.HF_TOKEN_PATH).write_text("hf_ann")
    page.locator("#job-login input").check()
    page.locator("#job-list").click()
    page.locator("#job-price").get_by_text("Choose hardware.").wait_for()
    send = page.locator("#job-send-new")
    assert send.is_disabled()
    page.locator("#job-hardware input").click()
    page.get_by_role("option", name="1x Nvidia L4 (24 GB), $0.80 an hour").click()
    page.locator("#job-minutes input").fill("27")
    page.locator("#job-price").get_by_text("about $0.40, at most $1.20 (its timeout, 90 min)").wait_for()
    page.locator("#job-space input, #job-space textarea").first.fill("ann/sweetspot")
    assert not hub_server.service.jobs
    hub_server.fail("POST /api/jobs/ann", "held")
    late = delay_answers(page, hub=hub_server)
    send.click()
    page.wait_for_timeout(1_500)  # the page has sent its other requests by now
    hub_server.release.set()
    status = page.locator("#job-status")
    expect(status).to_contain_text("on l4x1 is waiting for hardware", timeout=30_000)
    for route, response in late:
        route.fulfill(response=response)
    page.wait_for_timeout(500)
    # an answer from before the Job existed does not take its place
    expect(status).to_contain_text("on l4x1 is waiting for hardware", timeout=1)
    page.locator("#train-status").get_by_text("Waiting for the Job's hardware.").wait_for(timeout=20_000)
    page.screenshot(path=screenshots / "job-1280.png", full_page=True)
    page.locator("#job-stop").click()
    (job,) = hub_server.service.jobs.values()
    assert not job.stage, "it is asked first"
    page.locator("#job-stop-yes").click()
    status.get_by_text("was stopped").wait_for(timeout=20_000)
    page.locator("#train-status").get_by_text("Set up. Step 0 of").wait_for(timeout=20_000)
    assert job.stage == "CANCELED"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
