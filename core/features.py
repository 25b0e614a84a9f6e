"""A picture as the model's own VAE encoder sees it: what is kept of its activations to measure style and layout.

Nothing need be downloaded, and a VAE that has learned flat colours and lines looks at flat colours and lines; statistics of
photographs would not. Mean and deviation of a network's channels stand for style since Huang & Belongie 2017
(arXiv 1703.06868), their places for layout.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from core.denoise import decode, encode_pictures
from core.events import Look, Spread

PARTS = 16
"""A level is kept in so many parts a side: enough to tell a face from what is around it."""


@torch.no_grad()
def looks(pipeline: StableDiffusionXLPipeline, pictures: Sequence[Image.Image], latents: torch.Tensor | None = None, echo: bool = False) -> list[Look]:
    """A `Look` at each of n pictures of one size; `latents` (n, 4, h, w) are what they were decoded from.

    With `echo`, also at what the VAE makes of them by encoding and decoding.
    """
    seen, again = _levels(pipeline, pictures)
    echoes = _levels(pipeline, decode(pipeline, again))[0] if echo else [None] * len(pictures)
    kept = [None] * len(pictures) if latents is None else [each.float().cpu().numpy().astype(np.float16) for each in latents]
    return [Look(levels=levels, latents=own, echo=later) for levels, own, later in zip(seen, kept, echoes, strict=True)]


def _levels(pipeline: StableDiffusionXLPipeline, pictures: Sequence[Image.Image]) -> tuple[list[tuple[Spread, ...]], torch.Tensor]:
    """The activations behind each of the encoder's blocks, for each picture; and the pictures' latents."""
    vae, found = pipeline.vae, []
    hooks = [block.register_forward_hook(lambda _, __, out: found.append(_parts(out))) for block in vae.encoder.down_blocks]
    tiling, vae.use_tiling = vae.use_tiling, False  # a tile's activations are not the picture's
    try:
        latents = encode_pictures(pipeline, pictures)
    finally:
        vae.use_tiling = tiling
        for hook in hooks:
            hook.remove()
    return [tuple((mean[i], deviation[i]) for mean, deviation in found) for i in range(len(pictures))], latents


def _parts(activations: torch.Tensor) -> Spread:
    """(n, channels, h, w) -> mean and deviation in each part, (n, channels, 16, 16) each."""
    x = activations.float()
    mean = F.adaptive_avg_pool2d(x, PARTS)
    square = F.adaptive_avg_pool2d(x * x, PARTS)
    deviation = (square - mean * mean).clamp(min=0).sqrt()
    return mean.cpu().numpy().astype(np.float16), deviation.cpu().numpy().astype(np.float16)
