"""Small runs on nano for the tests of training."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from core.dataset.dataset import Dataset, Sample, save_dataset
from core.runtime import torch_thread
from core.train import runs
from core.train.trainer.loop import TrainingEvent, train
from core.train.trainer.run_folder import RunFolder
from core.train.trainer.run_record import Run

QUICK_SETTINGS = {"steps": 12, "batch": 2, "preview_every": 0, "save_every": 100, "rate": 1e-3}
SMALL_SIZES: dict[str, Any] = {"resolution": 64, "least_side": 32, "most_side": 128, "bucket_step": 8}
CAPTIONS = (
    "1girl, blue hair, smile",
    "1girl, red hair, long hair, frown, (sky:1.3)",
    "",
    "no humans, gradient, abstract",
)


def make_dataset(
    folder: Path,
    captions: tuple[str, ...] = CAPTIONS,
    sizes: tuple[tuple[int, int], ...] = ((128, 128), (150, 100)),
    **more: Any,
) -> Dataset:
    """Save a dataset of colour gradients, one picture per caption.

    `sizes` are (width, height) in pixels and are used in turn.
    """
    folder.mkdir(parents=True)
    samples = []
    for i, caption in enumerate(captions):
        width, height = sizes[i % len(sizes)]
        y, x = np.mgrid[0:height, 0:width]
        pixels = np.stack(
            [
                127 + 120 * np.sin(x / 17 + i),
                127 + 120 * np.cos(y / 13 - i),
                255 * (x + y) / (width + height),
            ],
            axis=-1,
        )
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:04d}.png")
        samples.append(
            Sample(
                file=f"{i:04d}.png",
                name=f"{i}.png",
                caption=caption,
                width=width,
                height=height,
                group="2_flow",
                repeats=2,
                **more,
            )
        )
    made = Dataset(folder=folder, samples=tuple(samples))
    save_dataset(made)
    return made


def prepare_run(
    data: Dataset, folder: Path, recipe: str = "nano-quick", **overrides: Any
) -> tuple[RunFolder, Run]:
    """Create a run of a few steps in `folder`."""
    run, _ = runs.plan_run(data, recipe, trigger="flow", overrides={**QUICK_SETTINGS, **overrides})
    return runs.create_run(run, data, folder), run


def set_up_run(data: Dataset, **overrides: Any) -> RunFolder:
    """Create a run of a few steps in the studio's folder of runs, under a random name."""
    folder, _ = prepare_run(data, runs.RUNS / os.urandom(16).hex(), **overrides)
    return folder


def run_training(folder: RunFolder, event_count: int | None = None) -> list[TrainingEvent]:
    """Train on torch's thread and return the events.

    After `event_count` events the training is closed; the run is left as by a killed process.
    """
    with folder.lock():
        events = train(folder)
        found = []
        while (event_count is None or len(found) < event_count) and (
            event := torch_thread.run_on_torch_thread(next, events, None)
        ) is not None:
            found.append(event)
        torch_thread.run_on_torch_thread(events.close)
    return found


def read_losses(folder: RunFolder) -> list[tuple[int, float, float, float]]:
    """Return step, loss, rate and gradient norm of all steps in a run's events."""
    return [
        (line["step"], line["loss"], line["rate"], line["norm"])
        for line in folder.read_events()
        if line["kind"] == "loss"
    ]


def read_weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    """Return the tensors of a run's last state."""
    found = folder.load_state()
    assert found is not None, f"{folder.path} has no state"
    return found[1]


def assert_same(one: RunFolder, other: RunFolder) -> None:
    """Assert that two runs have bit for bit the same losses, weights and optimiser."""
    assert read_losses(one) == read_losses(other)
    mine, its = read_weights(one), read_weights(other)
    assert mine.keys() == its.keys()
    different = [name for name in mine if not torch.equal(mine[name], its[name])]
    assert not different, f"different after the last step: {different[:5]}"
