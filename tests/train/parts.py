"""Small runs on nano for the training's tests."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from core import gpu
from core.data.dataset import Dataset, Sample, save
from core.train import runs
from core.train.folder import Folder
from core.train.loop import Said, train
from core.train.run import Run

QUICK = {"steps": 12, "batch": 2, "preview_every": 0, "save_every": 100, "rate": 1e-3}
SMALL: dict[str, Any] = {"resolution": 64, "least_side": 32, "most_side": 128, "bucket_step": 8}
CAPTIONS = ("1girl, blue hair, smile", "1girl, red hair, long hair, frown, (sky:1.3)", "", "no humans, gradient, abstract")


def dataset(folder: Path, captions: tuple[str, ...] = CAPTIONS, sizes: tuple[tuple[int, int], ...] = ((128, 128), (150, 100)), **more: Any) -> Dataset:
    """Pictures of colours that flow into each other, with these captions and of these sizes in turn."""
    folder.mkdir(parents=True)
    samples = []
    for i, caption in enumerate(captions):
        width, height = sizes[i % len(sizes)]
        y, x = np.mgrid[0:height, 0:width]
        pixels = np.stack([127 + 120 * np.sin(x / 17 + i), 127 + 120 * np.cos(y / 13 - i), 255 * (x + y) / (width + height)], axis=-1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:04d}.png")
        samples.append(Sample(file=f"{i:04d}.png", name=f"{i}.png", caption=caption, width=width, height=height, group="2_flow", repeats=2, **more))
    made = Dataset(folder=folder, samples=tuple(samples))
    save(made)
    return made


def prepared(data: Dataset, into: Path, recipe: str = "nano-quick", **overrides: Any) -> tuple[Folder, Run]:
    """A run of a few steps."""
    run, _ = runs.settled(data, recipe, trigger="flow", overrides={**QUICK, **overrides})
    return runs.prepared(run, data, into), run


def set_up(data: Dataset, **overrides: Any) -> Folder:
    """The same where the studio's runs lie, by a name of its own."""
    folder, _ = prepared(data, runs.RUNS / os.urandom(16).hex(), **overrides)
    return folder


def followed(folder: Folder, end: int | None = None) -> list[Said]:
    """Train on the thread that does torch's work; closed after `end` events, as a process that is killed leaves it."""
    with folder.owned():
        events = train(folder)
        found = []
        while (end is None or len(found) < end) and (event := gpu.lane(next, events, None)) is not None:
            found.append(event)
        gpu.lane(events.close)
    return found


def losses(folder: Folder) -> list[tuple[int, float, float, float]]:
    """Step, loss, rate and gradient of all steps that a run has said."""
    return [(line["step"], line["loss"], line["rate"], line["norm"]) for line in folder.said() if line["kind"] == "loss"]


def weights(folder: Folder) -> dict[str, torch.Tensor]:
    """All that a run has at its end."""
    found = folder.state()
    assert found is not None, f"{folder.path} has no state"
    return found[1]


def assert_same(one: Folder, other: Folder) -> None:
    """Bit for bit the same losses, weights and optimiser."""
    assert losses(one) == losses(other)
    mine, its = weights(one), weights(other)
    assert mine.keys() == its.keys()
    different = [name for name in mine if not torch.equal(mine[name], its[name])]
    assert not different, f"different after the last step: {different[:5]}"
