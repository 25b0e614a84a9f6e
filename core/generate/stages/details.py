"""Refine faces: denoise what a detector finds at the model's own size and paste it back seamlessly.

The steps and the defaults are ADetailer's: boxes by confidence, share of the picture and number; a
mask of each box, dilated and blurred; the part around it enlarged to the model's size, denoised
inside the mask, pasted through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from core.generate.stages import masks
from core.generate.stages.denoise import DenoiseStart, encode_pictures
from core.generate.stages.detector import AnimeFace, Detector, load_detector
from core.generate.stages.masks import Box
from core.generate.stages.sandbox import SandboxedDetector, load_sandboxed_detector
from core.hub.names import is_hub_name
from core.models import tools
from core.schema import limits
from core.schema.errors import UserError
from core.schema.types import Detail, Request, count_seeds

SIDE_STEP = 32  # pixels
ANIMEFACE = "animeface"
"""Name of the detector that is a package instead of a file."""
SEPARATOR_TOKEN, SKIP_TOKEN, PROMPT_TOKEN = "[SEP]", "[SKIP]", "[PROMPT]"


@dataclass(frozen=True)
class DetailRegion:
    """One part of one picture that is refined."""

    picture_index: int
    """The picture's index in the batch."""
    request: Request
    """The settings for denoising the region, at the model's size."""
    crop: Box
    """The part that the model sees, in the picture's pixels."""
    mask: np.ndarray
    """(height, width) of the picture, uint8."""
    schedule_steps: int
    """Steps of the whole schedule from noise, of which the last `request.steps` are run."""


def find_detector(name: str) -> tuple[Detector | SandboxedDetector | AnimeFace, str | None]:
    """Return the detector of that name and, if another had to take its place, a note.

    Raises `UserError` for a detector that is unknown or not available. The default one, for anime
    faces, is replaced by animeface where that is installed.
    """
    if name == ANIMEFACE:
        if not find_spec(ANIMEFACE):
            raise UserError(
                "detail", "the detector 'animeface' is not installed; `pip install animeface` installs it."
            )
        return AnimeFace(), None
    try:
        file = tools.fetch_tool("detector", name)
        return (load_sandboxed_detector if is_hub_name(name) else load_detector)(file), None
    except UserError:
        if name != Detail().detector or not find_spec(ANIMEFACE):
            raise
        return (
            AnimeFace(),
            f"detail: the detector {name!r} is not available; animeface, which finds fewer faces, "
            "was used instead.",
        )


def find_detail_regions(
    pictures: Sequence[Image.Image], requests: Sequence[Request], native_size: int
) -> tuple[list[DetailRegion], list[tuple[str, ...]]]:
    """Find the regions to refine in a batch, and return them with the notes for each picture.

    `native_size` is the side in pixels of the square that the model was trained on.
    """
    found: list[DetailRegion] = []
    notes: list[tuple[str, ...]] = []
    for i, (picture, request) in enumerate(zip(pictures, requests, strict=True)):
        detail = request.detail
        assert detail is not None
        found_by, instead = find_detector(detail.detector)
        boxes = [f.box for f in found_by.find(picture, detail.confidence)]
        fitting = masks.select_boxes(
            boxes, picture.size, least=detail.least, most=detail.most, largest=detail.largest
        )
        boxes = masks.select_boxes(fitting, picture.size, largest=limits.DETAIL_REGIONS)
        nothing = (
            None if boxes else f"detail: {detail.detector} found nothing in this image; it is unchanged."
        )
        more = (
            f"detail: of {len(fitting)} regions, only the {len(boxes)} largest were refined."
            if len(boxes) < len(fitting)
            else None
        )
        notes.append(tuple(note for note in (instead, nothing, more) if note))
        prompts = _split_prompts(detail, request.prompt, len(boxes))
        seeds = count_seeds(request.seed, len(boxes))
        for k, (box, prompt, seed) in enumerate(zip(boxes, prompts, seeds, strict=True)):
            mask = masks.blur_mask(
                masks.box_mask(masks.dilate_box(box, detail.dilate), picture.size), detail.blur
            )
            whole = masks.mask_bounds(mask)
            if prompt is None or whole is None:
                continue
            region = masks.crop_region(whole, detail.padding, picture.size)
            width, height = _region_size(region, native_size)
            schedule = detail.steps or request.steps
            steps = max(1, int(schedule * detail.denoise))
            asked = replace(
                request,
                prompt=prompt,
                negative=detail.negative or request.negative,
                width=width,
                height=height,
                steps=steps,
                seed=seed,
                loras=request.select_detail_loras(min(k, detail.prompt.count(SEPARATOR_TOKEN))),
                hires_loras=None,
                detail_loras=(),
            )
            found.append(DetailRegion(i, asked, region, mask, schedule))
    return found, notes


def prepare_detail_start(
    pipeline: StableDiffusionXLPipeline, regions: Sequence[DetailRegion], pictures: Sequence[Image.Image]
) -> DenoiseStart:
    """Prepare the latents and mask from which regions of one size are denoised."""
    request, factor = regions[0].request, pipeline.vae_scale_factor
    width, height = request.width, request.height
    crops = [
        pictures[place.picture_index].crop(place.crop).resize((width, height), Image.Resampling.LANCZOS)
        for place in regions
    ]
    parts = [
        Image.fromarray(place.mask).crop(place.crop).resize((width, height), Image.Resampling.BILINEAR)
        for place in regions
    ]
    shares = torch.tensor(np.stack([np.asarray(part) for part in parts])).float()[:, None]
    # Whatever is pasted must have been denoised.
    open_to_change = torch.nn.functional.max_pool2d(shares, factor) > 0
    return DenoiseStart(
        encode_pictures(pipeline, crops),
        regions[0].schedule_steps,
        open_to_change.float().to(pipeline._execution_device),
        prompt_steps=regions[0].schedule_steps,
    )


def paste_regions(
    pictures: Sequence[Image.Image], regions: Sequence[DetailRegion], crops: Sequence[Image.Image]
) -> list[Image.Image]:
    """Return copies of the pictures with the refined regions pasted in.

    Where a mask is 0, no pixel changes.
    """
    changed = [picture.copy() for picture in pictures]
    for place, new in zip(regions, crops, strict=True):
        left, top, right, bottom = place.crop
        part = new.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        changed[place.picture_index].paste(part, (left, top), Image.fromarray(place.mask).crop(place.crop))
    return changed


def _split_prompts(detail: Detail, whole: str, count: int) -> list[str | None]:
    """Return the prompt of each region, from left to right; `None` for one that stays as it is.

    The last prompt is used for all remaining regions.
    """
    parts = [part.strip() for part in detail.prompt.split(SEPARATOR_TOKEN)]
    parts += parts[-1:] * (count - len(parts))
    return [
        None if part == SKIP_TOKEN else part.replace(PROMPT_TOKEN, whole) or whole for part in parts[:count]
    ]


def _region_size(region: Box, native_size: int) -> tuple[int, int]:
    """Width and height for denoising a region: the model's own area in the region's shape."""
    wide, high = region[2] - region[0], region[3] - region[1]
    unit = native_size / (wide * high) ** 0.5
    width, height = (max(SIDE_STEP, round(side * unit / SIDE_STEP) * SIDE_STEP) for side in (wide, high))
    return width, height
