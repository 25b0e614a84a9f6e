"""What the controls of a training ask for: a recipe, and the settings that differ from it."""

from collections.abc import Mapping
from typing import Any

from core.dataset import dataset as datasets
from core.models import bases
from core.schema.toml import parse_toml
from core.train import runs
from core.train.trainer.run_record import Run
from core.train.trainer.settings import resolve_settings
from tabs.shared import dataset_intake

CONTROL_SETTINGS = (
    "steps",
    "batch",
    "learning_rate",
    "rank",
    "alpha",
    "resolution",
    "targets",
    "optimizer",
    "expected_strength",
    "seed",
)
"""The settings that have a control of their own; all others are written as `name = value`."""


def collect_overrides(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the controls and lines that differ from the recipe.

    Raises `UserError` if the recipe or a line is not valid.
    """
    made = resolve_settings(values["recipe"], bases.find_model(values["model"]))
    said = {name: values[name] for name in CONTROL_SETTINGS if values[name] is not None}
    plain_numbers = {
        name: float(value) if isinstance(getattr(made, name), float) else value
        for name, value in said.items()
    }
    return {
        name: value
        for name, value in plain_numbers.items()
        if str(value) != str(getattr(made, name))  # the seed comes as text
    } | parse_overrides(values.get("others_said") or "")


def parse_overrides(text: str) -> dict[str, Any]:
    """Parse settings that are written as TOML. Raises `UserError` if they are not valid."""
    return parse_toml(text, "overrides")


def plan_from_controls(values: dict[str, Any]) -> tuple[Run, list[str], datasets.Dataset]:
    """Return the run that the controls ask for, its warnings, and its dataset.

    Raises `UserError` if it cannot be planned.
    """
    found = dataset_intake.open_dataset(values["data"])
    return *runs.plan_run(
        found,
        values["recipe"],
        values["model"],
        trigger=values["trigger"],
        overrides=collect_overrides(values),
    ), found
