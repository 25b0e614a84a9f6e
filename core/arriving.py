"""What is on its way from the Hub: how far it is, and the disk's room for all of it."""

import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants

from core import hubcache, limits, room
from core.aside import aside
from core.device import on_space
from core.events import Fetch
from core.types import UserError

Kept = TypeVar("Kept")


@dataclass
class _Arriving:
    repo: str = ""
    before: int = 0
    total: int = 0


_arriving: ContextVar[_Arriving | None] = ContextVar("arriving", default=None)


def fetching(call: Callable[..., Kept], *arguments: Any) -> Generator[Fetch, None, Kept]:
    """`call(*arguments)` in a thread, and meanwhile a `Fetch` for each look at what has arrived from the Hub.

    A download whose watcher goes away goes on, and one that was cut off goes on where it was when it is asked for again.
    """
    told = _Arriving()

    def seen() -> Kept:
        _arriving.set(told)
        return call(*arguments)

    looks = aside(seen)
    try:
        while True:
            next(looks)
            if total := told.total:  # the thread may be done with it in the next moment
                yield Fetch(what=told.repo, done=max(0, min(total, _size(told.repo) - told.before)), total=total)
    except StopIteration as done:
        return done.value


@contextmanager
def watched(repo: str, download: str, total: int, what: str):
    """While so many bytes arrive; raises `UserError` if there is no room for them beside all that is on its way, or too much is."""
    with _promised(download, total, what):
        if (told := _arriving.get()) is not None:
            told.repo, told.before, told.total = repo, _size(repo), total
        try:
            yield
        finally:
            if told is not None:
                told.total = 0


@contextmanager
def _promised(download: str, total: int, what: str):
    """Room for a download until it has ended, also where nobody waits for it any more; one that somebody else waits for, too, has it already."""
    with _promising:
        if total and download not in (others := dict(_promises)):
            taken = sum(others.values())
            if total > _free() - taken:
                hubcache.swept(limits.HOUR)
            if total > (free := max(0, _free() - taken)):
                raise UserError(f"{what} has {total:,} bytes, and the disk has room for {free:,}.")
            if on_space() and len(others) >= limits.DOWNLOADS:
                raise UserError(f"{what} has to wait: {len(others)} downloads are on their way, as many as there may be at once; try again in a few minutes.")
        _promises.append((download, total))
    try:
        yield
    finally:
        with _promising:
            _promises.remove((download, total))


_promises: list[tuple[str, int]] = []  # each download and its bytes, as often as somebody waits for it
_promising = threading.Lock()
os.register_at_fork(before=_promising.acquire, after_in_parent=_promising.release, after_in_child=_promising.release)  # as in `lora`


def _size(repo: str) -> int:
    """Bytes of a repository that are here, also of files that are on their way."""
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    total = 0
    for each in blobs.glob("*"):
        try:
            total += each.stat().st_size
        except FileNotFoundError:  # it has just got its name
            continue
    return total


def _free() -> int:
    """Bytes that may be taken of the disk of the Hub's cache."""
    return max(0, room.free(Path(constants.HF_HUB_CACHE)) - limits.DISK_FLOOR)
