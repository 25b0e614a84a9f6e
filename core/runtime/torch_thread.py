"""The one thread that does torch's work, and the lock of the job that has the model.

Models are loaded on that thread, too: libgomp keeps a team of threads for each thread that
computes.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from core.system.device import is_zerogpu

MODEL_LOCK_TIMEOUT = 0.5
"""Seconds that `run_if_idle` waits for the model."""


model_lock = threading.Lock()  # acquired and released in the thread that drives the generator
_torch_thread = ThreadPoolExecutor(1, thread_name_prefix="torch")


def run_on_torch_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    """Run `call(*arguments)` on the one thread that does torch's work, and return its result.

    Models are loaded on it, too. libgomp keeps a team of threads for each thread that computes, and
    lets all of them sleep between two operations once there are more than cores: measured on two
    cores, a picture takes 1.2 s on the main thread and 3.3 s on a second one. On ZeroGPU the call
    runs in the caller's thread, since torch's thread does not exist in the forked process.
    """
    return call(*arguments) if is_zerogpu() else _torch_thread.submit(call, *arguments).result()


def run_if_idle(call: Callable[..., Any], *arguments: Any) -> Any:
    """Run `call(*arguments)` on torch's thread unless a job has the model; then return `None`.

    It waits at most `MODEL_LOCK_TIMEOUT` seconds: waiting callers would take the threads that the
    job's own steps need. Always `None` on ZeroGPU: the page's process has only the model's names,
    its weights are where a GPU is lent.
    """
    if is_zerogpu() or not model_lock.acquire(timeout=MODEL_LOCK_TIMEOUT):
        return None
    try:
        return run_on_torch_thread(call, *arguments)
    finally:
        model_lock.release()
