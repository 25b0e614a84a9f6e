"""What is looked at before a job has its place: only what is on this machine and cheap, as everybody may ask for that at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Elsewhere(Exception):
    """What is wanted has to be fetched first: the job does that, and refuses what it finds."""


_looking: ContextVar[bool] = ContextVar("looking", default=False)


@contextmanager
def beforehand() -> Iterator[None]:
    """While it lasts nothing is fetched, `Elsewhere` is raised instead; and no picture is decoded."""
    token = _looking.set(True)
    try:
        yield
    finally:
        _looking.reset(token)


def is_job() -> bool:
    """Whether this may take its time."""
    return not _looking.get()
