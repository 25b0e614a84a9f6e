"""The one door to the GPU, and the only module that imports `spaces`, which must come before torch.

On ZeroGPU the decorated generator runs in a forked process that is lent a GPU for the call:
arguments and events are pickled, and an exception would reach the person as its class name only.
So a sentence for the person travels as `Failed`, and a refusal by ZeroGPU itself becomes one, too.
Elsewhere the decorator does nothing.
"""

import spaces  # isort: skip  (before anything that imports torch)

import contextlib
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from core.generate.pipeline import generate
from core.generate.probe import Probe
from core.hub import downloads
from core.hub.names import is_hub_name
from core.lora import apply as lora
from core.lora.file import LoraFile
from core.models import bases, tools
from core.runtime import zerogpu
from core.runtime.torch_thread import model_lock, run_if_idle, run_on_torch_thread
from core.runtime.zerogpu import MAX_CALL_SECONDS, SECONDS_TO_START
from core.schema.errors import UserError
from core.schema.events import Event, Failed, Picture, Step
from core.schema.types import Cell, Request
from core.system import call_log, shutdown
from core.system.device import is_zerogpu
from core.system.memory import translate_out_of_memory
from core.train.trainer.loop import train
from core.train.trainer.run_end import record_end
from core.train.trainer.run_folder import RunFolder
from core.train.trainer.run_record import read_run

SLICE_SECONDS = 75
"""Seconds of training in one call."""

log = logging.getLogger(__name__)


def estimate_duration(
    cells: Sequence[Cell],
    previews: bool = False,
    feature_extractor: str | None = None,
    pictures: Sequence[Image] = (),
    probe: Probe | None = None,
    max_seconds: int = MAX_CALL_SECONDS,
) -> int:
    """Return the whole seconds of GPU time to ask ZeroGPU for."""
    return zerogpu.estimate_call_seconds(cells, feature_extractor, len(pictures), probe, max_seconds)


@spaces.GPU(duration=estimate_duration)
def _generate_on_lent_gpu(
    cells: Sequence[Cell],
    previews: bool = False,
    feature_extractor: str | None = None,
    pictures: Sequence[Image] = (),
    probe: Probe | None = None,
    max_seconds: int = MAX_CALL_SECONDS,
) -> Generator[Event, None, None]:
    try:
        yield from _run_exclusively(
            generate(
                cells,
                previews=previews,
                feature_extractor=feature_extractor,
                pictures=pictures,
                probe=probe,
            )
        )
    except UserError as error:
        yield Failed(message=str(error))


def estimate_slice_duration(folder: Path, seconds: int) -> int:
    """Return the whole seconds of GPU time to ask ZeroGPU for, for a slice of a training."""
    return zerogpu.estimate_slice_seconds(read_run(RunFolder(folder)), seconds)


@spaces.GPU(duration=estimate_slice_duration)
def _train_on_lent_gpu(folder: Path, seconds: int) -> Generator[Event, None, None]:
    run = RunFolder(folder)
    try:
        with run.lock(), record_end(run, "the studio's"):
            yield from _run_exclusively(train(run, seconds))
    except UserError as error:
        yield Failed(message=str(error))


@call_log.count_events
def generate_on_gpu(
    cells: Sequence[Cell],
    previews: bool = False,
    feature_extractor: str | None = None,
    pictures: Sequence[Image] = (),
    probe: Probe | None = None,
) -> Iterator[Event]:
    """Make the cells' pictures with `core.generate.pipeline.generate`; an error is a last `Failed`.

    One job at a time has the model, to its very end: Gradio gives a stopped job's place away before
    the job has taken its LoRAs off. Downloads from the Hub come first. On ZeroGPU the job is split
    into as many calls as its time needs; a `probe`, which comes without cells, is one call.
    """
    requests = {cell.request for cell in cells} | set(probe.requests if probe else ())
    yield from downloads.report_downloads(_fetch_from_hub, requests, feature_extractor)
    if not is_zerogpu():
        yield from _generate_on_lent_gpu(cells, previews, feature_extractor, pictures, probe)
        return
    missing, wanted = list(range(len(cells))), pictures

    def run_job(max_seconds: int) -> Iterator[Event]:
        nonlocal wanted
        for part in list(zerogpu.split_into_calls(cells, missing, feature_extractor, max_seconds)):
            finished = len(cells) - len(missing)
            with contextlib.closing(
                _generate_on_lent_gpu(
                    [cells[i] for i in part], previews, feature_extractor, wanted, probe, max_seconds
                )
            ) as events:
                for event in events:
                    if cells and isinstance(event, Step | Picture):
                        event = zerogpu.renumber_event(event, part, cells, finished, feature_extractor)
                    if isinstance(event, Picture):
                        missing.remove(event.index)
                    yield event
                    if isinstance(event, Failed):
                        return
            wanted = ()

    def describe_finished() -> str:
        done = len(cells) - len(missing)
        if probe:
            return "Press the button again."
        if feature_extractor:
            return (
                f"Finished images are kept, now {done} more of {len(cells)}. "
                "Press the button again to continue."
            )
        return (
            f"{f'Finished images are kept, {done} of {len(cells)}' if done else 'Nothing was finished'}. "
            "Press Generate again."
        )

    yield from _request_gpu(run_job, describe_finished)


@call_log.count_events
def train_slice(folder: Path, seconds: int = SLICE_SECONDS) -> Iterator[Event]:
    """Train a slice of a run where no separate process can have the GPU: continue, save and end.

    Ends with `Failed` if the run cannot go on or the GPU is not available. The run's state is in
    its folder.
    """
    run = RunFolder(folder)

    yield from downloads.report_downloads(bases.fetch_model, read_run(run).model)

    def run_job(max_seconds: int) -> Iterator[Event]:
        yield from _train_on_lent_gpu(folder, min(seconds, max_seconds - SECONDS_TO_START))

    def describe_finished() -> str:
        return f"The run is saved at step {run.find_last_step()}. Press Continue to resume."

    yield from _request_gpu(run_job, describe_finished)


def _fetch_from_hub(requests: set[Request], feature_extractor: str | None) -> None:
    """Download everything the job needs from the Hub, before a GPU is requested.

    If something is not available, the job itself reports that or does without it.
    """
    wanted = [("eye", feature_extractor)] if feature_extractor in tools.list_tools("eye") else []
    for request in requests:
        wanted += [("upscaler", request.hires.upscaler)] if request.hires else []
        wanted += [("detector", request.detail.detector)] if request.detail else []
    with contextlib.suppress(UserError):
        for name in sorted({request.model for request in requests}):
            bases.fetch_model(name)
        for kind, name in dict.fromkeys(wanted):
            if is_hub_name(name) or name in tools.list_tools(kind):
                tools.fetch_tool(kind, str(name))


def _request_gpu(
    run_job: Callable[[int], Iterator[Event]], describe_finished: Callable[[], str]
) -> Iterator[Event]:
    """Yield the events of a job that requests a GPU for at most `MAX_CALL_SECONDS` at once.

    If that is too long for ZeroGPU, the job runs once more with half as many seconds. An error of
    ZeroGPU or its process is the last event: a `Failed` that says what is kept and what to press.
    """
    try:
        try:
            yield from run_job(MAX_CALL_SECONDS)
        except Exception as error:
            if not zerogpu.is_call_too_long(error):
                raise
            yield from run_job(MAX_CALL_SECONDS // 2)
    except UserError as error:
        yield Failed(message=str(error))
    except Exception as error:
        if not is_zerogpu():
            raise
        log.warning("the GPU was not available, or was taken away", exc_info=error)
        yield Failed(
            message=f"{zerogpu.explain_gpu_error(error)} {describe_finished()}", gpu_unavailable=True
        )


def _run_exclusively(events: Generator[Event, None, None]) -> Iterator[Event]:
    """Yield the events of a job that has the model to its very end, each made on torch's thread.

    Afterwards the model's weights are verified to be as they were.
    """
    with model_lock:
        try:
            while (event := run_on_torch_thread(next, events, None)) is not None:
                yield event
                shutdown.check_shutdown()
        finally:
            try:
                run_on_torch_thread(events.close)
            finally:
                run_on_torch_thread(bases.verify_weights)


def inspect_with_model(lora_file: LoraFile) -> dict[str, Any]:
    """Describe a LoRA file and the size of its change relative to the loaded model's weights.

    If the change could not be measured, the description says why.
    """
    why = "The GPU is only available inside a job" if is_zerogpu() else "A job is using the model"
    with translate_out_of_memory(
        "lora",
        f"{lora_file.path.name} does not fit into this machine's memory beside the model, "
        "so its change was not measured.",
    ):
        return run_if_idle(
            lambda: lora.describe_lora_file(lora_file, bases.get_current_pipeline())
        ) or lora.describe_lora_file(lora_file, None, why)
