"""The Train tab's pictures trained on several bases, one after another, for the Transfer tab to cross."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from core import models, presets
from core.device import on_zero_gpu
from core.train import runs
from core.types import UserError
from tabs import caller, train
from tabs.finished import known


def across(bases: Sequence[str], kept: bool, mine: str, **values: Any) -> Iterator[tuple[Any, ...]]:
    """Train the same pictures on each base, one after another, then choose the runs and the bases for the study."""
    skip = gr.skip()
    try:
        if not bases:
            raise UserError("models: choose the bases to train on.")
        if on_zero_gpu():
            raise UserError("models: a lent GPU trains in slices; train on one base after another in the Train tab, then choose the runs here.")
        planned = [train.settled({**values, "model": model}) for model in bases]  # all of them are checked before the first begins
        folders = [runs.prepared(run, found, account=caller.account()) for run, _, found in planned]
        for folder in folders:
            runs.start(folder)
    except UserError as error:
        raise gr.Error(str(error)) from error
    mine = "\n".join([*(folder.name for folder in folders), *mine.split()][: train.MINE])
    yield "Training …", mine, skip, skip
    while not all((told := runs.status(folder)).state in ("done", "failed", "stopped") for folder in folders):
        at = [f"{model}: {status.state}, step {status.step} of {status.steps}" for model, status in zip(bases, map(runs.status, folders), strict=True)]
        yield f"Training. {'; '.join(at)}.", skip, skip, skip
        time.sleep(1)
    for folder, model in zip(folders, bases, strict=True):
        if (told := runs.status(folder)).state != "done":
            raise gr.Error(f"The run on {model} is {told.state}: {told.error or 'resume it in the Train tab'}")
    chosen = [f"{folder.name}{':all' if kept else ''}" for folder in folders]
    choices = known(mine, chosen)
    yield "Trained; crossing them …", skip, choices, gr.update(value=list(dict.fromkeys([*bases, *models_around(bases)])))


def models_around(bases: Sequence[str]) -> list[str]:
    """The other models of the same family that are on this machine."""
    sizes = {models.find(name).native_size for name in bases}
    return [model.name for model in presets.models().values() if model.native_size in sizes and models.absence(model) is None]
