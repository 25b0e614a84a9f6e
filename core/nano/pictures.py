"""Drawn pictures by the thousand, kept on disk so that the stages share them."""

from multiprocessing import Pool
from typing import NamedTuple

import numpy as np

from core.nano.draw import draw
from core.nano.stage import BUILD
from core.nano.world import SIZES, Scene, sample

COUNTS = {(128, 128): 16_000, (128, 192): 5_000, (192, 128): 5_000}
"""How many pictures of each size the family learns from."""

HELD_OUT = 1_000_000
"""Scenes are seeded by their index; held-out ones start here."""


class Pictures(NamedTuple):
    scenes: list[Scene]
    pixels: np.ndarray  # (n, height, width, 3) uint8


def scene(index: int, size: tuple[int, int]) -> Scene:
    """The scene with this number among those of its size; the same number, the same scene."""
    return sample(np.random.default_rng([index, *size]), size)


def _drawn(job: tuple[int, tuple[int, int]]) -> np.ndarray:
    return np.asarray(draw(scene(*job)))


def pictures(size: tuple[int, int], count: int | None = None, first: int = 0) -> Pictures:
    """Scenes `first` .. `first + count` of a size with their pixels, drawn once and then read from disk."""
    count = COUNTS[size] if count is None else count
    scenes = [scene(first + i, size) for i in range(count)]
    file = BUILD / f"pictures-{size[0]}x{size[1]}-{first}-{count}.npy"
    if not file.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with Pool() as pool:
            pixels = np.stack(pool.map(_drawn, [(first + i, size) for i in range(count)], chunksize=64))
        with file.with_suffix(".tmp").open("wb") as out:
            np.save(out, pixels)
        file.with_suffix(".tmp").replace(file)
    return Pictures(scenes, np.load(file, mmap_mode="r"))


def contents() -> dict[tuple[int, int], Pictures]:
    """All training pictures, by size."""
    return {size: pictures(size) for size in SIZES}
