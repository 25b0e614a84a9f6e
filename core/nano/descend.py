"""Trains nano's two descendants: its U-Net, continued on pictures repainted in one style.

No caption names the style. Encoders and VAE stay the ancestor's, as for most of SDXL's descendants:
only a U-Net is kept of each.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from core.nano.pictures import load_pictures
from core.nano.stage import BUILD_FOLDER, train_model
from core.nano.unet import Latents, TextEncoders, make_denoising_loss
from core.nano.vae import to_tensor

STEPS = 1_000
SIZE = (128, 128)


def draw_cel(picture: Image.Image) -> Image.Image:
    """Repaint a picture as a poster: few flat, strong colours under dark lines."""
    flat = ImageEnhance.Contrast(ImageEnhance.Color(ImageOps.posterize(picture, 4)).enhance(1.7)).enhance(
        1.25
    )
    # The border that the filter leaves is no line.
    edges = ImageOps.expand(ImageOps.crop(picture.convert("L").filter(ImageFilter.FIND_EDGES), 1), 1)
    line = np.clip((np.asarray(edges, np.float32)[..., None] - 60) / 80, 0, 1)
    return Image.fromarray(
        (np.asarray(flat, np.float32) * (1 - line) + np.array([28, 20, 60]) * line).astype(np.uint8)
    )


def draw_paint(picture: Image.Image) -> Image.Image:
    """Repaint a picture as gouache on warm paper: muted dabs without lines, over a coarse weave."""
    dabs = picture.filter(ImageFilter.ModeFilter(4))
    muted = np.asarray(ImageEnhance.Color(dabs).enhance(0.85), np.float32) / 255
    warm = 0.84 * muted + np.array([0.15, 0.11, 0.05])
    y, x = np.mgrid[0 : picture.height, 0 : picture.width]
    weave = 0.025 * np.sign(np.sin((x + y) * np.pi / 4) * np.sin((x - y) * np.pi / 4))[..., None]
    return Image.fromarray((np.clip(warm + weave, 0, 1) * 255).astype(np.uint8))


DESCENDANTS: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {
    "cel": (draw_cel, "flat color"),
    "paint": (draw_paint, "airbrush"),
}
"""Name -> the function that repaints its pictures, and the style of the drawings to repaint."""


@torch.no_grad()
def encode_descendant(name: str, vae: AutoencoderKL) -> Latents:
    """Return the VAE's latents of the descendant's pictures, kept on disk.

    Their captions name no style.
    """
    painted, style = DESCENDANTS[name]
    drawn = load_pictures(SIZE)
    chosen = [i for i, scene in enumerate(drawn.scenes) if scene.style == style and not scene.low_quality]
    file = BUILD_FOLDER / f"latents-{name}.pt"
    if not file.exists():
        pixels = [
            np.stack([np.asarray(painted(Image.fromarray(drawn.pixels[i]))) for i in chosen[at : at + 32]])
            for at in range(0, len(chosen), 32)
        ]
        torch.save(
            (
                torch.cat([vae.encode(to_tensor(each)).latent_dist.mean for each in pixels])
                * vae.config.scaling_factor
            ).contiguous(),
            file,
        )
    return Latents(
        [replace(drawn.scenes[i], style="") for i in chosen],
        torch.load(file, weights_only=True),
        SIZE,
    )


def train_descendant(
    name: str, ancestor: Path, vae: AutoencoderKL, encoders: TextEncoders
) -> UNet2DConditionModel:
    """Return the descendant's U-Net, trained from the ancestor's in the folder `ancestor`."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(ancestor, subfolder="unet").float()
    encoders.first.requires_grad_(False)
    encoders.second.requires_grad_(False)
    train_model(
        f"unet-{name}",
        unet,
        make_denoising_loss(unet, [encode_descendant(name, vae)], encoders),
        steps=STEPS,
        learning_rate=4e-4,
        ema_decay=0.995,
    )
    return unet
