"""The one door to the GPU. The only importer of `spaces`, which must come before torch.

On ZeroGPU the decorated generator runs in a forked process that is lent a GPU for the call:
arguments and events are pickled, and an exception would reach the person as its class name
only, so a sentence for the person travels as `Failed`. What ZeroGPU itself has against a job becomes
one, too. Elsewhere the decorator does nothing.
"""

import spaces  # isort: skip  (before anything that imports torch)

import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL.Image import Image

from core import arriving, closing, hub, journal, lent, lora, models, tools
from core.device import on_zero_gpu
from core.events import Event, Failed, Picture, Step
from core.generate import generate
from core.lent import LONGEST, SECONDS_TO_START
from core.lorafile import LoraFile
from core.memory import enough_memory
from core.train.ending import tell_end
from core.train.folder import Folder
from core.train.loop import train
from core.train.run import read
from core.types import Cell, UserError

PATIENCE = 0.5
"""Seconds that a look at the model waits for its turn."""
SLICE = 75
"""Seconds of training in one call."""

log = logging.getLogger(__name__)


def duration(cells: Sequence[Cell], previews: bool = False, eye: str | None = None, pictures: Sequence[Image] = (), most: int = LONGEST) -> int:
    """Whole seconds of GPU time to ask ZeroGPU for."""
    return lent.of_run(cells, eye, len(pictures), most)


@spaces.GPU(duration=duration)
def _run(
    cells: Sequence[Cell], previews: bool = False, eye: str | None = None, pictures: Sequence[Image] = (), most: int = LONGEST
) -> Generator[Event, None, None]:
    try:
        yield from _driven(generate(cells, previews=previews, eye=eye, pictures=pictures))
    except UserError as error:
        yield Failed(message=str(error))


def slice_duration(folder: Path, seconds: int) -> int:
    """The same for a slice of a training."""
    return lent.of_lesson(read(Folder(folder)), seconds)


@spaces.GPU(duration=slice_duration)
def _lesson(folder: Path, seconds: int) -> Generator[Event, None, None]:
    run = Folder(folder)
    try:
        with run.owned(), tell_end(run, "the studio's"):
            yield from _driven(train(run, seconds))
    except UserError as error:
        yield Failed(message=str(error))


@journal.counted
def run(cells: Sequence[Cell], previews: bool = False, eye: str | None = None, pictures: Sequence[Image] = ()) -> Iterator[Event]:
    """Make the cells' pictures: `core.generate.generate`, with what went wrong as a last `Failed`.

    One job at a time has the model, to its very end: Gradio gives a stopped job's place away before the job
    has taken its LoRAs off. What comes from the Hub comes first. Where the GPU is lent, in as many calls as its time asks for.
    """
    yield from arriving.fetching(_fetched, cells, eye)
    if not on_zero_gpu():
        yield from _run(cells, previews, eye, pictures)
        return
    missing, wanted = list(range(len(cells))), pictures

    def job(most: int) -> Iterator[Event]:
        nonlocal wanted
        for part in list(lent.parts(cells, missing, eye, most)):
            finished = len(cells) - len(missing)
            with contextlib.closing(_run([cells[i] for i in part], previews, eye, wanted, most)) as events:
                for event in events:
                    if isinstance(event, Step | Picture):
                        event = lent.placed(event, part, cells, finished, eye)
                    if isinstance(event, Picture):
                        missing.remove(event.index)
                    yield event
                    if isinstance(event, Failed):
                        return
            wanted = ()

    def stays() -> str:
        done = len(cells) - len(missing)
        if eye:
            return f"What was finished stays, now {done} more of {len(cells)} pictures: press the button again and it goes on from there."
        return f"{f'What was finished stays, {done} of {len(cells)} pictures' if done else 'Nothing was finished'}: press Generate again."

    yield from _asked(job, stays)


@journal.counted
def lesson(folder: Path, seconds: int = SLICE) -> Iterator[Event]:
    """A slice of a training, where no process of its own can have the GPU: goes on with the run, saves, and ends.

    Ends with `Failed` when the run cannot go on, or the GPU cannot be had; where it stands is in its folder.
    """
    run = Folder(folder)

    yield from arriving.fetching(models.fetched, read(run).model)

    def job(most: int) -> Iterator[Event]:
        yield from _lesson(folder, min(seconds, most - SECONDS_TO_START))

    def stays() -> str:
        return f"The run is saved at step {run.last()}: press Continue and it goes on from there."

    yield from _asked(job, stays)


def _fetched(cells: Sequence[Cell], eye: str | None) -> None:
    """Everything from the Hub, before a GPU is asked for; what cannot be had, the job itself says or does without."""
    wanted = [("eye", eye)] if eye in tools.names("eye") else []
    for request in {cell.request for cell in cells}:
        wanted += [("upscaler", request.hires.upscaler)] if request.hires else []
        wanted += [("detector", request.detail.detector)] if request.detail else []
    with contextlib.suppress(UserError):
        for name in sorted({cell.request.model for cell in cells}):
            models.fetched(name)
        for kind, name in dict.fromkeys(wanted):
            if hub.is_id(name) or name in tools.names(kind):
                tools.file(kind, str(name))


def _asked(job: Callable[[int], Iterator[Event]], stays: Callable[[], str]) -> Iterator[Event]:
    """The events of a job that asks for a GPU, for `most` seconds at once; where that is too long, once more for half as many.

    What ZeroGPU, or its process, has against it is the last event: a `Failed` with what stays and what to press.
    """
    try:
        try:
            yield from job(LONGEST)
        except Exception as error:
            if not lent.is_too_long(error):
                raise
            yield from job(LONGEST // 2)
    except UserError as error:
        yield Failed(message=str(error))
    except Exception as error:
        if not on_zero_gpu():
            raise
        log.warning("the GPU was not lent, or taken away", exc_info=error)
        yield Failed(message=f"{lent.sentence(error)} {stays()}", unlent=True)


def _driven(events: Generator[Event, None, None]) -> Iterator[Event]:
    """The events of a job that has the model to its very end, each made on torch's thread; afterwards the model is as it was."""
    with _job:
        try:
            while (event := lane(next, events, None)) is not None:
                yield event
                closing.check()
        finally:
            try:
                lane(events.close)
            finally:
                lane(models.checked)


def inspected(found: LoraFile) -> dict[str, Any]:
    """What a LoRA's file says, and how large its change is beside the loaded model's weights, or why that was not measured."""
    why = "The GPU is lent by the job" if on_zero_gpu() else "A job has the model"
    with enough_memory(f"lora: {found.path.name} does not fit into this machine's memory beside the model, so that its change was not measured."):
        return alone(lambda: lora.inspected(found, models.current())) or lora.inspected(found, None, why)


def alone(call: Callable[..., Any], *arguments: Any) -> Any:
    """`call(*arguments)` on torch's thread while no job has the model; `None` at once if one has it.

    Nobody waits for a job here: those who wait would take the threads that the job's own steps need. On ZeroGPU always
    `None`: the page's process has the model's names only, its weights are where a GPU is lent.
    """
    if on_zero_gpu() or not _job.acquire(timeout=PATIENCE):
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
