"""Plan calls to a GPU that ZeroGPU lends by the second, and explain ZeroGPU's errors."""

import math
import re
from collections.abc import Iterator, Sequence
from pickle import PicklingError

from core.generate.pipeline import estimate_work
from core.generate.probe import Probe, estimate_probe_work
from core.models import bases
from core.models.preset_match import find_preset
from core.schema.events import Picture, Step
from core.schema.types import Cell, Request
from core.train.trainer.previews import list_preview_strengths
from core.train.trainer.run_record import Run

TRIED_WITH = "0.51.3"
"""The version of `spaces` whose errors and scheduler this file was tried with."""

SECONDS_PER_MEGAPIXEL_STEP = 0.08
"""For SDXL with guidance on ZeroGPU's half card; generous, since a call that overruns is killed."""
SECONDS_PER_FEATURES = 0.5
"""Seconds for a picture through the VAE and back, or through another feature extractor."""
SECONDS_TO_START = 15
SECONDS_TO_LOAD = 60
"""Seconds to load a model from its file."""
MAX_CALL_SECONDS = 120
"""Seconds that a visitor may request at once."""


def estimate_call_seconds(
    cells: Sequence[Cell],
    feature_extractor: str | None,
    pictures: int,
    probe: Probe | None,
    max_seconds: int,
) -> int:
    """Return the whole seconds of a call that makes these cells, measures pictures and runs a probe.

    `pictures` is the number of pictures to measure. Which model a worker has loaded is not known
    here; each one begins with the model that the app began with.
    """
    asked = probe.requests if probe else ()
    fresh = {request.model for request in (*asked, *(cell.request for cell in cells))}
    fresh -= {bases.get_loaded_name()}
    work = (
        sum(_estimate_cell_seconds(cell, feature_extractor) for cell in cells)
        + SECONDS_PER_FEATURES * pictures
        + SECONDS_PER_MEGAPIXEL_STEP * (estimate_probe_work(probe) / 1e6 if probe else 0)
    )
    return min(max_seconds, math.ceil(SECONDS_TO_START + SECONDS_TO_LOAD * len(fresh) + work))


def estimate_slice_seconds(run: Run, seconds: int) -> int:
    """Return the whole seconds of a slice that trains for `seconds`.

    Loading the model is part of `seconds`. Previews that the slice may have to make at its end are
    added.
    """
    look, made = find_preset(run.model), run.settings
    pictures = len(run.prompts) * len(list_preview_strengths(run)) if made.preview_every else 0
    work = pictures * look.steps * look.width * look.height / 1e6
    return min(MAX_CALL_SECONDS, math.ceil(SECONDS_TO_START + seconds + SECONDS_PER_MEGAPIXEL_STEP * work))


def split_into_calls(
    cells: Sequence[Cell], indices: Sequence[int], feature_extractor: str | None, max_seconds: int
) -> Iterator[list[int]]:
    """Split the cells at `indices` into calls and yield the indices of each.

    A call has cells of one model, sorted so that those with the same LoRAs come together: as many
    as fit into `max_seconds`, and at least one.
    """
    part: list[int] = []
    left = 0.0
    for i in sorted(indices, key=lambda i: _list_weights(cells[i].request)):
        model, seconds = cells[i].request.model, _estimate_cell_seconds(cells[i], feature_extractor)
        if part and (model != cells[part[-1]].request.model or seconds > left):
            yield part
            part = []
        if not part:
            left = max_seconds - SECONDS_TO_START - SECONDS_TO_LOAD * (model != bases.get_loaded_name())
        part.append(i)
        left -= seconds
    yield part


def _list_weights(request: Request) -> tuple[str, list[str]]:
    """Return the model, and the files of the LoRAs on it."""
    return request.model, [use.path for use in request.lora_uses]


def renumber_event(
    event: Step | Picture,
    indices: Sequence[int],
    cells: Sequence[Cell],
    pictures_done: int,
    feature_extractor: str | None,
) -> Step | Picture:
    """Turn an event of one call into one of the whole job.

    `indices` are the call's cells in the job; `pictures_done` pictures were made by earlier calls.
    """
    if isinstance(event, Picture):
        return Picture(**{**vars(event), "index": indices[event.index]})
    share = 1 - (pictures_done + len(indices)) / len(cells)
    later = share * sum(_estimate_cell_seconds(cell, feature_extractor) for cell in cells)
    return Step(
        **{
            **vars(event),
            "pictures_done": event.pictures_done + pictures_done,
            "pictures": len(cells),
            "seconds_left": event.seconds_left + later,
        }
    )


def _estimate_cell_seconds(cell: Cell, feature_extractor: str | None) -> float:
    return SECONDS_PER_MEGAPIXEL_STEP * estimate_work(cell.request) / 1e6 + SECONDS_PER_FEATURES * (
        feature_extractor is not None
    )


# --- ZeroGPU's errors, as `spaces` raises them: gr.Error with a title and a message ---------------


def is_call_too_long(error: Exception) -> bool:
    """Whether ZeroGPU refused because this visitor may not have so many seconds at once."""
    return getattr(error, "title", None) == "ZeroGPU illegal duration"


def explain_gpu_error(error: Exception) -> str:
    """Explain to a person why the GPU was not lent or was taken away."""
    title, message = getattr(error, "title", ""), str(getattr(error, "message", error))
    match title:
        case "ZeroGPU quota exceeded":
            return _explain_quota(message)
        case "ZeroGPU pending credits exceeded":
            return "Too many of your ZeroGPU jobs are running. Wait until one has ended."
        case "ZeroGPU illegal duration":
            asked = re.search(r"\((\d+)s\)", message)
            return f"ZeroGPU does not give {asked[1] if asked else 'so many'} s of GPU time at once."
        case "ZeroGPU queue timeout":
            return "No GPU was free within 60 s: try again later."
        case "ZeroGPU worker error" if message == "GPU task aborted":
            return "The GPU was taken away before the job was done: its time was up, or its process died."
        case "ZeroGPU worker error":
            return f"The job failed on the GPU ({message}). This is a bug in Sweetspot."
    if isinstance(error, PicklingError):
        return "The job could not be passed to the GPU's process (PicklingError). This is a bug in Sweetspot."
    return (
        f"ZeroGPU gave an unexpected answer ({message if title else type(error).__name__}): try again later."
    )


def _explain_quota(message: str) -> str:
    if numbers := re.search(r"\((\d+)s requested vs\. (-?\d+)s left\)", message):
        again = re.search(r"Try again in ([^.]+)\.", message)
        when = f": try again in {again[1]}" if again else ""
        return (
            f"Your ZeroGPU quota is too small: {numbers[1]} s are needed and "
            f"{max(0, int(numbers[2]))} s are left{when}."
        )
    if message.startswith("You have"):
        return "Your ZeroGPU quota is used up: try again later."
    return (
        "This Space has reached its ZeroGPU limit, and the request belongs to no account: "
        "use the page, or log in."
    )
