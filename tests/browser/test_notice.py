"""Whatever fails behind the page is a sentence on it, whether its call is queued or not."""

from pathlib import Path

import httpx

from tests.browser.parts import open_part


def test_what_cannot_be_sent_to_another_tab_says_why(page, screenshots: Path) -> None:
    open_part(page, "tab", "Train")
    page.locator("#into-sweep").click()
    notice = page.get_by_role("alert").filter(has_text="Choose a LoRA first.")
    notice.wait_for()
    page.screenshot(path=screenshots / "notice-1280.png")
    notice.click()
    notice.wait_for(state="detached")
    open_part(page, "tab", "Sweep")
    page.locator("#sweep-publish").click()
    page.get_by_role("alert").filter(has_text="Run a sweep or a transfer study first.").wait_for()


def test_a_lora_that_is_none_says_why(page, tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"no LoRA")
    open_part(page, "tab", "Sweep")
    page.locator("#sweep-lora input[type=file]").set_input_files(torn)
    page.locator("#explained").get_by_text("⚠️").wait_for()


def test_an_answer_without_a_sentence_gets_one(page) -> None:
    """A person sees one even when a proxy before the studio answers."""
    page.route("**/gradio_api/run/predict", lambda route: route.fulfill(status=502, body="Bad Gateway"))
    page.evaluate(
        '() => fetch("/gradio_api/run/predict", {method: "POST", '
        'headers: {"Content-Type": "application/json"}, body: "{}"})'
    )
    page.get_by_role("alert").filter(has_text="Sweetspot could not answer (502)").wait_for()
    page.unroute("**/gradio_api/run/predict")


def test_no_event_outside_of_the_queue_fails_without_a_sentence(studio: str) -> None:
    """Each one, called with values it cannot use, goes on or answers with what the page shows."""
    asked = [
        each
        for each in httpx.get(f"{studio}config").json()["dependencies"]
        if each["backend_fn"] and not each["queue"]
    ]
    assert len(asked) > 30
    refused = 0
    for each in asked:
        for value in (None, "nothing of this name", {"path": "/nowhere"}, [[]], -1):
            body = {
                "data": [value] * len(each["inputs"]),
                "fn_index": each["id"],
                "session_hash": "bad",
                "event_data": {"index": -1},
            }
            answer = httpx.post(f"{studio}gradio_api/run/predict", json=body, timeout=30)
            refused += answer.is_error
            assert answer.is_success or answer.json()["error"], (
                f"{each['api_name']} fails without a sentence for {value!r}"
            )
    assert refused > 20, "nothing was tried that fails"
