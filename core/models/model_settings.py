"""Keeps what a person sets for a model: its VAE, what it predicts, where its missing parts come from.

One JSON file beside the folders of models holds it for all models, by their names. A Space keeps none:
its visitors share the models.
"""

import json
from dataclasses import asdict, replace
from typing import Annotated

from core.schema.bounds import OneOf
from core.schema.errors import UserError
from core.schema.records import make_record, record
from core.schema.types import Model
from core.system import paths
from core.system.atomic_files import replace_file
from core.system.device import is_space

SETTINGS_FILE = "model_settings.json"
MAX_BYTES = 2**20


@record
class ModelSettings:
    """What a person sets for one model; `None` leaves it to the model."""

    vae: str | None = None
    """A `Tool` of kind `vae`, or a file of the folder of VAEs."""
    prediction_type: Annotated[str | None, OneOf(("epsilon", "v_prediction"))] = None
    donor: str | None = None
    """The model that a missing VAE and missing text encoders are taken from."""


def apply_settings(model: Model) -> Model:
    """Return the model as a person set it. Raises `UserError` for settings that cannot be read."""
    settings = get_settings(model.name)
    return replace(model, **{name: value for name, value in asdict(settings).items() if value is not None})


def get_settings(name: str) -> ModelSettings:
    """Return what is set for the model of that name. Raises `UserError` for an unreadable file."""
    return ModelSettings() if is_space() else _read_settings().get(name, ModelSettings())


def save_settings(name: str, settings: ModelSettings) -> None:
    """Set the model's settings, for ever. Raises `UserError` on a Space."""
    if is_space():
        raise UserError("model", "a Space's visitors share its models, whose settings stay as they are.")
    kept = {**_read_settings(), name: settings}
    changed = {each: asdict(value) for each, value in sorted(kept.items()) if value != ModelSettings()}
    file = paths.MODELS / SETTINGS_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(file) as new:
        new.write_text(json.dumps(changed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_settings() -> dict[str, ModelSettings]:
    """Return all settings by the models' names."""
    file = paths.MODELS / SETTINGS_FILE
    if not file.is_file():
        return {}
    try:
        tables = json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        tables = None
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise UserError(SETTINGS_FILE, f"{file} cannot be read. Mend it, or remove it.")
    return {name: make_record(ModelSettings, table, SETTINGS_FILE) for name, table in tables.items()}
