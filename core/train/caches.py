"""What need not be computed twice: pictures as the VAE's posteriors, captions as the text encoders' states.

A posterior is kept as mean and deviation, so that every step draws a fresh sample from it, as without a cache. Captions are
kept by their final words, so that shuffling and dropout stay what they are; those heard least lately make way.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file

from core import models
from core.data.buckets import Fit
from core.encode import Conditioning, encode
from core.prompts import Span
from core.tensorfile import write_tensors
from core.train.turns import bring

TEXT_BYTES = 512 * 2**20
"""Of captions that are kept: about 1,600 of SDXL's."""


class Posteriors:
    """Mean and deviation of each picture's latents, in a folder and in memory."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, model: str, folder: Path):
        self.vae, self.scale = pipeline.vae, pipeline.vae.config.scaling_factor
        self.shift = getattr(pipeline.vae.config, "shift_factor", None) or 0.0
        self.folder, self.model = folder, models.fingerprint(model)
        self._kept: dict[tuple[Path, Fit, bool], tuple[torch.Tensor, torch.Tensor]] = {}

    def prepare(self, file: Path, fit: Fit, flip: bool) -> bool:
        """Read the posterior of a picture as its bucket crops it, or make it; whether it was made."""
        key = hashlib.sha256(repr((self.model, hashlib.sha256(file.read_bytes()).hexdigest(), fit, flip)).encode()).hexdigest()
        kept = self.folder / f"{key}.safetensors"
        made = False
        try:
            found = load_file(kept)
        except (OSError, SafetensorError):  # not there, or torn: it is made again
            found, made = self._made(cropped(file, fit, flip)), True
            write_tensors(kept, found)
        self._kept[file, fit, flip] = found["mean"], found["deviation"]
        return made

    def of(self, file: Path, fit: Fit, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(4, h / 8, w / 8) each, on the CPU."""
        return self._kept[file, fit, flip]

    @torch.no_grad()
    def _made(self, picture: Image.Image) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with bring(self.vae), _in_float32(self.vae):
            found = self.vae.encode(pixels.to(self.vae.device)).latent_dist
        return {"mean": (found.mean[0] - self.shift).cpu() * self.scale, "deviation": found.std[0].cpu() * self.scale}


@contextmanager
def _in_float32(vae: AutoencoderKL) -> Iterator[None]:
    """SDXL's VAE overflows in float16, and this is done once for all steps."""
    own = vae.dtype
    if own == torch.float32:
        yield
        return
    torch.nn.Module.to(vae, torch.float32)  # diffusers' own warns of nothing
    try:
        yield
    finally:
        torch.nn.Module.to(vae, own)


def cropped(file: Path, fit: Fit, flip: bool = False) -> Image.Image:
    """A picture as its bucket sees it: scaled to `fit.resized`, the middle cut out."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB").resize(fit.resized, Image.Resampling.LANCZOS)
    (left, top), (width, height) = fit.crop, fit.bucket
    picture = picture.crop((left, top, left + width, top + height))
    return ImageOps.mirror(picture) if flip else picture


class Texts:
    """Captions through the text encoders."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, clip_skip: int, keep: bool):
        self.pipeline, self.clip_skip, self.keep = pipeline, clip_skip, keep
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()
        self._bytes = 0

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """One row a caption; shorter ones are filled up with empty chunks. With gradients where the encoders are trained."""
        if not self.keep:
            return encode(self.pipeline, [_said(caption) for caption in captions], self.clip_skip)
        rows = [self._one(caption) for caption in captions]
        longest = max(len(row.states) for row in rows)
        if any(len(row.states) < longest for row in rows):
            empty = self._one("").states
            rows = [Conditioning(torch.cat([row.states, *[empty] * ((longest - len(row.states)) // len(empty))]), row.pooled) for row in rows]
        return Conditioning(torch.stack([row.states for row in rows]), torch.stack([row.pooled for row in rows]))

    @torch.no_grad()
    def _one(self, caption: str) -> Conditioning:
        if caption not in self._kept:
            with bring(self.pipeline.text_encoder, self.pipeline.text_encoder_2):
                made = encode(self.pipeline, [_said(caption)], self.clip_skip)
            self._kept[caption] = Conditioning(made.states[0], made.pooled[0])
            self._bytes += _size(self._kept[caption])
            while self._bytes > TEXT_BYTES and len(self._kept) > 2:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(caption)
        return self._kept[caption]


def _said(caption: str) -> tuple[Span, ...]:
    """A caption is words, not A1111's grammar: `saber_(fate)` is not emphasised."""
    return (Span(caption, 1.0),)


def _size(kept: Conditioning) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)
