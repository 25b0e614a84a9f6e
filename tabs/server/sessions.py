"""Limit what the server remembers of a session: what it touched, not the whole page.

Of the call of a script, nothing is kept once the call is over.
"""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import gradio as gr

from tabs.server.gradio_internals import SessionState

_original_init = SessionState.__init__


class _UntouchedPage:
    """The page as a session that has touched nothing yet sees it."""

    blocks: dict[int, Any] = {}  # noqa: RUF012

    def __init__(self, page: gr.Blocks):
        self._page = page

    def __getattr__(self, name: str) -> Any:
        return getattr(self._page, name)


# Gradio would copy every component's settings for each session, 0.8 MB in 60 ms, for links to a
# page's state, of which the app gives out none. It adds the settings of a component that a session
# touches anyway.
SessionState.__init__ = lambda self, page: _original_init(
    self,
    _UntouchedPage(page),  # type: ignore[arg-type]
)


def drop_call_sessions(page: gr.Blocks) -> None:
    """Forget the session that Gradio makes up for a call that has none, once the call has ended.

    Nobody else knows that session.
    """
    page.process_api = _drop_session_after_call(page, page.process_api)


def _drop_session_after_call(
    page: gr.Blocks, process: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    async def process_api(*args: Any, **kwargs: Any) -> Any:
        goes_on = False
        try:
            result = await process(*args, **kwargs)
            goes_on = result["is_generating"]
            return result
        finally:
            session = kwargs.get("session_hash")
            if session is not None and session == kwargs.get("event_id") and not goes_on:
                page.state_holder.session_data.pop(session, None)
                page.state_holder.time_last_used.pop(session, None)

    return wraps(process)(process_api)
