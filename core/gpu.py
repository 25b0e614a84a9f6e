"""The one door to the GPU. The only importer of `spaces`, which must come before torch.

On ZeroGPU the decorated generator runs in a forked process that is lent a GPU for the call:
arguments and events are pickled, and an exception would reach the person as its class name
only, so a sentence for the person travels as `Failed`. Elsewhere the decorator does nothing.
"""

import spaces  # isort: skip  (before anything that imports torch)

import math
from collections.abc import Iterator, Sequence

from core.generate import generate
from core.types import Cell, Event, Failed, UserError

SECONDS_PER_MEGAPIXEL_STEP = 0.08
"""Of SDXL with guidance on ZeroGPU's half card; generous, since an overrun call is killed."""
SECONDS_TO_START = 15
LONGEST = 120
"""Seconds that a visitor may ask for at once."""


def duration(cells: Sequence[Cell], previews: bool = False) -> int:
    """Whole seconds of GPU time to ask ZeroGPU for."""
    work = sum(r.steps * r.width * r.height / 1e6 for r in (cell.request for cell in cells))
    return min(LONGEST, math.ceil(SECONDS_TO_START + SECONDS_PER_MEGAPIXEL_STEP * work))


@spaces.GPU(duration=duration)
def run(cells: Sequence[Cell], previews: bool = False) -> Iterator[Event]:
    """Make the cells' pictures: `core.generate.generate`, with what went wrong as a last `Failed`."""
    try:
        yield from generate(cells, previews=previews)
    except UserError as error:
        yield Failed(message=str(error))
