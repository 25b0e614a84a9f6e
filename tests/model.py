"""The model from beside its jobs: its weights, its calls, whether a job has it.

ZeroGPU runs the jobs in processes of their own.
"""

import hashlib
import mmap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from core.models import bases
from core.runtime import gpu, torch_thread
from core.schema.events import Picture
from core.schema.types import Cell, Request
from core.system.device import is_zerogpu
from tests import zero

PLAIN_REQUEST = Request(
    model="nano",
    prompt="1girl, portrait",
    negative="",
    width=64,
    height=64,
    steps=3,
    cfg=5.0,
    sampler="Euler a",
    seed=7,
)


def fingerprint() -> str:
    """Return the sha256 of nano's weights.

    Where the page's process has none, it is that of their picture of a plain request.
    """
    if zero.is_packed():
        (picture,) = (
            event
            for event in gpu.generate_on_gpu([Cell(label="", request=PLAIN_REQUEST)])
            if isinstance(event, Picture)
        )
        return hashlib.sha256(picture.image.tobytes()).hexdigest()
    pipeline = bases.load_model("nano")
    parts = [
        value.numpy().tobytes()
        for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2)
        for value in part.state_dict().values()
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def restart_workers() -> None:
    """Let the jobs use what a test has changed of the code.

    A worker is what this process was when it was forked.
    """
    if is_zerogpu():
        zero.SCHEDULERS[-1].retire_workers()


class CallCounter:
    """A count of calls, in whichever process they happen."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 8)

    def __len__(self) -> int:
        return int.from_bytes(self.shared[:])

    def __call__(self, *_: object) -> None:
        self.shared[:] = (len(self) + 1).to_bytes(8)


@contextmanager
def count_unet_calls() -> Iterator[CallCounter]:
    """Count the calls of nano's U-Net inside the `with` block."""
    calls = CallCounter()
    hook = bases.load_model("nano").unet.register_forward_pre_hook(calls)
    restart_workers()
    try:
        yield calls
    finally:
        hook.remove()
        restart_workers()


def wait_until_free() -> None:
    """Wait until no job has the model."""
    if is_zerogpu():
        end = time.monotonic() + 60
        while zero.SCHEDULERS[-1].leases:
            assert time.monotonic() < end, "a job still has a GPU"
            time.sleep(0.01)
        return
    assert torch_thread.model_lock.acquire(timeout=60), "a job still has the model"
    torch_thread.model_lock.release()


@contextmanager
def keep_torch_busy() -> Iterator[None]:
    """Hold up whatever wants torch's one thread, or a GPU, inside the `with` block."""
    if is_zerogpu():
        zero.SCHEDULERS[-1].may_answer.clear()
        try:
            yield
        finally:
            zero.SCHEDULERS[-1].may_answer.set()
        return
    over = threading.Event()
    holder = threading.Thread(target=torch_thread.run_on_torch_thread, args=(over.wait,))
    holder.start()
    try:
        yield
    finally:
        over.set()
        holder.join()
