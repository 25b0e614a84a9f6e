"""Thousands of drawn pictures, kept on disk so that the stages share them."""

from multiprocessing import Pool
from typing import NamedTuple

import numpy as np

from core.nano.draw import draw_scene
from core.nano.stage import BUILD_FOLDER
from core.nano.world import SIZES, Scene, sample_scene

PICTURE_COUNTS = {(128, 128): 16_000, (128, 192): 5_000, (192, 128): 5_000}
"""How many pictures of each size, (width, height) in pixels, the family learns from."""

FIRST_HELD_OUT = 1_000_000
"""Scenes are seeded by their index; held-out ones start here."""


class Pictures(NamedTuple):
    """Scenes of one size, and their drawn pictures."""

    scenes: list[Scene]
    pixels: np.ndarray  # (n, height, width, 3) uint8


def make_scene(index: int, size: tuple[int, int]) -> Scene:
    """Return scene number `index` of a size; the same number always gives the same scene."""
    return sample_scene(np.random.default_rng([index, *size]), size)


def _draw_picture(job: tuple[int, tuple[int, int]]) -> np.ndarray:
    return np.asarray(draw_scene(make_scene(*job)))


def load_pictures(size: tuple[int, int], count: int | None = None, first: int = 0) -> Pictures:
    """Return scenes `first` .. `first + count` of a size with their pixels.

    They are drawn once and then read from disk.
    """
    count = PICTURE_COUNTS[size] if count is None else count
    scenes = [make_scene(first + i, size) for i in range(count)]
    file = BUILD_FOLDER / f"pictures-{size[0]}x{size[1]}-{first}-{count}.npy"
    if not file.exists():
        BUILD_FOLDER.mkdir(parents=True, exist_ok=True)
        with Pool() as pool:
            pixels = pool.map(_draw_picture, [(first + i, size) for i in range(count)], chunksize=64)
        with file.with_suffix(".tmp").open("wb") as out:
            np.save(out, np.stack(pixels))
        file.with_suffix(".tmp").replace(file)
    return Pictures(scenes, np.load(file, mmap_mode="r"))


def load_all_pictures() -> dict[tuple[int, int], Pictures]:
    """Return all training pictures by size."""
    return {size: load_pictures(size) for size in SIZES}
