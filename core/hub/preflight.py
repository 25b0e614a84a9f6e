"""Checks before a job has its place: only what is on this machine and cheap to read.

Everybody may request that at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class NeedsJob(Exception):
    """Something must be fetched first: the job does that, and refuses what it finds."""


_in_preflight: ContextVar[bool] = ContextVar("looking", default=False)


@contextmanager
def enter_preflight() -> Iterator[None]:
    """Forbid fetches in this context: `NeedsJob` is raised instead, and no picture is decoded."""
    token = _in_preflight.set(True)
    try:
        yield
    finally:
        _in_preflight.reset(token)


def is_job() -> bool:
    """Whether fetching is allowed here, outside of `enter_preflight`."""
    return not _in_preflight.get()
