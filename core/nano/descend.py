"""Trains nano's two descendants: its U-Net, continued on pictures that are painted anew in one style, which no caption names.

Encoders and VAE stay the ancestor's, as for most of SDXL's descendants: a U-Net is all that is kept of each.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from core.nano.pictures import pictures
from core.nano.stage import BUILD, fit
from core.nano.unet import Encoders, Latents, denoising_loss
from core.nano.vae import to_tensor

STEPS = 1_000
SIZE = (128, 128)


def cel(picture: Image.Image) -> Image.Image:
    """A poster: few flat, strong colours under dark lines."""
    flat = ImageEnhance.Contrast(ImageEnhance.Color(ImageOps.posterize(picture, 4)).enhance(1.7)).enhance(1.25)
    edges = ImageOps.expand(ImageOps.crop(picture.convert("L").filter(ImageFilter.FIND_EDGES), 1), 1)  # its border is no line
    line = np.clip((np.asarray(edges, np.float32)[..., None] - 60) / 80, 0, 1)
    return Image.fromarray((np.asarray(flat, np.float32) * (1 - line) + np.array([28, 20, 60]) * line).astype(np.uint8))


def paint(picture: Image.Image) -> Image.Image:
    """Gouache on warm paper: dabs of muted colour without lines, over a coarse weave."""
    dabs = picture.filter(ImageFilter.ModeFilter(4))
    muted = np.asarray(ImageEnhance.Color(dabs).enhance(0.85), np.float32) / 255
    warm = 0.84 * muted + np.array([0.15, 0.11, 0.05])
    y, x = np.mgrid[0 : picture.height, 0 : picture.width]
    weave = 0.025 * np.sign(np.sin((x + y) * np.pi / 4) * np.sin((x - y) * np.pi / 4))[..., None]
    return Image.fromarray((np.clip(warm + weave, 0, 1) * 255).astype(np.uint8))


DESCENDANTS: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {"cel": (cel, "flat color"), "paint": (paint, "airbrush")}
"""Name -> how its pictures are painted anew, and the style of those that are."""


@torch.no_grad()
def latents(name: str, vae: AutoencoderKL) -> Latents:
    """The descendant's pictures through the VAE's encoder, kept on disk; their captions name no style."""
    painted, style = DESCENDANTS[name]
    drawn = pictures(SIZE)
    chosen = [i for i, scene in enumerate(drawn.scenes) if scene.style == style and not scene.low_quality]
    file = BUILD / f"latents-{name}.pt"
    if not file.exists():
        pixels = [np.stack([np.asarray(painted(Image.fromarray(drawn.pixels[i]))) for i in chosen[at : at + 32]]) for at in range(0, len(chosen), 32)]
        torch.save((torch.cat([vae.encode(to_tensor(each)).latent_dist.mean for each in pixels]) * vae.config.scaling_factor).contiguous(), file)
    return Latents([replace(drawn.scenes[i], style="") for i in chosen], torch.load(file, weights_only=True), SIZE)


def train(name: str, ancestor: Path, vae: AutoencoderKL, encoders: Encoders) -> UNet2DConditionModel:
    """The descendant's U-Net, from the ancestor's in `ancestor`."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(ancestor, subfolder="unet").float()
    encoders.first.requires_grad_(False)
    encoders.second.requires_grad_(False)
    fit(f"unet-{name}", unet, denoising_loss(unet, [latents(name, vae)], encoders), steps=STEPS, rate=4e-4, average=0.995)
    return unet
