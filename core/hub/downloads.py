"""Downloads from the Hub: their progress, disk space for all of them, and clean-up of the cache."""

import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants, scan_cache_dir

from core.schema import limits, presets
from core.schema.errors import UserError
from core.schema.events import DownloadProgress
from core.system import disk
from core.system.concurrency import run_in_background
from core.system.device import is_space

Result = TypeVar("Result")


@dataclass
class _DownloadTracker:
    repo: str = ""
    bytes_before: int = 0
    bytes_total: int = 0


_tracker: ContextVar[_DownloadTracker | None] = ContextVar("arriving", default=None)


def report_downloads(
    call: Callable[..., Result], *arguments: Any
) -> Generator[DownloadProgress, None, Result]:
    """Run `call(*arguments)` in a thread; yield a `DownloadProgress` at each look at the cache.

    Returns what `call` returns. A download continues if its watcher goes away; one that was cut off
    resumes when it is requested again.
    """
    told = _DownloadTracker()

    def run_tracked() -> Result:
        _tracker.set(told)
        return call(*arguments)

    looks = run_in_background(run_tracked)
    try:
        while True:
            next(looks)
            if total := told.bytes_total:  # read once: the thread may reset it at any time
                yield DownloadProgress(
                    repo=told.repo,
                    bytes_done=max(0, min(total, _count_repo_bytes(told.repo) - told.bytes_before)),
                    bytes_total=total,
                )
    except StopIteration as done:
        return done.value


@contextmanager
def track_download(repo: str, download: str, total: int, field: str, name: str):
    """Reserve space for a download and report its progress while the context is open.

    `total` is in bytes. Raises `UserError` if there is no space for them beside all other
    downloads, or too many downloads are running.
    """
    with _reserve_space(download, total, field, name):
        if (told := _tracker.get()) is not None:
            told.repo, told.bytes_before, told.bytes_total = repo, _count_repo_bytes(repo), total
        try:
            yield
        finally:
            if told is not None:
                told.bytes_total = 0


@contextmanager
def _reserve_space(download: str, total: int, field: str, name: str):
    """Reserve space for a download until it has ended, even if nobody waits for it any more.

    A download that somebody else waits for, too, has its space already.
    """
    with _reservation_lock:
        if total and download not in (others := dict(_reservations)):
            taken = sum(others.values())
            if total > _get_free_bytes() - taken:
                remove_unused_repos(limits.HOUR)
            if total > (free := max(0, _get_free_bytes() - taken)):
                raise UserError(
                    field, f"{name} has {total:,} bytes, but only {free:,} bytes are free on the disk."
                )
            if is_space() and len(others) >= limits.DOWNLOADS:
                raise UserError(
                    field,
                    f"{name} cannot start yet: {len(others)} downloads are running, which is "
                    "the limit. Try again in a few minutes.",
                )
        _reservations.append((download, total))
    try:
        yield
    finally:
        with _reservation_lock:
            _reservations.remove((download, total))


# Each download and its bytes, once for each caller that waits for it.
_reservations: list[tuple[str, int]] = []
_reservation_lock = threading.Lock()
# A forked process must not wait for a thread that it does not have (see `core.lora.apply`).
os.register_at_fork(
    before=_reservation_lock.acquire,
    after_in_parent=_reservation_lock.release,
    after_in_child=_reservation_lock.release,
)


def _count_repo_bytes(repo: str) -> int:
    """Return the bytes of a repository in the cache, including files that are still downloading."""
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    total = 0
    for each in blobs.glob("*"):
        try:
            total += each.stat().st_size
        except FileNotFoundError:  # it was just renamed
            continue
    return total


def _get_free_bytes() -> int:
    """Return how many bytes of the disk of the Hub's cache may be used."""
    return max(0, disk.get_free_bytes(Path(constants.HF_HUB_CACHE)) - limits.DISK_FLOOR)


def remove_unused_repos(unused_seconds: float) -> int:
    """Remove repositories that nobody has used for `unused_seconds`; return how many were removed.

    Removes nothing at home, where it is the person's own cache.
    """
    if not is_space() or not Path(constants.HF_HUB_CACHE).is_dir():
        return 0
    kept = {each.source for each in (*presets.get_models().values(), *presets.get_tools().values())}
    found = scan_cache_dir(constants.HF_HUB_CACHE)
    old = [
        each
        for each in found.repos
        if each.repo_id not in kept
        and max(each.last_accessed, each.last_modified) < time.time() - unused_seconds
    ]
    found.delete_revisions(*(revision.commit_hash for each in old for revision in each.revisions)).execute()
    return len(old)
