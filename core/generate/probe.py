"""Probe a LoRA before any picture is made: how much single calls of the U-Net change at which strength.

That places the strengths at which a LoRA begins to show and at which it breaks pictures more closely than the
size of its matrices: it sees which layers they change, and what these do with the prompts at hand.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import StableDiffusionXLPipeline

from core.generate.stages.denoise import DenoiseState, denoise, make_predictor
from core.lora import apply as lora
from core.schema.events import ModelChange, Step
from core.schema.types import Request

CAUGHT_SHARES = (0.25, 0.5)
"""Which calls of a picture are asked again, as shares of all of its calls.

In the first of them the layout is decided, in the second the drawing; later ones change least.
"""
LADDER_RATIO = 1.1
"""Each strength that can be tried is so many times the one before: ends are found to a tenth."""
LEAST_STRENGTH = 0.001
EXPECTED_STRENGTHS = 14
"""Strengths that a search tries: halving the ladder for one change, and from there for another."""


CallInput = tuple[torch.Tensor, torch.Tensor, int]
"""What a call of the U-Net gets: latents (1, 4, h, w) in its own scale, timestep, and the call's number."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is asked of one LoRA on one model."""

    requests: tuple[Request, ...]
    """Pictures whose first calls are asked again, all with the LoRA at the greatest strength that is allowed.

    That strength is negative where strengths below 0 are wanted.
    """
    changes: tuple[float, ...]
    """Relative changes, rising, whose strengths are wanted."""

    @property
    def limit(self) -> float:
        """The greatest strength, of whichever sign, that is allowed."""
        return self.requests[0].loras[0].strength


def estimate_probe_work(probe: Probe) -> float:
    """Return the work of a probe in steps times pixels, as `pipeline.estimate_work` that of a picture."""
    again = EXPECTED_STRENGTHS * len(CAUGHT_SHARES)
    return float(sum((1 + _pick_calls(r)[-1] + again) * r.width * r.height for r in probe.requests))


@torch.no_grad()
def run_probe(pipeline: StableDiffusionXLPipeline, probe: Probe) -> Iterator[Step | ModelChange]:
    """Yield the `ModelChange` of each strength that a search for the probe's changes tries.

    The change at a strength is the mean of |out(s) - out(0)| / |out(0)| over the requests and two calls of
    each, which get the latents of the picture at strength 0; out is the U-Net's guided prediction. The text
    encoders have the strength, too. A `Step` comes after each step towards these latents. Raises `UserError`
    if the LoRA does not fit the model.
    """
    uses = probe.requests[0].loras
    begin, work, done = time.monotonic(), estimate_probe_work(probe), 0.0
    with lora.apply_loras(pipeline, [use.off for use in uses]) as applied:
        inputs: list[list[CallInput]] = []
        for request in probe.requests:
            inputs.append([])
            for state in _catch_calls(pipeline, request, inputs[-1]):
                done += request.calls / request.steps * request.width * request.height
                yield Step(
                    step=state.step,
                    steps=state.steps,
                    stage="probe",
                    pictures_done=len(inputs) - 1,
                    pictures=len(probe.requests),
                    seconds_left=(time.monotonic() - begin) * max(0.0, work / done - 1),
                )

        def predict(strength: float) -> list[torch.Tensor]:
            applied.set_strengths([[replace(use, strength=strength) for use in uses]])
            found = []
            for request, calls in zip(probe.requests, inputs, strict=True):
                ask = make_predictor(pipeline, [request], request.calls)
                found += [ask(*call)[0] for call in calls]
            return found

        plain = predict(0.0)

        def measure(strength: float) -> float:
            pairs = zip(predict(strength), plain, strict=True)
            changes = [float((out - base).norm() / base.norm()) for out, base in pairs]
            change = sum(changes) / len(changes)
            return change if math.isfinite(change) else math.inf

        for strength, change in search_strengths(measure, probe.limit, probe.changes):
            yield ModelChange(strength=strength, change=change)


def search_strengths(
    measure: Callable[[float], float], limit: float, changes: Sequence[float]
) -> Iterator[tuple[float, float]]:
    """Yield strengths with what `measure` says of them, until two neighbours enclose each of `changes`.

    A bisection on a logarithmic scale: on the ladder of strengths from `LEAST_STRENGTH` to the limit in steps
    of `LADDER_RATIO`. The limit comes first; a change that it does not reach is not looked for. `limit` is
    negative for strengths below 0, and `changes` rise.
    """
    count = 1 + int(math.log(abs(limit) / LEAST_STRENGTH, LADDER_RATIO))
    ladder = [limit / LADDER_RATIO**step for step in reversed(range(count))]
    found = {count - 1: measure(limit)}
    yield limit, found[count - 1]
    for change in changes:
        below, above = -1, count - 1
        while found[count - 1] >= change and above - below > 1:
            middle = (below + above) // 2
            if middle not in found:
                found[middle] = measure(ladder[middle])
                yield ladder[middle], found[middle]
            below, above = (middle, above) if found[middle] < change else (below, middle)


def _catch_calls(
    pipeline: StableDiffusionXLPipeline, request: Request, caught: list[CallInput]
) -> Iterator[DenoiseState]:
    """Yield the first steps of a picture, and append to `caught` what its picked calls get."""
    picked, count = _pick_calls(request), itertools.count()

    def catch(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if (call := next(count)) in picked:
            caught.append((given[0][:1], given[1], call))  # each row of a guided call has the same latents

    hook = pipeline.unet.register_forward_pre_hook(catch)
    try:
        for state in denoise(pipeline, [request]):
            yield state
            if len(caught) == len(picked):
                return
    finally:
        hook.remove()


def _pick_calls(request: Request) -> list[int]:
    """Return which calls of a picture are asked again, rising, counted from 0."""
    return sorted({int(share * request.calls) for share in CAUGHT_SHARES})
