"""Cells -> pictures: base, hires, details and grain, as one generator of events.

Cells that can share a forward pass are denoised together, in every stage.
"""

import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from core import details, hires, limits, lora, models, together
from core.denoise import Moment, decode, denoise
from core.device import this_machine
from core.encode import chunks_of
from core.events import Event, Loaded, Look, Opening, Picture, Seen, Step
from core.features import VAE, looks, opened
from core.grain import grained
from core.memory import enough_memory, ran_out_of_memory, release
from core.types import Cell, Request, UserError

PREVIEWS = 8
"""Previews in a run."""
SPARED = "Memory ran out on the way: this picture was made alone, by a VAE and an upscaler in smaller tiles."
PREVIEW_LATENTS = 32
"""Longest side of a preview in latents: a preview costs a VAE decode of at most 256 x 256 pixels."""


def generate(cells: Sequence[Cell], *, previews: bool = False, eye: str | None = None, pictures: Sequence[Image.Image] = ()) -> Generator[Event, None, None]:
    """Make every cell's picture: a `Step` after each denoising step, a `Picture` for each cell, `Loaded` for a model that was not there.

    The cells of one batch come together, in the order of the cells. Closing the generator
    stops the work within one step. With an `eye`, pictures come with its `Look` at them, and those
    without a LoRA with an echo; `pictures` are looked at with the first cell's model, a `Seen` each.
    When memory runs out, the batch and all after it are made picture by picture and in smaller tiles; a note says so.
    Raises `UserError` for a model that cannot be had and when memory runs out again.
    """
    for request in {cell.request for cell in cells}:
        limits.check(request)
        _ready(request)
    clock = Clock(cells)
    if eye and eye != VAE:
        with enough_memory(f"This machine ran out of memory for {eye}: measure by the {VAE} instead."):
            opened(eye)  # before any work
    if pictures:
        assert eye
        pipeline = yield from _loaded(cells[0].request.model)
        for i, picture in enumerate(pictures):
            with enough_memory(f"This machine ran out of memory: take smaller reference pictures than {picture.width} x {picture.height}."):
                seen = looks(pipeline, [picture], eye)[0]
            yield Seen(index=i, look=seen)
    alike: dict[tuple, list[int]] = defaultdict(list)
    for i, cell in enumerate(cells):
        alike[cell.request.model, tuple(use.path for use in cell.request.loras)].append(i)
    for (name, paths), indices in sorted(alike.items()):  # each model is needed once, and each set of LoRAs
        pipeline = yield from _loaded(name)
        under_way = [cells[i].request for i in indices]
        applied = lora.loaded(pipeline, under_way[0].loras) if paths else nullcontext()
        with enough_memory(lambda asked=under_way: f"This machine ran out of memory: lower {_lower(asked)}. What was finished stays."), applied as worn:
            yield from _group(pipeline, [(i, cells[i]) for i in indices], under_way, worn, clock, previews, eye)


def _group(
    pipeline: StableDiffusionXLPipeline,
    group: Sequence[tuple[int, Cell]],
    under_way: list[Request],
    worn: lora.Loaded | None,
    clock: "Clock",
    previews: bool,
    eye: str | None,
) -> Iterator[Event]:
    """Cells of one model and one set of LoRAs, with their places in the job, batch by batch; `under_way` is kept to the batch that is made."""
    requests = [cell.request for _, cell in group]
    mixed = worn is not None and together.is_faster(pipeline, requests, worn)
    todo, sparing = deque(together.batches(pipeline, requests, mixed)), False
    with ExitStack() as least:
        while todo:
            batch = todo.popleft()
            under_way[:] = [requests[k] for k in batch]
            if worn:
                worn.set([r.loras for r in under_way])
            finished = yield from _tried(pipeline, under_way, worn, clock, previews, eye, sparing)
            if finished is None:
                least.enter_context(_least_memory(pipeline))
                todo, sparing = deque([k] for k in chain(batch, *todo)), True
                continue
            for k, (image, before, notes, seen) in zip(batch, finished, strict=True):
                clock.pictures_done += 1
                i, cell = group[k]
                yield Picture(index=i, cell=cell, image=image, before=before, notes=(*notes, SPARED) if sparing else notes, look=seen)


def _loaded(name: str) -> Generator[Opening | Loaded, None, StableDiffusionXLPipeline]:
    """The model, and words of it if it was not there already."""
    there = models.loaded() == name
    pipeline = yield from models.open_model(name)
    if not there:
        yield Loaded(model=name)
    return pipeline


@contextmanager
def _least_memory(pipeline: StableDiffusionXLPipeline) -> Iterator[None]:
    """No upscaler on the device but while it works, and the VAE in tiles; afterwards as it was."""
    hires.upscaler.cache_clear()
    release()
    tiling, pipeline.vae.use_tiling = pipeline.vae.use_tiling, True
    try:
        yield
    finally:
        pipeline.vae.use_tiling = tiling


def _ready(request: Request) -> None:
    """Open the tools that a request needs; raises `UserError` for one that cannot be had, before any work."""
    if request.hires and request.hires.upscaler not in (hires.LANCZOS, hires.LATENT):
        with enough_memory(f"This machine ran out of memory for the upscaler {request.hires.upscaler}: take {hires.LANCZOS}, or leave hires off."):
            hires.named(request.hires.upscaler)
    if request.detail:
        with enough_memory(f"This machine ran out of memory for the detector {request.detail.detector}: leave details off."):
            details.finder(request.detail.detector)


Finished = tuple[Image.Image, Image.Image | None, tuple[str, ...], Look | None]
"""A picture, what it was before hires and details, notes, and what is measured of it."""
Stage = Generator[Step, None, list[Finished]]


def _tried(
    pipeline: StableDiffusionXLPipeline, requests: list[Request], worn: lora.Loaded | None, clock: "Clock", previews: bool, eye: str | None, sparing: bool
) -> Generator[Step, None, list[Finished] | None]:
    """The stages of a batch; `None` where memory ran out and less may do, with nothing of the attempt kept."""
    done = clock.done
    try:
        return (yield from _stages(pipeline, requests, worn, clock, previews, eye, sparing))
    except Exception as error:
        if sparing or not ran_out_of_memory(error):
            raise
    clock.done = done
    return None


def _stages(
    pipeline: StableDiffusionXLPipeline, requests: list[Request], worn: lora.Loaded | None, clock: "Clock", previews: bool, eye: str | None, sparing: bool
) -> Stage:
    """A batch through the stages that it asks for; its requests ask for the same ones."""
    first = requests[0]
    latents = yield from _watched(pipeline, denoise(pipeline, requests), "base", requests, clock, previews)
    if not bool(torch.isfinite(latents).all()):
        raise UserError(_no_numbers(first))
    base, before = latents, (images := decode(pipeline, latents))
    if first.hires and first.hires.denoise == 0:
        images = [hires.enlarged(image, first.hires, hires.size(first), sparing) for image in images]
    elif first.hires:
        larger, start = hires.again(requests), hires.start(pipeline, requests, latents, images, sparing)
        images = decode(pipeline, (yield from _watched(pipeline, denoise(pipeline, larger, start, gone=first.steps), "hires", larger, clock, previews)))
    notes: Sequence[tuple[str, ...]] = [()] * len(images)
    if first.detail:
        if worn and first.detail.lora_strength is not None:
            worn.set([[replace(use, strength=first.detail.lora_strength, text_strength=None) for use in first.loras]])
        places, notes = details.places(images, requests, models.find(first.model).native_size)
        whole = images  # every place sees the picture as it was, so that what is beside it in a batch makes no difference
        for some in _alike(pipeline, places, sparing):
            asked, start = [place.request for place in some], details.start(pipeline, some, whole)
            latents = yield from _watched(pipeline, denoise(pipeline, asked, start), "detail", asked, clock, previews=False)
            images = details.pasted(images, some, decode(pipeline, latents))
    finished = [grained(image, r.grain, r.seed) if r.grain else image for image, r in zip(images, requests, strict=True)]
    changed = first.hires or first.detail
    seen = looks(pipeline, finished, eye, base, echo=not first.loras) if eye else [None] * len(finished)
    return list(zip(finished, before if changed else [None] * len(finished), notes, seen, strict=True))


def _alike(pipeline: StableDiffusionXLPipeline, places: Sequence[details.Place], sparing: bool) -> Iterator[list[details.Place]]:
    """Places that can be denoised together; each by itself where memory is spared."""
    alike: dict[tuple, list[details.Place]] = defaultdict(list)
    for place in places:
        r = place.request
        alike[r.width, r.height, r.steps, place.schedule, chunks_of(pipeline, r)].append(place)
    for (width, height, *_), group in alike.items():
        size = 1 if sparing else together.batch_size(width, height)
        yield from (group[i : i + size] for i in range(0, len(group), size))


class Clock:
    """How much of a job is done, in steps times pixels, and how long the rest may take."""

    def __init__(self, cells: Sequence[Cell]):
        self.pictures, self.pictures_done = len(cells), 0
        self.work, self.done = sum(planned(cell.request) for cell in cells), 0.0
        self.begin = time.monotonic()

    def seconds_left(self) -> float:
        share = min(1.0, self.done / self.work)
        return (time.monotonic() - self.begin) * (1 - share) / share


def planned(request: Request) -> float:
    """Steps times pixels of a request, taking one place for its details."""
    work = request.steps * request.width * request.height
    if request.hires and request.hires.denoise:
        width, height = hires.size(request)
        work += (request.hires.steps or request.steps) * width * height
    if request.detail:
        work += int((request.detail.steps or request.steps) * request.detail.denoise) * models.find(request.model).native_size ** 2
    return float(work)


def _watched(
    pipeline: StableDiffusionXLPipeline, moments: Iterator[Moment], stage: str, requests: Sequence[Request], clock: Clock, previews: bool
) -> Generator[Step, None, torch.Tensor]:
    """A `Step` after each step; returns the last latents."""
    of_one_step = len(requests) * requests[0].steps * requests[0].width * requests[0].height
    latents = torch.empty(0)
    for step, steps, latents, clean in moments:  # noqa: B007  (the last latents are returned)
        clock.done += of_one_step / steps
        look = previews and step % max(1, steps // PREVIEWS) == 0 and step < steps
        shown = tuple(decode(pipeline, shrunk(clean))) if look else ()
        yield Step(
            step=step,
            steps=steps,
            stage=stage,
            pictures_done=clock.pictures_done,
            pictures=clock.pictures,
            seconds_left=clock.seconds_left(),
            previews=shown,
        )
    return latents


def _no_numbers(request: Request) -> str:
    worn = "; lower the strength of its LoRAs, or leave them off" if request.loras else ", and so would all its pictures"
    return f"The picture became no numbers (NaN) with {models.find(request.model).title} in {str(this_machine().dtype).removeprefix('torch.')}{worn}."


def shrunk(latents: torch.Tensor) -> torch.Tensor:
    """Latents small enough for a preview."""
    longest = max(latents.shape[-2:])
    if longest <= PREVIEW_LATENTS:
        return latents
    return torch.nn.functional.interpolate(latents, scale_factor=PREVIEW_LATENTS / longest, mode="area")


def _lower(requests: Sequence[Request]) -> str:
    """The setting that takes the most memory."""
    if len(requests) > 1:
        return f"count ({len(requests)} at once)"
    if requests[0].hires:
        return f"the factor of hires ({requests[0].hires.factor:g})"
    return f"width and height ({requests[0].width} x {requests[0].height})"
