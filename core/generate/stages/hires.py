"""Enlarge pictures and prepare the second denoising.

They are enlarged with a spandrel model in tiles, with Lanczos, or in the latents.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from spandrel import ImageModelDescriptor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from core.generate.stages.denoise import DenoiseStart, encode_pictures
from core.generate.stages.grain import smooth_texture
from core.generate.stages.sandbox import check_upscaler
from core.generate.stages.upscaler import load_upscaler, tile_side, upscale_tiled
from core.hub.names import is_hub_name
from core.models import tools
from core.schema.types import Hires, Request
from core.system.device import detect_machine

LANCZOS, LATENT = "Lanczos", "Latent"
PIXELS_PER_LATENT = 8  # pixels per side of a latent
MAX_UPSCALES = 2  # an upscaler enlarges at least 2 times, and hires at most 4
NUM_TRAIN_TIMESTEPS = 1000
"""The model knows this many levels of noise, so a schedule has no more steps."""


def output_size(request: Request) -> tuple[int, int]:
    """Width and height in pixels of a request's finished picture."""
    if request.hires is None:
        return request.width, request.height
    width, height = (
        round(side * request.hires.factor / PIXELS_PER_LATENT) * PIXELS_PER_LATENT
        for side in (request.width, request.height)
    )
    return width, height


def build_hires_requests(requests: Sequence[Request]) -> list[Request]:
    """Return the requests for the second denoising: the larger size, and what hires has of its own."""
    first = requests[0].hires
    assert first is not None
    steps = max(1, min(first.steps or requests[0].steps, int(first.denoise * NUM_TRAIN_TIMESTEPS)))
    width, height = output_size(requests[0])
    return [
        replace(
            r,
            width=width,
            height=height,
            steps=steps,
            prompt=first.prompt or r.prompt,
            negative=first.negative or r.negative,
            sampler=first.sampler or r.sampler,
            schedule=first.schedule or r.schedule,
            cfg=r.cfg if first.cfg is None else first.cfg,
        )
        for r in requests
    ]


@torch.no_grad()
def prepare_hires_start(
    pipeline: StableDiffusionXLPipeline,
    requests: Sequence[Request],
    latents: torch.Tensor,
    pictures: Sequence[Image.Image],
    low_memory: bool = False,
) -> DenoiseStart:
    """Prepare the latents from which one batch's second denoising begins.

    They are the base latents or the pictures, enlarged; with `low_memory` in smaller tiles.
    """
    hires = requests[0].hires
    assert hires is not None
    width, height = output_size(requests[0])
    if hires.upscaler == LATENT:
        larger = F.interpolate(
            latents,
            (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT),
            mode="bilinear",
            antialias=True,
        )
    else:
        larger = encode_pictures(
            pipeline, [enlarge_picture(picture, hires, (width, height), low_memory) for picture in pictures]
        )
    steps = build_hires_requests(requests)[0].steps
    # Like A1111: the given number of steps is run, whatever `denoise` is.
    return DenoiseStart(larger, min(NUM_TRAIN_TIMESTEPS, max(steps, int(steps / hires.denoise))))


def enlarge_picture(
    picture: Image.Image, hires: Hires, target_size: tuple[int, int], low_memory: bool = False
) -> Image.Image:
    """Enlarge the picture to `target_size` (width, height) in pixels.

    It is smoothed if `hires` asks for that, then goes through the upscaler until it is large enough, as
    in A1111; Lanczos does the rest.
    """
    if hires.smooth:
        picture = smooth_texture(picture, hires.smooth)
    if hires.upscaler not in (LANCZOS, LATENT):
        device = detect_machine().device
        model = find_upscaler(hires.upscaler).to(device)
        tile = tile_side(detect_machine(), low_memory)
        for _ in range(MAX_UPSCALES):
            pixels = pil_to_tensor(picture.convert("RGB")).float()[None].to(device) / 255
            picture = to_pil_image(upscale_tiled(model, pixels, tile)[0].clamp(0, 1).cpu())
            if picture.width >= target_size[0] and picture.height >= target_size[1]:
                break
    return picture if picture.size == target_size else picture.resize(target_size, Image.Resampling.LANCZOS)


def find_upscaler(name: str) -> ImageModelDescriptor:
    """Load the upscaler of that name.

    One from the Hub, which a visitor chose, is opened in a process of its own first. Raises
    `UserError` if the upscaler is not available or cannot be used.
    """
    file = tools.fetch_tool("upscaler", name)
    if is_hub_name(name):
        check_upscaler(file)
    return load_upscaler(file)
