"""A GPU that is lent by the second: how many to ask for, what goes into one call, and what is said where it is not lent."""

import math
import re
from collections.abc import Iterator, Sequence
from pickle import PicklingError

from core import models
from core.events import Picture, Step
from core.generate import planned
from core.train.preview import preset, strengths
from core.train.run import Run
from core.types import Cell

SECONDS_PER_MEGAPIXEL_STEP = 0.08
"""Of SDXL with guidance on ZeroGPU's half card; generous, since an overrun call is killed."""
SECONDS_PER_LOOK = 0.5
"""Of a picture through the VAE and back, or another eye."""
SECONDS_TO_START = 15
SECONDS_TO_LOAD = 60
"""Of a model that is not loaded yet, from its file."""
LONGEST = 120
"""Seconds that a visitor may ask for at once."""


def of_run(cells: Sequence[Cell], eye: str | None, pictures: int, most: int) -> int:
    """Whole seconds of a call that makes these cells and looks at so many pictures.

    What a worker has loaded is not known here; every one begins with the model that the app began with.
    """
    fresh = {cell.request.model for cell in cells} - {models.loaded()}
    work = sum(_seconds(cell, eye) for cell in cells) + SECONDS_PER_LOOK * pictures
    return min(most, math.ceil(SECONDS_TO_START + SECONDS_TO_LOAD * len(fresh) + work))


def of_lesson(run: Run, seconds: int) -> int:
    """Whole seconds of a slice that trains for `seconds`, its model's loading among them, and may have previews to make at its end."""
    look, made = preset(run.model), run.settings
    pictures = len(run.prompts) * len(strengths(run)) if made.preview_every else 0
    work = pictures * look.steps * look.width * look.height / 1e6
    return min(LONGEST, math.ceil(SECONDS_TO_START + seconds + SECONDS_PER_MEGAPIXEL_STEP * work))


def parts(cells: Sequence[Cell], wanted: Sequence[int], eye: str | None, most: int) -> Iterator[list[int]]:
    """The wanted cells' places, call by call: of one model, those with the same LoRAs together, as many as `most` seconds hold and at least one."""
    part: list[int] = []
    left = 0.0
    for i in sorted(wanted, key=lambda i: (cells[i].request.model, [use.path for use in cells[i].request.loras])):
        model, seconds = cells[i].request.model, _seconds(cells[i], eye)
        if part and (model != cells[part[-1]].request.model or seconds > left):
            yield part
            part = []
        if not part:
            left = most - SECONDS_TO_START - SECONDS_TO_LOAD * (model != models.loaded())
        part.append(i)
        left -= seconds
    yield part


def placed(event: Step | Picture, part: Sequence[int], cells: Sequence[Cell], finished: int, eye: str | None) -> Step | Picture:
    """An event of one call as one of the whole job, of which `finished` pictures were made by the calls before."""
    if isinstance(event, Picture):
        return Picture(**{**vars(event), "index": part[event.index]})
    share = 1 - (finished + len(part)) / len(cells)
    later = share * sum(_seconds(cell, eye) for cell in cells)
    return Step(**{**vars(event), "pictures_done": event.pictures_done + finished, "pictures": len(cells), "seconds_left": event.seconds_left + later})


def _seconds(cell: Cell, eye: str | None) -> float:
    return SECONDS_PER_MEGAPIXEL_STEP * planned(cell.request) / 1e6 + SECONDS_PER_LOOK * (eye is not None)


# --- what ZeroGPU says, as `spaces` raises it: gr.Error with a title and a message ------------------


def is_too_long(error: Exception) -> bool:
    """Whether more seconds were asked for than this visitor may have at once."""
    return getattr(error, "title", None) == "ZeroGPU illegal duration"


def sentence(error: Exception) -> str:
    """Why the GPU was not lent, or was taken away, as a person reads it."""
    title, message = getattr(error, "title", ""), str(getattr(error, "message", error))
    match title:
        case "ZeroGPU quota exceeded":
            return _quota(message)
        case "ZeroGPU pending credits exceeded":
            return "Too many of your ZeroGPU jobs run at once: wait until one has ended."
        case "ZeroGPU illegal duration":
            asked = re.search(r"\((\d+)s\)", message)
            return f"ZeroGPU does not lend its GPU for {asked[1] if asked else 'so many'} s at once."
        case "ZeroGPU queue timeout":
            return "No GPU was free within 60 s: try again later."
        case "ZeroGPU worker error" if message == "GPU task aborted":
            return "The GPU was taken away before the work was done: its time was over, or its process died."
        case "ZeroGPU worker error":
            return f"The work broke off on the GPU ({message}), which is a mistake of the studio."
    if isinstance(error, PicklingError):
        return "The job could not be handed to the GPU's process (PicklingError), which is a mistake of the studio."
    return f"ZeroGPU did not answer as it should ({message if title else type(error).__name__}): try again later."


def _quota(message: str) -> str:
    if numbers := re.search(r"\((\d+)s requested vs\. (-?\d+)s left\)", message):
        again = re.search(r"Try again in ([^.]+)\.", message)
        when = f": try again in {again[1]}" if again else ""
        return f"Your ZeroGPU quota does not reach: {numbers[1]} s are asked for and {max(0, int(numbers[2]))} s are left{when}."
    if message.startswith("You have"):
        return "Your ZeroGPU quota is used up: try again later."
    return "ZeroGPU lends nothing to a Space that has reached its limit and nobody to ask for: ask from the page, or sign in."
