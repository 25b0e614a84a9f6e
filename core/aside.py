"""A slow call in a thread of its own, looked at from time to time: who looks on may leave before it has ended."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

LOOK = 0.5
"""Seconds between two looks."""
Kept = TypeVar("Kept")


def drain(steps: Generator[Any, None, Kept]) -> Kept:
    """What a generator returns once it has come to its end, for those who need none of its steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def aside(call: Callable[..., Kept], *arguments: Any) -> Generator[None, None, Kept]:
    """What `call(*arguments)` gives or raises, after a `None` for each look at it; closed before, nobody waits for it any more and it goes on."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="aside")
    job = pool.submit(call, *arguments)
    pool.shutdown(wait=False)
    while not wait([job], timeout=LOOK).done:
        yield
    return job.result()
