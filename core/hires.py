"""Enlarges pictures with a spandrel model in tiles, Lanczos or in the latents, and says how to denoise them again."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from spandrel import ImageModelDescriptor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from core import hub, tools
from core.apart import tried
from core.denoise import Start, encode_pictures
from core.device import this_machine
from core.grain import smoothed
from core.tiles import side, tiled
from core.types import Hires, Request
from core.upscale import upscaler

LANCZOS, LATENT = "Lanczos", "Latent"
SIDE_STEP = 8  # pixels in a latent
TIMES = 1000
"""The model knows so many levels of noise: a schedule has no more steps."""


def size(request: Request) -> tuple[int, int]:
    """Width and height in pixels of a request's finished picture."""
    if request.hires is None:
        return request.width, request.height
    width, height = (round(side * request.hires.factor / SIDE_STEP) * SIDE_STEP for side in (request.width, request.height))
    return width, height


def again(requests: Sequence[Request]) -> list[Request]:
    """What the second denoising asks for: the larger size, the steps that are gone."""
    first = requests[0].hires
    assert first is not None
    steps = max(1, min(first.steps or requests[0].steps, int(first.denoise * TIMES)))
    return [replace(r, width=size(r)[0], height=size(r)[1], steps=steps) for r in requests]


@torch.no_grad()
def start(
    pipeline: StableDiffusionXLPipeline, requests: Sequence[Request], latents: torch.Tensor, pictures: Sequence[Image.Image], sparing: bool = False
) -> Start:
    """Where the second denoising begins, for one batch: base latents or its pictures, enlarged, in smaller tiles if memory is spared."""
    hires = requests[0].hires
    assert hires is not None
    width, height = size(requests[0])
    if hires.upscaler == LATENT:
        larger = F.interpolate(latents, (height // SIDE_STEP, width // SIDE_STEP), mode="bilinear", antialias=True)
    else:
        larger = encode_pictures(pipeline, [enlarged(picture, hires, (width, height), sparing) for picture in pictures])
    steps = again(requests)[0].steps
    return Start(larger, min(TIMES, max(steps, int(steps / hires.denoise))))  # as A1111: the steps said are the ones gone, whatever the denoise


def enlarged(picture: Image.Image, hires: Hires, to: tuple[int, int], sparing: bool = False) -> Image.Image:
    """The picture at `to` (width, height): smoothed if asked, through the upscaler, the rest by Lanczos."""
    if hires.smooth:
        picture = smoothed(picture, hires.smooth)
    if hires.upscaler not in (LANCZOS, LATENT):
        device = this_machine().device
        model = named(hires.upscaler).to(device)
        pixels = pil_to_tensor(picture.convert("RGB")).float()[None].to(device) / 255
        picture = to_pil_image(tiled(model, pixels, side(this_machine(), sparing))[0].clamp(0, 1).cpu())
    return picture if picture.size == to else picture.resize(to, Image.Resampling.LANCZOS)


def named(name: str) -> ImageModelDescriptor:
    """The upscaler of that name; one that a visitor brought was opened in a process of its own before. Raises `UserError`."""
    file = tools.file("upscaler", name)
    if hub.is_id(name):
        tried(file)
    return upscaler(file)
