"""What the server remembers of a session: what it touched, not the whole page; and of a script's call nothing once that is over."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState

_begin = SessionState.__init__


class _Untouched:
    """The page as a session sees it that has touched nothing yet."""

    blocks: dict[int, Any] = {}  # noqa: RUF012

    def __init__(self, page: gr.Blocks):
        self._page = page

    def __getattr__(self, name: str) -> Any:
        return getattr(self._page, name)


# Gradio would copy every component's settings for each session, 0.8 MB in 60 ms, for links to a page's state, of which we give none
# out; those of a component that a session touches it adds anyway.
SessionState.__init__ = lambda self, page: _begin(self, _Untouched(page))  # type: ignore[arg-type]


def forget(page: gr.Blocks) -> None:
    """Forget the session that Gradio makes up for a call that has none, as soon as the call has ended; nobody else knows it."""
    page.process_api = _forgetting(page, page.process_api)


def _forgetting(page: gr.Blocks, process: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def processed(*arguments: Any, **named: Any) -> Any:
        goes_on = False
        try:
            result = await process(*arguments, **named)
            goes_on = result["is_generating"]
            return result
        finally:
            session = named.get("session_hash")
            if session is not None and session == named.get("event_id") and not goes_on:
                page.state_holder.session_data.pop(session, None)
                page.state_holder.time_last_used.pop(session, None)

    return wraps(process)(processed)
