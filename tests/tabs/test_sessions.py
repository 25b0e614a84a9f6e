"""What the server remembers of sessions, so that its memory stays bounded.

Little of a page's, nothing of a script's call that is over.
"""

from collections.abc import Iterator

import gradio as gr
import pytest

from tabs.server.sessions import drop_call_sessions
from tests.trust.raw import RawClient


@pytest.fixture
def page() -> Iterator[gr.Blocks]:
    """Launch a page that keeps a state, counts up and fails on "break"."""

    def count_up(said: str, before: int) -> Iterator[tuple[str, int]]:
        yield "", before
        if said == "break":
            raise gr.Error("It broke.", print_exception=False)
        yield said * (before + 1), before + 1

    with gr.Blocks(analytics_enabled=False) as page:
        said, told, before = gr.Textbox(), gr.Textbox(), gr.State(0)
        for _ in range(20):
            gr.Slider()
        gr.Button().click(count_up, [said, before], [told, before], api_name="count")
    drop_call_sessions(page)
    page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield page
    page.close(verbose=False)


@pytest.mark.parametrize(("said", "event"), [("ha", "complete"), ("break", "error")])
def test_a_scripts_call_is_forgotten_when_it_is_over(page: gr.Blocks, said: str, event: str) -> None:
    raw = RawClient(str(page.local_url))
    name = raw.post("call/count", {"data": [said]}).json()["event_id"]
    assert f"event: {event}" in raw.http.get(f"call/count/{name}").text
    assert not page.state_holder.session_data
    assert not page.state_holder.time_last_used


def test_a_page_is_remembered_by_what_it_touched(page: gr.Blocks) -> None:
    raw = RawClient(str(page.local_url))
    for times in (1, 2):
        raw.post(
            "queue/join", {"data": ["ha", None], "fn_index": 0, "session_hash": "mine"}
        ).raise_for_status()
        assert f'"{"ha" * times}"' in raw.http.get("queue/data", params={"session_hash": "mine"}).text
    (session,) = page.state_holder.session_data.values()
    assert list(session.state_data.values()) == [2]
    assert len(session.config_values) <= 3, "what was not touched is held, too"
