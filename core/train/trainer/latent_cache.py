"""Caches of what need not be computed twice: VAE posteriors of pictures, encoded captions.

A posterior is kept as mean and deviation, so that every step draws a fresh sample from it, as
without a cache. Captions are kept by their final words, so that shuffling and dropout still work;
the least recently used ones make way.
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

from core.dataset.buckets import Fit
from core.models import bases
from core.prompts.conditioning import Conditioning, encode_texts
from core.prompts.grammar import Span
from core.system.tensor_files import write_tensors
from core.train.trainer.turns import onload

TEXT_CACHE_BYTES = 512 * 2**20
"""Bytes of encoded captions that are kept: about 1,600 of SDXL's."""


class LatentCache:
    """Mean and deviation of each picture's latents, in a folder and in memory."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, model: str, folder: Path):
        self.vae, self.scale = pipeline.vae, pipeline.vae.config.scaling_factor
        self.shift = getattr(pipeline.vae.config, "shift_factor", None) or 0.0
        self.folder, self.model = folder, bases.fingerprint_model(model)
        self._posteriors: dict[tuple[Path, Fit, bool], tuple[torch.Tensor, torch.Tensor]] = {}

    def load_or_encode(self, file: Path, fit: Fit, flip: bool) -> bool:
        """Read the posterior of a picture as its bucket crops it, or encode the picture.

        Returns whether it was encoded.
        """
        key = hashlib.sha256(
            repr((self.model, hashlib.sha256(file.read_bytes()).hexdigest(), fit, flip)).encode()
        ).hexdigest()
        kept = self.folder / f"{key}.safetensors"
        made = False
        try:
            found = load_file(kept)
        except (OSError, SafetensorError):  # missing or torn: it is made again
            found, made = self._encode_picture(crop_to_bucket(file, fit, flip)), True
            write_tensors(kept, found)
        self._posteriors[file, fit, flip] = found["mean"], found["deviation"]
        return made

    def get_posterior(self, file: Path, fit: Fit, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and deviation, (4, h / 8, w / 8) each, on the CPU."""
        return self._posteriors[file, fit, flip]

    @torch.no_grad()
    def _encode_picture(self, picture: Image.Image) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with onload(self.vae), _upcast_vae(self.vae):
            found = self.vae.encode(pixels.to(self.vae.device)).latent_dist
        return {
            "mean": (found.mean[0] - self.shift).cpu() * self.scale,
            "deviation": found.std[0].cpu() * self.scale,
        }


@contextmanager
def _upcast_vae(vae: AutoencoderKL) -> Iterator[None]:
    """Run the VAE in float32 while the context lasts.

    SDXL's VAE overflows in float16, and each picture is encoded only once for all steps.
    """
    own = vae.dtype
    if own == torch.float32:
        yield
        return
    torch.nn.Module.to(vae, torch.float32)  # diffusers' own `to` warns without need
    try:
        yield
    finally:
        torch.nn.Module.to(vae, own)


def crop_to_bucket(file: Path, fit: Fit, flip: bool = False) -> Image.Image:
    """Return a picture as its bucket sees it: scaled to `fit.resized`, cropped to the middle."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB").resize(fit.resized, Image.Resampling.LANCZOS)
    (left, top), (width, height) = fit.crop, fit.bucket
    picture = picture.crop((left, top, left + width, top + height))
    return ImageOps.mirror(picture) if flip else picture


class CaptionEncoder:
    """Encodes captions by the text encoders."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, clip_skip: int, cached: bool):
        self.pipeline, self.clip_skip, self.cached = pipeline, clip_skip, cached
        self._cache: OrderedDict[str, Conditioning] = OrderedDict()
        self._cache_bytes = 0

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """Encode captions, one row each; shorter ones are padded with empty chunks.

        The result has gradients where the encoders are trained.
        """
        if not self.cached:
            return encode_texts(self.pipeline, [_make_spans(caption) for caption in captions], self.clip_skip)
        rows = [self._encode_caption(caption) for caption in captions]
        longest = max(len(row.states) for row in rows)
        if any(len(row.states) < longest for row in rows):
            empty = self._encode_caption("").states
            rows = [
                Conditioning(
                    torch.cat([row.states, *[empty] * ((longest - len(row.states)) // len(empty))]),
                    row.pooled,
                )
                for row in rows
            ]
        return Conditioning(
            torch.stack([row.states for row in rows]), torch.stack([row.pooled for row in rows])
        )

    @torch.no_grad()
    def _encode_caption(self, caption: str) -> Conditioning:
        if caption not in self._cache:
            with onload(self.pipeline.text_encoder, self.pipeline.text_encoder_2):
                made = encode_texts(self.pipeline, [_make_spans(caption)], self.clip_skip)
            self._cache[caption] = Conditioning(made.states[0], made.pooled[0])
            self._cache_bytes += _count_bytes(self._cache[caption])
            while self._cache_bytes > TEXT_CACHE_BYTES and len(self._cache) > 2:
                self._cache_bytes -= _count_bytes(self._cache.popitem(last=False)[1])
        self._cache.move_to_end(caption)
        return self._cache[caption]


def _make_spans(caption: str) -> tuple[Span, ...]:
    """Return a caption as words, not as A1111's grammar: `saber_(fate)` is not emphasised."""
    return (Span(caption, 1.0),)


def _count_bytes(kept: Conditioning) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)
