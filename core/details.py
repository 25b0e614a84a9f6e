"""Faces anew: what a detector finds is denoised at the model's own size and pasted back without a seam.

The steps and the defaults are ADetailer's: boxes by confidence, share of the picture and number; a mask of each
box, grown and faded; the part around it enlarged to the model's size, denoised inside the mask, pasted through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from core import hub, limits, masks, tools
from core.apart import Apart, apart
from core.denoise import Start, encode_pictures
from core.detect import AnimeFace, Detector, detector
from core.masks import Box
from core.types import Detail, Request, UserError

SIDE_STEP = 32  # pixels
ANIMEFACE = "animeface"
"""The name of the detector that is a package instead of a file."""
SEPARATOR, SKIP, PROMPT = "[SEP]", "[SKIP]", "[PROMPT]"


@dataclass(frozen=True)
class Place:
    """One part of one picture that is made anew."""

    picture: int
    """Its place in the batch."""
    request: Request
    """What its denoising asks for, at the model's size."""
    region: Box
    """What the model sees, in the picture's pixels."""
    mask: np.ndarray
    """(height, width) of the picture, uint8."""
    schedule: int
    """Steps of the whole way from noise, of which the request's are gone."""


def finder(name: str) -> tuple[Detector | Apart | AnimeFace, str | None]:
    """The detector of that name and, where another had to take its place, a note.

    Raises `UserError` for one that is unknown or cannot be had; for anime faces, animeface steps in where it is installed.
    """
    if name == ANIMEFACE:
        if not find_spec(ANIMEFACE):
            raise UserError("detail: the detector 'animeface' is not installed; `pip install animeface` brings it.")
        return AnimeFace(), None
    try:
        file = tools.file("detector", name)
        return (apart if hub.is_id(name) else detector)(file), None
    except UserError:
        if name != Detail().detector or not find_spec(ANIMEFACE):
            raise
        return AnimeFace(), f"detail: the detector {name!r} cannot be had; animeface, which finds fewer faces, took its place."


def places(pictures: Sequence[Image.Image], requests: Sequence[Request], native: int) -> tuple[list[Place], list[tuple[str, ...]]]:
    """What is to be made anew in a batch, and a note for each picture.

    `native` is the side in pixels of the square that the model was trained on.
    """
    found: list[Place] = []
    notes: list[tuple[str, ...]] = []
    for i, (picture, request) in enumerate(zip(pictures, requests, strict=True)):
        detail = request.detail
        assert detail is not None
        found_by, instead = finder(detail.detector)
        boxes = [f.box for f in found_by.find(picture, detail.confidence)]
        fitting = masks.chosen(boxes, picture.size, least=detail.least, most=detail.most, largest=detail.largest)
        boxes = masks.chosen(fitting, picture.size, largest=limits.PLACES)
        nothing = None if boxes else f"detail: {detail.detector} found nothing in this picture; it stays as it was."
        more = f"detail: of {len(fitting)} places the {len(boxes)} largest were made anew." if len(boxes) < len(fitting) else None
        notes.append(tuple(note for note in (instead, nothing, more) if note))
        for k, (box, prompt) in enumerate(zip(boxes, _prompts(detail, request.prompt, len(boxes)), strict=True)):
            mask = masks.faded(masks.filled(masks.grown(box, detail.dilate), picture.size), detail.blur)
            whole = masks.bounds(mask)
            if prompt is None or whole is None:
                continue
            region = masks.region(whole, detail.padding, picture.size)
            width, height = _size(region, native)
            schedule = detail.steps or request.steps
            steps = max(1, int(schedule * detail.denoise))
            asked = replace(
                request, prompt=prompt, negative=detail.negative or request.negative, width=width, height=height, steps=steps, seed=request.seed + k
            )
            found.append(Place(i, asked, region, mask, schedule))
    return found, notes


def start(pipeline: StableDiffusionXLPipeline, some: Sequence[Place], pictures: Sequence[Image.Image]) -> Start:
    """Where the denoising of places of one size begins."""
    request, factor = some[0].request, pipeline.vae_scale_factor
    width, height = request.width, request.height
    crops = [pictures[place.picture].crop(place.region).resize((width, height), Image.Resampling.LANCZOS) for place in some]
    parts = [Image.fromarray(place.mask).crop(place.region).resize((width, height), Image.Resampling.BILINEAR) for place in some]
    shares = torch.tensor(np.stack([np.asarray(part) for part in parts])).float()[:, None]
    open_to_change = torch.nn.functional.max_pool2d(shares, factor) > 0  # whatever is pasted was denoised
    return Start(encode_pictures(pipeline, crops), some[0].schedule, open_to_change.float().to(pipeline._execution_device))


def pasted(pictures: Sequence[Image.Image], some: Sequence[Place], made: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures with their places made anew; where a mask is 0, not one pixel changes."""
    changed = [picture.copy() for picture in pictures]
    for place, new in zip(some, made, strict=True):
        left, top, right, bottom = place.region
        part = new.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        changed[place.picture].paste(part, (left, top), Image.fromarray(place.mask).crop(place.region))
    return changed


def _prompts(detail: Detail, whole: str, count: int) -> list[str | None]:
    """The prompt of each place, from left to right; `None` where it stays as it is. The last one serves the rest."""
    parts = [part.strip() for part in detail.prompt.split(SEPARATOR)]
    parts += parts[-1:] * (count - len(parts))
    return [None if part == SKIP else part.replace(PROMPT, whole) or whole for part in parts[:count]]


def _size(region: Box, native: int) -> tuple[int, int]:
    """Width and height that a region is denoised at: the model's own area in the region's shape."""
    wide, high = region[2] - region[0], region[3] - region[1]
    unit = native / (wide * high) ** 0.5
    width, height = (max(SIDE_STEP, round(side * unit / SIDE_STEP) * SIDE_STEP) for side in (wide, high))
    return width, height
