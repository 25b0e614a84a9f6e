"""Enlarges pictures with a spandrel model in tiles, Lanczos or in the latents, and says how to denoise them again."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors import SafetensorError
from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from core import tools
from core.denoise import Start, encode_pictures
from core.device import this_machine
from core.grain import smoothed
from core.tiles import side, tiled
from core.types import Hires, Request, UserError

LANCZOS, LATENT = "Lanczos", "Latent"
SIDE_STEP = 8  # pixels in a latent
# What reading and fitting weights raises: torn files, objects that are not weights, shapes that do not belong together.
NOT_WEIGHTS = (OSError, EOFError, UnpicklingError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)
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
        model = upscaler(tools.file("upscaler", hires.upscaler)).to(device)
        pixels = pil_to_tensor(picture.convert("RGB")).float()[None].to(device) / 255
        picture = to_pil_image(tiled(model, pixels, side(this_machine(), sparing))[0].clamp(0, 1).cpu())
    return picture if picture.size == to else picture.resize(to, Image.Resampling.LANCZOS)


@cache
def upscaler(file: Path) -> ImageModelDescriptor:
    """The upscaler of a file. A `.pth` is read by spandrel's restricted unpickler, which runs no code.

    Raises `UserError` for a file that is no upscaler, that holds half-precision weights only or other
    objects than weights, or that does not enlarge.
    """
    said = f"upscaler: {file.name}"
    try:
        weights = ModelLoader().load_state_dict_from_file(file)
        model = ModelLoader().load_from_state_dict(weights)
    except UnsupportedModelError as error:
        raise UserError(f"{said} is no upscaler that is known here.") from error
    except NOT_WEIGHTS as error:
        raise UserError(f"{said} cannot be read as an upscaler's weights ({type(error).__name__}).") from error
    if all(value.dtype == torch.float16 for value in weights.values() if value.is_floating_point()):
        raise UserError(f"{said} holds half-precision weights only; it takes the float32 file.")
    if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3 or model.output_channels != 3:
        raise UserError(f"{said} does not turn one RGB picture into another.")
    if not 2 <= model.scale <= 8:
        raise UserError(f"{said} enlarges {model.scale} times; it takes one that enlarges 2 to 8 times.")
    exact = torch.bfloat16 if this_machine().dtype == torch.bfloat16 and model.supports_bfloat16 else torch.float32
    return model.eval().to(dtype=exact)
