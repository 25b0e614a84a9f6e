"""Which cells go through the model together: how many fit, and whether pictures of different strengths share a pass."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from diffusers import StableDiffusionXLPipeline

from core import hires, lora
from core.denoise import denoise
from core.device import GIB, this_machine
from core.encode import chunks_of
from core.memory import ran_out_of_memory
from core.recent import Recent
from core.types import LoraUse, Request

TIMED_STEPS = 2
"""Of a pass that is timed, after one that warms up."""


def batches(pipeline: StableDiffusionXLPipeline, requests: Sequence[Request], mixed: bool = False) -> Iterator[list[int]]:
    """Indices of one model's requests that go through it together; `mixed` ones need not have the same strength."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for i, r in enumerate(requests):
        details_of = r.detail is None, r.detail and r.detail.lora_strength  # each place goes its own way
        worn = tuple(_but_strength(use) for use in r.loras) if mixed else r.loras
        alike[worn, r.width, r.height, r.steps, r.sampler, r.cfg > 1, r.clip_skip, r.hires, details_of, chunks_of(pipeline, r)].append(i)
    for indices in alike.values():
        yield from evenly(indices, batch_size(*hires.size(requests[indices[0]])))


def evenly(indices: Sequence[int], most: int) -> Iterator[list[int]]:
    """Parts of nearly one size: 9 by at most 8 are 5 and 4, since one left over would take a pass of its own."""
    parts = -(-len(indices) // most)
    size = -(-len(indices) // parts)
    yield from (list(indices[i : i + size]) for i in range(0, len(indices), size))


def batch_size(width: int, height: int) -> int:
    """Pictures of this size that fit beside the model: 2 GiB each at 1024 x 1024, at most 8."""
    free = max(this_machine().memory - 8 * GIB, 0)
    return max(1, min(8, int(free / (2 * GIB * width * height / 1024**2))))


def is_faster(pipeline: StableDiffusionXLPipeline, requests: Sequence[Request], worn: lora.Loaded) -> bool:
    """Whether pictures of different strengths are made faster in one pass, with a strength for each sample, than strength by strength.

    Timed on this device, once for each kind of batch. Never so for LoRAs that change the text, and with details, which
    have a strength of their own, or where such a pass does not fit into memory.
    """
    if worn.changes_text or any(r.detail for r in requests):
        return False
    apart, mixed = ([len(part) for part in batches(pipeline, requests, how)] for how in (False, True))
    if len(mixed) >= len(apart):
        return False
    first = requests[0]
    plain = replace(first, steps=1 + TIMED_STEPS, hires=None)
    kind = (worn.shape, tuple(pipeline.unet.config.block_out_channels), first.width, first.height, first.cfg > 1)

    def seconds(size: int, each: bool) -> float:
        key = (*kind, size, each)
        if (found := _timed.get(key)) is None:
            worn.set([[replace(use, strength=1 + each * i / 100) for use in first.loras] for i in range(size)])
            marks = [time.perf_counter() for _ in denoise(pipeline, [plain] * size)]
            found = _timed[key] = (marks[-1] - marks[0]) / TIMED_STEPS
        return found

    try:
        return sum(seconds(size, True) for size in mixed) < sum(seconds(size, False) for size in apart)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        return False


_timed: Recent[tuple, float] = Recent(256)  # seconds of a step by shapes, size and kind of batch


def _but_strength(use: LoraUse) -> tuple:
    return use.path, use.blocks
