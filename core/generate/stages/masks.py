"""Boxes and masks: pure arithmetic, without a model.

A box is (left, top, right, bottom) in pixels, with right and bottom exclusive; a mask is an array
(height, width) of uint8, 255 where the picture may change and 0 where it stays.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

Box = tuple[int, int, int, int]


def select_boxes(
    boxes: Sequence[Box], size: tuple[int, int], *, least: float = 0.0, most: float = 1.0, largest: int = 0
) -> list[Box]:
    """Select boxes whose share of the picture is from `least` to `most`.

    Returns the `largest` largest of them (0: all), sorted from left to right.
    """
    width, height = size
    fitting = [box for box in boxes if least <= area(box) / (width * height) <= most]
    by_area = sorted(fitting, key=area, reverse=True)[: largest or None]
    return sorted(by_area)


def area(box: Box) -> int:
    """Return the area of a box in square pixels; 0 if it is empty."""
    left, top, right, bottom = box
    return max(0, right - left) * max(0, bottom - top)


def box_mask(box: Box, size: tuple[int, int]) -> np.ndarray:
    """Mask of a box in a picture of `size` (width, height)."""
    left, top, right, bottom = (max(0, edge) for edge in box)
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def dilate_box(box: Box, pixels: int) -> Box:
    """Dilate the box by a square of `pixels`, half of it on each side; erode it if negative."""
    left, top, right, bottom = box
    half = abs(pixels) // 2 * (1 if pixels > 0 else -1)
    return left - half, top - half, right + half, bottom + half


def blur_mask(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Soften the mask's edge by a Gaussian of deviation `pixels`.

    A tail that would not change a pixel is cut off.
    """
    return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(pixels))) if pixels else mask


def mask_bounds(mask: np.ndarray) -> Box | None:
    """Bounding box of the pixels that are not 0; `None` for an empty mask."""
    return Image.fromarray(mask).getbbox()


def crop_region(box: Box, padding: int, size: tuple[int, int]) -> Box:
    """Part of the picture that the model sees: the box and its padding in pixels.

    It is square where the picture is large enough.
    """
    width, height = size
    left, top, right, bottom = box
    wide, high = min(width, right - left + 2 * padding), min(height, bottom - top + 2 * padding)
    wide, high = min(width, max(wide, high)), min(height, max(wide, high))
    x = min(max(0, (left + right - wide) // 2), width - wide)
    y = min(max(0, (top + bottom - high) // 2), height - high)
    return x, y, x + wide, y + high


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    left, top, right, bottom = (f(a, b) for f, a, b in zip((max, max, min, min), one, other, strict=True))
    shared = area((left, top, right, bottom))
    return shared / max(1, area(one) + area(other) - shared)
