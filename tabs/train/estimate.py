"""Estimate what the Train tab's controls ask for will take, before anything starts."""

import threading
from typing import Any

import gradio as gr

from core.dataset import dataset as datasets
from core.models import bases
from core.runtime import torch_thread
from core.schema.errors import UserError
from core.schema.types import Model
from core.system.concurrency import BoundedDict
from core.system.markdown import format_warning
from core.train import runs
from core.train.estimate import PACE_SETTINGS, Estimate, Pace, choose_batch_shapes, estimate_run, measure_pace
from core.train.trainer.run_record import Run
from core.train.trainer.settings import TrainingSettings, resolve_settings
from tabs.server.call_wrapper import show_refusal
from tabs.shared import dataset_intake
from tabs.shared.train_form import CONTROL_SETTINGS, collect_overrides, plan_from_controls
from tabs.train import pictures


def get_recipe_values(recipe: str, model: str) -> dict[str, Any]:
    made = resolve_settings(recipe, bases.find_model(model))
    return {name: getattr(made, name) for name in ("help", *CONTROL_SETTINGS)}


def show_estimate(**values: Any) -> tuple[str, Any]:
    """Return what the run will take, what makes little sense of it, and a crop for each bucket."""
    if not values["data"]:
        return "", gr.update(visible=False)
    crops = gr.skip()
    try:
        found = dataset_intake.open_dataset(values["data"])
        made = resolve_settings(
            values["recipe"],
            bases.find_model(values["model"]),
            {**found.settings, **collect_overrides(values)},
        )
        # Also where a trigger or captions are still missing.
        crops = gr.update(value=pictures.crop_bucket_samples(found, made), visible=True)
        run, said, _ = plan_from_controls(values)
    except UserError as error:
        return show_refusal(error), crops
    taken = _try_estimate(run, found)
    first = (
        f"**{taken.describe()}**"
        if taken
        else "No time estimate yet: the model is not loaded or is busy, a training is running, or too little "
        "memory is left."
    )
    return "\n".join([first, *(f"- {format_warning(line)}" for line in said)]), crops


def _try_estimate(run: Run, dataset: datasets.Dataset) -> Estimate | None:
    """Estimate the run on this machine.

    Returns `None` where its model is not loaded, is at work, or has no room for it, or a run trains.
    """
    told = _get_pace(run, dataset)
    return estimate_run(run, dataset, told) if told else None


def _get_pace(run: Run, dataset: datasets.Dataset) -> Pace | None:
    """Return the pace, measured once, and for one visitor at a time.

    Nobody waits here: a visitor who comes during a measurement gets `None`. Nothing is measured
    beside a training, which makes every step several times as slow.
    """
    model = bases.find_model(run.model)
    wanted = (
        run.model,
        *(getattr(run.settings, name) for name in PACE_SETTINGS),
        *choose_batch_shapes(model, run.settings, dataset),
    )
    if (told := _paces.get(wanted)) or not _measure_lock.acquire(blocking=False):
        return told
    try:
        if runs.is_any_training():
            return None
        if told := torch_thread.run_if_idle(_measure_if_loaded, model, run.settings, dataset):
            _paces[wanted] = told
        return told
    finally:
        _measure_lock.release()


# By the model, and all that a pace depends on.
_paces: BoundedDict[tuple[Any, ...], Pace] = BoundedDict(100)
_measure_lock = threading.Lock()


def _measure_if_loaded(model: Model, settings: TrainingSettings, dataset: datasets.Dataset) -> Pace | None:
    return (
        measure_pace(bases.get_current_pipeline(), model, settings, dataset)
        if bases.get_loaded_name() == model.name
        else None
    )


def estimate_seconds(values: dict[str, Any]) -> float | None:
    """Return the seconds that the run of the controls would take here, or `None` if unknown."""
    try:
        run, _, found = plan_from_controls(values)
    except UserError:
        return None
    taken = _try_estimate(run, found)
    return taken.seconds if taken and not taken.at_least else None
