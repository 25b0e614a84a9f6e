"""The one door to the GPU. The only importer of `spaces`, which must come before torch.

On ZeroGPU the decorated generator runs in a forked process that is lent a GPU for the call:
arguments and events are pickled, and an exception would reach the person as its class name
only, so a sentence for the person travels as `Failed`. Elsewhere the decorator does nothing.
"""

import spaces  # isort: skip  (before anything that imports torch)

import math
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL.Image import Image

from core import closing, journal, models
from core.device import on_zero_gpu
from core.events import Event, Failed
from core.generate import generate, planned
from core.train.folder import Folder
from core.train.loop import train
from core.types import Cell, UserError

SECONDS_PER_MEGAPIXEL_STEP = 0.08
"""Of SDXL with guidance on ZeroGPU's half card; generous, since an overrun call is killed."""
SECONDS_TO_START = 15
SECONDS_TO_LOAD = 60
"""Of a model that is not loaded yet, from its file."""
PATIENCE = 0.5
"""Seconds that a look at the model waits for its turn."""
LONGEST = 120
"""Seconds that a visitor may ask for at once."""
SLICE = 75
"""Seconds of training in one call."""


def duration(cells: Sequence[Cell], previews: bool = False, eye: str | None = None, pictures: Sequence[Image] = ()) -> int:
    """Whole seconds of GPU time to ask ZeroGPU for."""
    work = sum(planned(cell.request) for cell in cells) / 1e6
    fresh = {cell.request.model for cell in cells} - {models.loaded()}
    return min(LONGEST, math.ceil(SECONDS_TO_START + SECONDS_TO_LOAD * len(fresh) + SECONDS_PER_MEGAPIXEL_STEP * work))


@journal.counted
@spaces.GPU(duration=duration)
def run(cells: Sequence[Cell], previews: bool = False, eye: str | None = None, pictures: Sequence[Image] = ()) -> Iterator[Event]:
    """Make the cells' pictures: `core.generate.generate`, with what went wrong as a last `Failed`.

    One job at a time has the model, to its very end: Gradio gives a stopped job's place away before the job
    has taken its LoRAs off.
    """
    try:
        yield from _driven(generate(cells, previews=previews, eye=eye, pictures=pictures))
    except UserError as error:
        yield Failed(message=str(error))


@journal.counted
@spaces.GPU(duration=lambda folder, seconds=SLICE: seconds + SECONDS_TO_START)
def lesson(folder: Path, seconds: int = SLICE) -> Iterator[Event]:
    """A slice of a training, where no process of its own can have the GPU: goes on with the run, saves, and ends.

    Ends with `Failed` when the run cannot go on; where it stands is in its folder.
    """
    run = Folder(folder)
    try:
        with run.owned():
            yield from _driven(train(run, seconds))
    except UserError as error:
        yield Failed(message=str(error))


def _driven(events: Generator[Event, None, None]) -> Iterator[Event]:
    """The events of a job that has the model to its very end, each made on torch's thread."""
    with _job:
        try:
            while (event := lane(next, events, None)) is not None:
                yield event
                closing.check()
        finally:
            lane(events.close)


def alone(call: Callable[..., Any], *arguments: Any) -> Any:
    """`call(*arguments)` on torch's thread while no job has the model; `None` at once if one has it.

    Nobody waits for a job here: those who wait would take the threads that the job's own steps need.
    """
    if not _job.acquire(timeout=PATIENCE):
        return None
    try:
        return lane(call, *arguments)
    finally:
        _job.release()


_job = threading.Lock()  # taken and given back in whatever thread the generator is driven from
_thread = ThreadPoolExecutor(1, thread_name_prefix="torch")


def lane(call: Callable[..., Any], *arguments: Any) -> Any:
    """`call(*arguments)` on the one thread that does torch's work; models are loaded on it, too.

    libgomp keeps a team of threads for each thread that computes, and lets all of them sleep between
    two operations once there are more than cores: measured on two cores, a picture by the main thread
    takes 1.2 s, by a second thread 3.3 s. In ZeroGPU's forked process that thread does not exist.
    """
    return call(*arguments) if on_zero_gpu() else _thread.submit(call, *arguments).result()
