"""The model as a test sees it from beside its jobs: its weights, its calls, whether a job has it. ZeroGPU has the jobs in processes of their own."""

import hashlib
import mmap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from core import gpu, models
from core.device import on_zero_gpu
from core.events import Picture
from core.types import Cell, Request
from tests import zero

PLAIN = Request(model="nano", prompt="1girl, portrait", negative="", width=64, height=64, steps=3, cfg=5.0, sampler="Euler a", seed=7)


def fingerprint() -> str:
    """Of nano's weights; where the page's process has none, of what they make of a plain request."""
    if zero.is_packed():
        (picture,) = (event for event in gpu.run([Cell(label="", request=PLAIN)]) if isinstance(event, Picture))
        return hashlib.sha256(picture.image.tobytes()).hexdigest()
    pipeline = models.load("nano")
    parts = [value.numpy().tobytes() for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2) for value in part.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def anew() -> None:
    """What a test has changed of the code is in the jobs from now on: a worker is what this process was when it was forked."""
    if on_zero_gpu():
        zero.LENDERS[-1].retire()


class Calls:
    """How many there were, in whichever process."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 8)

    def __len__(self) -> int:
        return int.from_bytes(self.shared[:])

    def __call__(self, *_: object) -> None:
        self.shared[:] = (len(self) + 1).to_bytes(8)


@contextmanager
def unet_calls() -> Iterator[Calls]:
    """Calls of nano's U-Net, for as long as it lasts."""
    calls = Calls()
    hook = models.load("nano").unet.register_forward_pre_hook(calls)
    anew()
    try:
        yield calls
    finally:
        hook.remove()
        anew()


def is_free() -> None:
    """Wait until no job has the model."""
    if on_zero_gpu():
        end = time.monotonic() + 60
        while zero.LENDERS[-1].lent:
            assert time.monotonic() < end, "a job still has a GPU"
            time.sleep(0.01)
        return
    assert gpu._job.acquire(timeout=60), "a job still has the model"
    gpu._job.release()


@contextmanager
def torch_is_busy() -> Iterator[None]:
    """While it lasts, whatever wants torch's one thread, or to be lent a GPU, gets no further."""
    if on_zero_gpu():
        zero.LENDERS[-1].answers.clear()
        try:
            yield
        finally:
            zero.LENDERS[-1].answers.set()
        return
    over = threading.Event()
    holder = threading.Thread(target=gpu.lane, args=(over.wait,))
    holder.start()
    try:
        yield
    finally:
        over.set()
        holder.join()
