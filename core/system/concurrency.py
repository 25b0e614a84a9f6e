"""Run slow calls in background threads, and cache in bounded tables that any thread may fill."""

from collections.abc import Callable, Generator, Hashable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
POLL_SECONDS = 0.5
"""Seconds between two looks at a background call."""
Result = TypeVar("Result")


def drain(steps: Generator[Any, None, Result]) -> Result:
    """Run a generator to its end and return its return value, without its steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def run_in_background(call: Callable[..., Result], *arguments: Any) -> Generator[None, None, Result]:
    """Run `call(*arguments)` in a thread and yield `None` every `POLL_SECONDS` until it ends.

    Returns the call's result, or raises its error. If the generator is closed earlier, the call
    goes on and nobody waits for it.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="aside")
    job = pool.submit(call, *arguments)
    pool.shutdown(wait=False)
    while not wait([job], timeout=POLL_SECONDS).done:
        yield
    return job.result()


class BoundedDict(dict[Key, Result]):
    """A dict that drops its oldest entries once it has more than `max_entries`.

    Any thread may add entries. It has no lock that a process forked meanwhile, as ZeroGPU's are,
    would find locked.
    """

    def __init__(self, max_entries: int):
        super().__init__()
        self.max_entries = max_entries

    def __setitem__(self, key: Key, value: Result) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        for old in list(self)[: -self.max_entries]:
            self.pop(old, None)
