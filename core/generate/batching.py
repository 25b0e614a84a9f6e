"""Decide which cells go through the model together.

That depends on how many fit, and on whether it is faster if pictures of different strengths share a
pass.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from diffusers import StableDiffusionXLPipeline

from core.generate.stages import hires
from core.generate.stages.denoise import denoise
from core.lora import apply as lora
from core.prompts.conditioning import count_chunks
from core.prompts.grammar import split_parts
from core.schema.types import LoraUse, Request
from core.system.concurrency import BoundedDict
from core.system.device import GIB, detect_machine
from core.system.memory import is_out_of_memory

TIMED_STEPS = 2
"""Steps of a pass that are timed, after one that warms up."""


def group_into_batches(
    pipeline: StableDiffusionXLPipeline, requests: Sequence[Request], mixed_strengths: bool = False
) -> Iterator[list[int]]:
    """Yield the indices of one model's requests that go through it together, batch by batch.

    With `mixed_strengths`, requests of a batch may have different LoRA strengths.
    """
    alike: dict[tuple, list[int]] = defaultdict(list)
    for i, r in enumerate(requests):
        details_of = (
            r.detail is None,
            r.detail and r.detail.lora_strength,
        )  # regions are denoised by themselves
        worn = tuple(_lora_key(use) for use in r.loras) if mixed_strengths else r.lora_uses
        alike[
            worn,
            r.width,
            r.height,
            r.steps,
            r.sampler,
            r.schedule,
            r.cfg_rescale,
            r.is_guided,
            r.clip_skip,
            _describe_hires(pipeline, r),
            details_of,
            len(split_parts(r.prompt)),
            count_chunks(pipeline.tokenizer, r),
        ].append(i)
    for indices in alike.values():
        first = requests[indices[0]]
        size = batch_size(*hires.output_size(first)) // len(split_parts(first.prompt))
        yield from split_evenly(indices, max(1, size))


def _describe_hires(pipeline: StableDiffusionXLPipeline, request: Request) -> tuple | None:
    """Return what requests of a batch have in common in their second pass; `None` without one."""
    if request.hires is None:
        return None
    (larger,) = hires.build_hires_requests([request])
    chunks = count_chunks(pipeline.tokenizer, larger)
    parts = len(split_parts(larger.prompt))
    return request.hires, request.hires_loras, larger.is_guided, parts, chunks


def split_evenly(indices: Sequence[int], max_size: int) -> Iterator[list[int]]:
    """Yield parts of nearly the same size: 9 by at most 8 gives 5 and 4.

    A single one left over would take a pass of its own.
    """
    parts = -(-len(indices) // max_size)
    size = -(-len(indices) // parts)
    yield from (list(indices[i : i + size]) for i in range(0, len(indices), size))


def batch_size(width: int, height: int) -> int:
    """Number of pictures of this size (pixels) that fit beside the model, at most 8.

    A picture of 1024 x 1024 takes 2 GiB.
    """
    free = max(detect_machine().memory - 8 * GIB, 0)
    return max(1, min(8, int(free / (2 * GIB * width * height / 1024**2))))


def is_mixed_faster(
    pipeline: StableDiffusionXLPipeline, requests: Sequence[Request], applied: lora.AppliedLoras
) -> bool:
    """Whether pictures of different strengths are faster in one pass than strength by strength.

    One pass then has a strength for each sample. Both ways are timed on this device, once for each
    kind of batch. False for LoRAs that change a text encoder, for details, which have a strength of
    their own, and if such a pass does not fit into memory.
    """
    if applied.has_text_encoder_deltas or any(r.detail for r in requests):
        return False
    apart, mixed = (
        [len(part) for part in group_into_batches(pipeline, requests, how)] for how in (False, True)
    )
    if len(mixed) >= len(apart):
        return False
    first = requests[0]
    plain = replace(first, steps=1 + TIMED_STEPS, hires=None)
    kind = (
        applied.cost_key,
        tuple(pipeline.unet.config.block_out_channels),
        first.width,
        first.height,
        first.is_guided,
    )

    def time_step(size: int, each: bool) -> float:
        key = (*kind, size, each)
        if (found := _step_seconds.get(key)) is None:
            applied.set_strengths(
                [[replace(use, strength=1 + each * i / 100) for use in first.lora_uses] for i in range(size)]
            )
            marks = [time.perf_counter() for _ in denoise(pipeline, [plain] * size)]
            found = _step_seconds[key] = (marks[-1] - marks[0]) / TIMED_STEPS
        return found

    try:
        return sum(time_step(size, True) for size in mixed) < sum(time_step(size, False) for size in apart)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False


# Seconds of a step by shapes, size and kind of batch.
_step_seconds: BoundedDict[tuple, float] = BoundedDict(256)


def _lora_key(use: LoraUse) -> tuple:
    return use.path, use.blocks
