"""The two uses of texture: noise put on a picture that is too smooth, and surfaces smoothed before they are enlarged."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from core.types import Grain


def grained(picture: Image.Image, grain: Grain, seed: int) -> Image.Image:
    """A slight blur, then noise of deviation `amount` (of 0..1) in grains of `size` pixels; the same seed, the same noise."""
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(grain.blur)), np.float32)
    h, w, _ = soft.shape
    rows, columns = (max(1, round(side / grain.size)) for side in (h, w))
    noise = np.random.default_rng(seed).standard_normal((rows, columns, 1 if grain.monochrome else 3)).astype(np.float32)
    if (rows, columns) != (h, w):
        planes = torch.from_numpy(noise).permute(2, 0, 1)[None]
        noise = F.interpolate(planes, (h, w), mode="bicubic")[0].permute(1, 2, 0).numpy()
        noise /= noise.std()  # interpolation takes some of it away
    return Image.fromarray((soft + 255 * grain.amount * noise).round().clip(0, 255).astype(np.uint8))


def smoothed(picture: Image.Image, amount: float, radius: int = 4, edge: float = 0.1) -> Image.Image:
    """Even out what varies by less than `edge` (of 0..1) within `radius` pixels, and keep edges: the guided filter.

    He, Sun, Tang 2010, "Guided Image Filtering", each colour its own guide. `amount` from 0 (as it is) to 1.
    """
    x = torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)[None]

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.pad(values, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)

    centre = mean(x)
    variance = (mean(x * x) - centre * centre).clamp(min=0)
    gain = variance / (variance + edge**2)
    flat = mean(gain) * x + mean(centre - gain * centre)
    mixed = x + amount * (flat - x)
    return Image.fromarray((mixed[0].permute(1, 2, 0).numpy() * 255).round().clip(0, 255).astype(np.uint8))
