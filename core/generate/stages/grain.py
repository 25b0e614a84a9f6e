"""Add noise to a picture that is too smooth, and smooth surfaces before they are enlarged."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from core.schema.types import Grain


def add_grain(picture: Image.Image, grain: Grain, seed: int) -> Image.Image:
    """Blur the picture slightly, then add noise of deviation `amount` (of 0..1).

    The grains are `size` pixels large. The same seed gives the same noise.
    """
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(grain.blur)), np.float32)
    h, w, _ = soft.shape
    rows, columns = (max(1, round(side / grain.size)) for side in (h, w))
    noise = (
        np.random.default_rng(seed)
        .standard_normal((rows, columns, 1 if grain.monochrome else 3))
        .astype(np.float32)
    )
    if (rows, columns) != (h, w):
        planes = torch.from_numpy(noise).permute(2, 0, 1)[None]
        noise = F.interpolate(planes, (h, w), mode="bicubic")[0].permute(1, 2, 0).numpy()
        noise /= noise.std()  # interpolation takes some of it away
    return Image.fromarray((soft + 255 * grain.amount * noise).round().clip(0, 255).astype(np.uint8))


def smooth_texture(picture: Image.Image, amount: float, radius: int = 4, edge: float = 0.1) -> Image.Image:
    """Even out variations below `edge` (of 0..1) within `radius` pixels, and keep edges.

    This is the guided filter of He, Sun, Tang 2010, "Guided Image Filtering", where each colour is
    its own guide. `amount` goes from 0 (unchanged) to 1.
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
