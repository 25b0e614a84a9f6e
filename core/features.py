"""A picture as a network sees it: what is kept of its activations to measure style and layout.

The model's own VAE encoder, unless DINOv2 or CLIP is chosen: nothing need be downloaded, and a VAE that has learned flat
colours and lines looks at flat colours and lines; statistics of photographs would not. Mean and deviation of a network's
channels stand for style since Huang & Belongie 2017 (arXiv 1703.06868), their places for layout.
"""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors import SafetensorError
from torchvision.transforms.functional import pil_to_tensor
from transformers import AutoModel

from core import tools
from core.denoise import decode, encode_pictures
from core.device import this_machine
from core.events import Look, Spread
from core.types import UserError

VAE = "VAE"
PARTS = 16
"""A level is kept in so many parts a side: enough to tell a face from what is around it."""


@torch.no_grad()
def looks(
    pipeline: StableDiffusionXLPipeline, pictures: Sequence[Image.Image], eye: str = VAE, latents: torch.Tensor | None = None, echo: bool = False
) -> list[Look]:
    """A `Look` at each of n pictures of one size; `latents` (n, 4, h, w) are what they were decoded from.

    With `echo`, also at what the VAE makes of them by encoding and decoding. Raises `UserError` for an eye that cannot be had.
    """

    def levels(pictures: Sequence[Image.Image]) -> list[tuple[Spread, ...]]:
        return _of_vae(pipeline, pictures) if eye == VAE else _of_transformer(opened(eye), pictures)

    seen = levels(pictures)
    echoes = levels(decode(pipeline, encode_pictures(pipeline, pictures))) if echo else [None] * len(pictures)
    kept = [None] * len(pictures) if latents is None else [each.float().cpu().numpy().astype(np.float16) for each in latents]
    return [Look(levels=levels, latents=own, echo=later) for levels, own, later in zip(seen, kept, echoes, strict=True)]


def _of_vae(pipeline: StableDiffusionXLPipeline, pictures: Sequence[Image.Image]) -> list[tuple[Spread, ...]]:
    """The activations behind each of the encoder's blocks, for each picture."""
    vae, found = pipeline.vae, []
    hooks = [block.register_forward_hook(lambda _, __, out: found.append(_parts(out))) for block in vae.encoder.down_blocks]
    tiling, vae.use_tiling = vae.use_tiling, False  # a tile's activations are not the picture's
    try:
        encode_pictures(pipeline, pictures)
    finally:
        vae.use_tiling = tiling
        for hook in hooks:
            hook.remove()
    return _by_picture(found, len(pictures))


class Eye(NamedTuple):
    """A vision transformer and what its pictures are normalised by."""

    model: Any
    mean: list[float]
    deviation: list[float]


@cache
def opened(name: str) -> Eye:
    """The vision transformer of that name, safetensors only. Raises `UserError` for one that cannot be had or opened."""
    folder = tools.file("eye", name)
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        told = json.loads((folder / "preprocessor_config.json").read_text())
        return Eye(getattr(model, "vision_model", model).eval(), told["image_mean"], told["image_std"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"eye: {name} cannot be opened ({type(error).__name__}); choose another.") from error


def _of_transformer(eye: Eye, pictures: Sequence[Image.Image]) -> list[tuple[Spread, ...]]:
    """Hidden states a quarter, a half, three quarters and all of the way through; a patch is a part."""
    device, side = this_machine().device, PARTS * eye.model.config.patch_size
    pixels = torch.stack([pil_to_tensor(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for picture in pictures]).float() / 255
    mean, deviation = (torch.tensor(each).view(1, 3, 1, 1) for each in (eye.mean, eye.deviation))
    states = eye.model.to(device)(((pixels - mean) / deviation).to(device), output_hidden_states=True).hidden_states
    last = len(states) - 1
    chosen = dict.fromkeys(max(1, round(last * share)) for share in (0.25, 0.5, 0.75, 1))
    grids = (states[i][:, -(PARTS**2) :].transpose(1, 2).unflatten(2, (PARTS, PARTS)) for i in chosen)  # without the class token
    return _by_picture([_parts(grid) for grid in grids], len(pictures))


def _by_picture(levels: Sequence[Spread], many: int) -> list[tuple[Spread, ...]]:
    return [tuple((mean[i], deviation[i]) for mean, deviation in levels) for i in range(many)]


def _parts(activations: torch.Tensor) -> Spread:
    """(n, channels, h, w) -> mean and deviation in each part, (n, channels, 16, 16) each."""
    x = activations.float()
    mean = F.adaptive_avg_pool2d(x, PARTS)
    square = F.adaptive_avg_pool2d(x * x, PARTS)
    deviation = (square - mean * mean).clamp(min=0).sqrt()
    return mean.cpu().numpy().astype(np.float16), deviation.cpu().numpy().astype(np.float16)
