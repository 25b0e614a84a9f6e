"""Make pictures from cells: base, hires, details and grain, as one generator of events.

Cells that can share a forward pass are denoised together, in every stage.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from core.generate import batching
from core.generate.features import VAE, extract_features, load_feature_extractor
from core.generate.probe import Probe, run_probe
from core.generate.stages import details, hires, upscaler
from core.generate.stages.denoise import DenoiseState, decode, denoise
from core.generate.stages.grain import add_grain
from core.lora import apply as lora
from core.models import bases
from core.prompts.conditioning import count_chunks
from core.prompts.grammar import split_parts
from core.schema.errors import UserError
from core.schema.events import Event, Features, LoadProgress, ModelLoaded, Picture, ReferenceFeatures, Step
from core.schema.types import Cell, Detail, Hires, Request
from core.system.device import detect_machine
from core.system.memory import is_out_of_memory, release_memory, translate_out_of_memory

MAX_PREVIEWS = 8
"""Previews in one denoising pass."""
LOW_MEMORY_NOTE = (
    "Memory ran low: this image was made on its own, with smaller tiles for the VAE and the upscaler."
)
PREVIEW_LATENT_SIDE = 32
"""Longest side of a preview in latents: it costs a VAE decode of at most 256 x 256 pixels."""


class JobProgress:
    """Progress of a job, in steps times pixels, and an estimate of the time left."""

    def __init__(self, cells: Sequence[Cell]):
        self.pictures, self.pictures_done = len(cells), 0
        self.total_work, self.work_done = sum(estimate_work(cell.request) for cell in cells), 0.0
        self.start_time = time.monotonic()

    def seconds_left(self) -> float:
        """Estimate the time left from the pace so far; some work must be done already."""
        share = min(1.0, self.work_done / self.total_work)
        return (time.monotonic() - self.start_time) * (1 - share) / share


@dataclass(frozen=True, kw_only=True)
class PictureJob:
    """What all batches of one model and one set of LoRAs are made with."""

    pipeline: StableDiffusionXLPipeline
    applied: lora.AppliedLoras | None
    progress: JobProgress
    previews: bool
    feature_extractor: str | None
    low_memory: bool = False
    """Whether memory ran out: pictures are made one by one, in smaller tiles."""


def generate(
    cells: Sequence[Cell],
    *,
    previews: bool = False,
    feature_extractor: str | None = None,
    pictures: Sequence[Image.Image] = (),
    probe: Probe | None = None,
) -> Generator[Event, None, None]:
    """Make every cell's picture.

    Yields a `Step` after each denoising step, a `Picture` for each cell, and `ModelLoaded` for a
    model that was not loaded yet. The cells of one batch come together, in the order of the cells.
    Closing the generator stops the work within one step.

    With a `feature_extractor`, each `Picture` has its `Features`, and one without a LoRA also those
    of the VAE round trip. The reference `pictures` are measured with the first cell's model, and
    each yields `ReferenceFeatures`. A `probe` yields a `ModelChange` for each strength that it tries.

    When memory runs out, that batch and all after it are made picture by picture and in smaller
    tiles, and a note says so. Raises `UserError` for a model that is not available, and when memory
    runs out again.
    """
    for request in {cell.request for cell in cells}:
        _load_stage_tools(request)
    progress = JobProgress(cells)
    if feature_extractor and feature_extractor != VAE:
        with translate_out_of_memory(
            None,
            f"This machine ran out of memory for {feature_extractor}: use the {VAE} as feature extractor "
            "instead.",
        ):
            load_feature_extractor(feature_extractor)  # before any work
    if pictures:
        assert feature_extractor
        yield from _measure_references(cells[0].request.model, pictures, feature_extractor)
    if probe:
        pipeline = yield from _load_model(probe.requests[0].model)
        costly = _find_costliest_setting(probe.requests[:1])
        with translate_out_of_memory(None, f"This machine ran out of memory: lower {costly}."):
            yield from run_probe(pipeline, probe)
    alike: dict[tuple, list[int]] = defaultdict(list)
    for i, cell in enumerate(cells):
        alike[cell.request.model, tuple(use.path for use in cell.request.lora_uses)].append(i)
    for (name, paths), indices in sorted(alike.items()):  # each model and set of LoRAs once
        pipeline = yield from _load_model(name)
        under_way = [cells[i].request for i in indices]
        applying = lora.apply_loras(pipeline, under_way[0].lora_uses) if paths else nullcontext()
        with (
            translate_out_of_memory(
                None,
                lambda asked=under_way: (
                    f"This machine ran out of memory: lower {_find_costliest_setting(asked)}. "
                    "Finished images are kept."
                ),
            ),
            applying as applied,
        ):
            job = PictureJob(
                pipeline=pipeline,
                applied=applied,
                progress=progress,
                previews=previews,
                feature_extractor=feature_extractor,
            )
            yield from _generate_group(job, [(i, cells[i]) for i in indices], under_way)


def _measure_references(
    model: str, pictures: Sequence[Image.Image], feature_extractor: str
) -> Iterator[LoadProgress | ModelLoaded | ReferenceFeatures]:
    """Yield the `ReferenceFeatures` of each reference picture, measured with the model."""
    pipeline = yield from _load_model(model)
    for i, picture in enumerate(pictures):
        with translate_out_of_memory(
            None,
            "This machine ran out of memory: use smaller reference images than "
            f"{picture.width} x {picture.height}.",
        ):
            seen = extract_features(pipeline, [picture], feature_extractor)[0]
        yield ReferenceFeatures(index=i, features=seen)


def _generate_group(
    job: PictureJob, group: Sequence[tuple[int, Cell]], under_way: list[Request]
) -> Iterator[Event]:
    """Make the cells of one model and one set of LoRAs, batch by batch.

    `group` has each cell with its index in the job. `under_way` always holds the requests of the
    current batch.
    """
    requests = [cell.request for _, cell in group]
    mixed = job.applied is not None and batching.is_mixed_faster(job.pipeline, requests, job.applied)
    todo = deque(batching.group_into_batches(job.pipeline, requests, mixed))
    with ExitStack() as least:
        while todo:
            batch = todo.popleft()
            under_way[:] = [requests[k] for k in batch]
            if job.applied:
                job.applied.set_strengths([r.lora_uses for r in under_way])
            finished = yield from _try_stages(job, under_way)
            if finished is None:
                least.enter_context(_use_low_memory(job.pipeline))
                todo, job = deque([k] for k in chain(batch, *todo)), replace(job, low_memory=True)
                continue
            for k, (image, before, notes, seen) in zip(batch, finished, strict=True):
                job.progress.pictures_done += 1
                i, cell = group[k]
                yield Picture(
                    index=i,
                    cell=cell,
                    image=image,
                    before=before,
                    notes=(*notes, LOW_MEMORY_NOTE) if job.low_memory else notes,
                    features=seen,
                )


def _load_model(name: str) -> Generator[LoadProgress | ModelLoaded, None, StableDiffusionXLPipeline]:
    """Return the model's pipeline, and yield `ModelLoaded` if another model was loaded before."""
    there = bases.get_loaded_name() == name
    pipeline = yield from bases.open_model(name)
    if not there:
        yield ModelLoaded(model=name)
    return pipeline


@contextmanager
def _use_low_memory(pipeline: StableDiffusionXLPipeline) -> Iterator[None]:
    """Drop cached upscalers, and tile the VAE until the end of the `with` block."""
    upscaler.load_upscaler.cache_clear()
    release_memory()
    tiling, pipeline.vae.use_tiling = pipeline.vae.use_tiling, True
    try:
        yield
    finally:
        pipeline.vae.use_tiling = tiling


def _load_stage_tools(request: Request) -> None:
    """Open the tools that a request needs, before any work.

    Raises `UserError` for a tool that is not available.
    """
    if request.hires and request.hires.upscaler not in (hires.LANCZOS, hires.LATENT):
        with translate_out_of_memory(
            None,
            f"This machine ran out of memory for the upscaler {request.hires.upscaler}: use "
            f"{hires.LANCZOS}, or turn hires off.",
        ):
            hires.find_upscaler(request.hires.upscaler)
    if request.detail:
        with translate_out_of_memory(
            None,
            f"This machine ran out of memory for the detector {request.detail.detector}: turn details off.",
        ):
            details.find_detector(request.detail.detector)


FinishedPicture = tuple[Image.Image, Image.Image | None, tuple[str, ...], Features | None]
"""A picture, its version before hires and details, notes, and its features."""


def _try_stages(
    job: PictureJob, requests: list[Request]
) -> Generator[Step, None, list[FinishedPicture] | None]:
    """Run the stages of a batch; return `None` if memory ran out and low memory mode may help.

    Nothing of a failed attempt is kept.
    """
    done = job.progress.work_done
    try:
        return (yield from _run_stages(job, requests))
    except Exception as error:
        if job.low_memory or not is_out_of_memory(error):
            raise
    job.progress.work_done = done
    return None


def _run_stages(job: PictureJob, requests: list[Request]) -> Generator[Step, None, list[FinishedPicture]]:
    """Run a batch through the stages of its requests, which all ask for the same ones."""
    first = requests[0]
    states = denoise(job.pipeline, requests, on_step=_follow_steps(job, requests))
    latents = yield from _report_steps(job, states, "base", requests)
    if job.applied:  # a LoRA of a part of the steps is whole again, as A1111 loads it for a second pass
        job.applied.set_strengths([r.lora_uses for r in requests])
    if not bool(torch.isfinite(latents).all()):
        raise UserError(None, _describe_nan(first))
    before = images = decode(job.pipeline, latents)
    if first.hires:
        images = yield from _enlarge_images(job, requests, first.hires, latents, images)
    notes: Sequence[tuple[str, ...]] = [()] * len(images)
    if first.detail:
        images, notes = yield from _redraw_details(job, requests, first.detail, images)
    finished = [
        add_grain(image, r.grain, r.seed) if r.grain else image
        for image, r in zip(images, requests, strict=True)
    ]
    changed = first.hires or first.detail
    seen = (
        extract_features(
            job.pipeline, finished, job.feature_extractor, latents, vae_roundtrip=not first.lora_uses
        )
        if job.feature_extractor
        else [None] * len(finished)
    )
    return list(zip(finished, before if changed else [None] * len(finished), notes, seen, strict=True))


def _enlarge_images(
    job: PictureJob, requests: list[Request], asked: Hires, latents: torch.Tensor, images: list[Image.Image]
) -> Generator[Step, None, list[Image.Image]]:
    """Run the hires stage: enlarge the images and, unless its denoise is 0, denoise them again."""
    first = requests[0]
    if asked.denoise == 0:
        return [
            hires.enlarge_picture(image, asked, hires.output_size(first), job.low_memory) for image in images
        ]
    larger = hires.build_hires_requests(requests)
    if job.applied:
        job.applied.set_strengths([r.hires_lora_uses for r in requests])
    start = hires.prepare_hires_start(job.pipeline, requests, latents, images, job.low_memory)
    states = denoise(job.pipeline, larger, start, steps_before=first.steps)
    return decode(job.pipeline, (yield from _report_steps(job, states, "hires", larger)))


def _redraw_details(
    job: PictureJob, requests: list[Request], asked: Detail, images: list[Image.Image]
) -> Generator[Step, None, tuple[list[Image.Image], Sequence[tuple[str, ...]]]]:
    """Run the detail stage: denoise what the detector finds, and return the images with notes."""
    first = requests[0]
    places, notes = details.find_detail_regions(images, requests, bases.find_model(first.model).native_size)
    # Every region sees the picture as it was, so that its neighbours in a batch do not matter.
    whole = images
    for some in _group_regions(job.pipeline, places, job.low_memory):
        regions = [place.request for place in some]
        if job.applied:
            job.applied.set_strengths([regions[0].loras])
        start = details.prepare_detail_start(job.pipeline, some, whole)
        states = denoise(job.pipeline, regions, start)
        latents = yield from _report_steps(replace(job, previews=False), states, "detail", regions)
        images = details.paste_regions(images, some, decode(job.pipeline, latents))
    return images, notes


def _group_regions(
    pipeline: StableDiffusionXLPipeline, regions: Sequence[details.DetailRegion], low_memory: bool
) -> Iterator[list[details.DetailRegion]]:
    """Yield regions that can be denoised together; with `low_memory`, each by itself."""
    alike: dict[tuple, list[details.DetailRegion]] = defaultdict(list)
    for place in regions:
        r = place.request
        parts, chunks = len(split_parts(r.prompt)), count_chunks(pipeline.tokenizer, r)
        alike[r.width, r.height, r.steps, place.schedule_steps, parts, chunks, r.loras].append(place)
    for (width, height, *_), group in alike.items():
        size = 1 if low_memory else batching.batch_size(width, height)
        yield from (group[i : i + size] for i in range(0, len(group), size))


def estimate_work(request: Request) -> float:
    """Return a request's steps times pixels, counting one region for its details."""
    work = request.steps * request.width * request.height
    if request.hires and request.hires.denoise:
        width, height = hires.output_size(request)
        work += (request.hires.steps or request.steps) * width * height
    if request.detail:
        work += (
            int((request.detail.steps or request.steps) * request.detail.denoise)
            * bases.find_model(request.model).native_size ** 2
        )
    return float(work)


def _report_steps(
    job: PictureJob, states: Iterator[DenoiseState], stage: str, requests: Sequence[Request]
) -> Generator[Step, None, torch.Tensor]:
    """Yield a `Step` after each denoising step, and return the last latents."""
    of_one_step = len(requests) * requests[0].steps * requests[0].width * requests[0].height
    latents = torch.empty(0)
    for step, steps, latents, clean in states:  # noqa: B007  (the last latents are returned)
        job.progress.work_done += of_one_step / steps
        look = job.previews and step % max(1, steps // MAX_PREVIEWS) == 0 and step < steps
        shown = tuple(decode(job.pipeline, shrink_latents(clean))) if look else ()
        yield Step(
            step=step,
            steps=steps,
            stage=stage,
            pictures_done=job.progress.pictures_done,
            pictures=job.progress.pictures,
            seconds_left=job.progress.seconds_left(),
            previews=shown,
        )
    return latents


def _follow_steps(job: PictureJob, requests: list[Request]) -> Callable[[int], None] | None:
    """Return what sets the LoRAs that apply to a part of the steps; `None` if there is none."""
    applied, samples = job.applied, [r.lora_uses for r in requests]
    if applied is None or all(use.start is None and use.stop is None for uses in samples for use in uses):
        return None
    return lambda step: applied.set_strengths([[use.at_step(step) for use in uses] for uses in samples])


def _describe_nan(request: Request) -> str:
    worn = (
        "; lower the strength of its LoRAs, or turn them off"
        if request.loras
        else ", and so would all its images"
    )
    return (
        f"The image became NaN with {bases.find_model(request.model).title} in "
        f"{str(detect_machine().dtype).removeprefix('torch.')}{worn}."
    )


def shrink_latents(latents: torch.Tensor) -> torch.Tensor:
    """Shrink latents to at most `PREVIEW_LATENT_SIDE` a side for a preview."""
    longest = max(latents.shape[-2:])
    if longest <= PREVIEW_LATENT_SIDE:
        return latents
    return torch.nn.functional.interpolate(latents, scale_factor=PREVIEW_LATENT_SIDE / longest, mode="area")


def _find_costliest_setting(requests: Sequence[Request]) -> str:
    """Return the setting that takes the most memory, with its value."""
    if len(requests) > 1:
        return f"count ({len(requests)} at once)"
    if requests[0].hires:
        return f"the hires factor ({requests[0].hires.factor:g})"
    return f"width and height ({requests[0].width} x {requests[0].height})"
