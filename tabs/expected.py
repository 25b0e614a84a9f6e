"""What the Train tab's controls ask for, and what it will take, before anything starts."""

import threading
from collections.abc import Mapping
from typing import Any

import gradio as gr

from core import gpu, models
from core.data import dataset as datasets
from core.markdown import warned
from core.recent import Recent
from core.toml import parse_toml
from core.train import runs
from core.train.estimate import SHAPED_BY, Estimate, Pace, batches, estimate, pace
from core.train.run import Run
from core.train.settings import Training, settings
from core.types import Model, UserError
from tabs import pictures

CHOSEN = ("steps", "batch", "rate", "rank", "alpha", "resolution", "targets", "optimizer", "expected_strength", "seed")
"""The settings that have a control of their own; all others are said as `name = value`."""


def filled(recipe: str, model: str) -> list[Any]:
    made = settings(recipe, models.find(model))
    return [made.help, *(getattr(made, name) for name in CHOSEN)]


def _overrides(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the controls and lines say that the recipe does not. Raises `UserError`."""
    made = settings(values["recipe"], models.find(values["model"]))
    said = {name: values[name] for name in CHOSEN if values[name] is not None}
    plain_numbers = {name: float(value) if isinstance(getattr(made, name), float) else value for name, value in said.items()}
    return {name: value for name, value in plain_numbers.items() if value != getattr(made, name)} | lines(values.get("others_said") or "")


def lines(text: str) -> dict[str, Any]:
    """Settings as TOML says them. Raises `UserError`."""
    return parse_toml(text, "overrides")


def settled(values: dict[str, Any]) -> tuple[Run, list[str], datasets.Dataset]:
    """The run that the controls ask for. Raises `UserError`."""
    found = pictures.data(values["data"])
    return *runs.settled(found, values["recipe"], values["model"], trigger=values["trigger"], overrides=_overrides(values)), found


def expected(**values: Any) -> tuple[str, Any]:
    """What the run will take, what makes little sense of it, and the buckets."""
    if not values["data"]:
        return "", gr.update(visible=False)
    crops = gr.skip()
    try:
        found = pictures.data(values["data"])
        made = settings(values["recipe"], models.find(values["model"]), {**found.settings, **_overrides(values)})
        crops = gr.update(value=pictures.crops(found, made), visible=True)  # also where a trigger or captions are still missing
        run, said, _ = settled(values)
    except UserError as error:
        return warned(str(error)), crops
    taken = _taken(run, found)
    first = f"**{taken.line()}**" if taken else "What it takes is not known now: its model is not loaded, is at work, or has no room for it."
    return "\n".join([first, *(f"- {warned(line)}" for line in said)]), crops


def _taken(run: Run, found: datasets.Dataset) -> Estimate | None:
    """What it takes on this machine; `None` where its model is not loaded, is at work, or has no room for it."""
    told = _pace(run, found)
    return estimate(run, found, told) if told else None


def _pace(run: Run, found: datasets.Dataset) -> Pace | None:
    """Measured once, and for one visitor at a time: nobody waits here, and who comes meanwhile is not told."""
    model = models.find(run.model)
    wanted = (run.model, *(getattr(run.settings, name) for name in SHAPED_BY), *batches(model, run.settings, found))
    if (told := _paces.get(wanted)) or not _measuring.acquire(blocking=False):
        return told
    try:
        if told := gpu.alone(_measured, model, run.settings, found):
            _paces[wanted] = told
        return told
    finally:
        _measuring.release()


_paces: Recent[tuple[Any, ...], Pace] = Recent(100)  # by the model, and all that a pace depends on
_measuring = threading.Lock()


def _measured(model: Model, made: Training, found: datasets.Dataset) -> Pace | None:
    return pace(models.current(), model, made, found) if models.loaded() == model.name else None


def seconds(values: dict[str, Any]) -> float | None:
    """How long what the controls ask for would take here, if that is known."""
    try:
        run, _, found = settled(values)
    except UserError:
        return None
    taken = _taken(run, found)
    return taken.seconds if taken and not taken.at_least else None
