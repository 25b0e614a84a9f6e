"""Extract statistics of a network's activations for a picture, to measure style and layout.

The network is the model's own VAE encoder, unless DINOv2 or CLIP is chosen: the VAE needs no
download, and one that has learned flat colours and lines looks at flat colours and lines;
statistics of photographs would not. Mean and deviation of a network's channels have stood for style
since Huang & Belongie 2017 (arXiv 1703.06868); their places stand for layout.
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

from core.generate.stages.denoise import decode, encode_pictures
from core.models import tools
from core.schema.errors import UserError
from core.schema.events import Features, LevelStatistics
from core.system.device import detect_machine

VAE = "VAE"
PARTS_PER_SIDE = 16
"""Parts per side in which a level is kept: enough to tell a face from what is around it."""


@torch.no_grad()
def extract_features(
    pipeline: StableDiffusionXLPipeline,
    pictures: Sequence[Image.Image],
    feature_extractor: str = VAE,
    latents: torch.Tensor | None = None,
    vae_roundtrip: bool = False,
) -> list[Features]:
    """Return the `Features` of each of n pictures of one size.

    `latents` (n, 4, h, w) are what the pictures were decoded from. With `vae_roundtrip`, the
    pictures are also measured after encoding and decoding them with the VAE. Raises `UserError` if
    the feature extractor is not available.
    """

    def extract_levels(pictures: Sequence[Image.Image]) -> list[tuple[LevelStatistics, ...]]:
        return (
            _extract_vae_levels(pipeline, pictures)
            if feature_extractor == VAE
            else _extract_transformer_levels(load_feature_extractor(feature_extractor), pictures)
        )

    seen = extract_levels(pictures)
    echoes = (
        extract_levels(decode(pipeline, encode_pictures(pipeline, pictures)))
        if vae_roundtrip
        else [None] * len(pictures)
    )
    kept = (
        [None] * len(pictures)
        if latents is None
        else [each.float().cpu().numpy().astype(np.float16) for each in latents]
    )
    return [
        Features(levels=levels, latents=own, vae_roundtrip=later)
        for levels, own, later in zip(seen, kept, echoes, strict=True)
    ]


def _extract_vae_levels(
    pipeline: StableDiffusionXLPipeline, pictures: Sequence[Image.Image]
) -> list[tuple[LevelStatistics, ...]]:
    """Return the pooled activations after each of the VAE encoder's blocks, for each picture."""
    vae, found = pipeline.vae, []
    hooks = [
        block.register_forward_hook(lambda _, __, out: found.append(_pool_parts(out)))
        for block in vae.encoder.down_blocks
    ]
    tiling, vae.use_tiling = vae.use_tiling, False  # a tile's activations are not the picture's
    try:
        encode_pictures(pipeline, pictures)
    finally:
        vae.use_tiling = tiling
        for hook in hooks:
            hook.remove()
    return _split_by_picture(found, len(pictures))


class FeatureExtractor(NamedTuple):
    """A vision transformer, and the mean and deviation by which its input is normalised."""

    model: Any
    mean: list[float]
    deviation: list[float]


@cache
def load_feature_extractor(name: str) -> FeatureExtractor:
    """Load the vision transformer of that name, from safetensors only, and cache it.

    Raises `UserError` if it is not available or cannot be opened.
    """
    folder = tools.fetch_tool("eye", name)
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        told = json.loads((folder / "preprocessor_config.json").read_text())
        return FeatureExtractor(
            getattr(model, "vision_model", model).eval(), told["image_mean"], told["image_std"]
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            "eye", f"{name} cannot be opened ({type(error).__name__}); choose another."
        ) from error


def _extract_transformer_levels(
    extractor: FeatureExtractor, pictures: Sequence[Image.Image]
) -> list[tuple[LevelStatistics, ...]]:
    """Return the pooled hidden states a quarter, half, three quarters and all the way through.

    One patch is one part.
    """
    device, side = detect_machine().device, PARTS_PER_SIDE * extractor.model.config.patch_size
    pixels = (
        torch.stack(
            [
                pil_to_tensor(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
                for picture in pictures
            ]
        ).float()
        / 255
    )
    mean, deviation = (torch.tensor(each).view(1, 3, 1, 1) for each in (extractor.mean, extractor.deviation))
    states = extractor.model.to(device)(
        ((pixels - mean) / deviation).to(device), output_hidden_states=True
    ).hidden_states
    last = len(states) - 1
    chosen = dict.fromkeys(max(1, round(last * share)) for share in (0.25, 0.5, 0.75, 1))
    # Without the class token.
    grids = (
        states[i][:, -(PARTS_PER_SIDE**2) :].transpose(1, 2).unflatten(2, (PARTS_PER_SIDE, PARTS_PER_SIDE))
        for i in chosen
    )
    return _split_by_picture([_pool_parts(grid) for grid in grids], len(pictures))


def _split_by_picture(levels: Sequence[LevelStatistics], count: int) -> list[tuple[LevelStatistics, ...]]:
    return [tuple((mean[i], deviation[i]) for mean, deviation in levels) for i in range(count)]


def _pool_parts(activations: torch.Tensor) -> LevelStatistics:
    """Pool activations (n, channels, h, w) to each part's mean and deviation.

    Both are (n, channels, 16, 16) in float16.
    """
    x = activations.float()
    mean = F.adaptive_avg_pool2d(x, PARTS_PER_SIDE)
    square = F.adaptive_avg_pool2d(x * x, PARTS_PER_SIDE)
    deviation = (square - mean * mean).clamp(min=0).sqrt()
    return mean.cpu().numpy().astype(np.float16), deviation.cpu().numpy().astype(np.float16)
