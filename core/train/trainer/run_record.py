"""The record of a run: everything needed to train its LoRA again.

It is what lies in the run's folder, and what a person writes down.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.schema.errors import UserError
from core.schema.records import make_record, record
from core.train.trainer.run_folder import RunFolder, write_text
from core.train.trainer.settings import TrainingSettings, replace_old_names


@record
class Run:
    """A planned run, with all settings resolved."""

    name: str
    """Name of the LoRA's file."""
    recipe: str
    """The recipe that the run began from; `settings` is what counts."""
    model: str
    """The name of a `Model`."""
    trigger: str = ""
    """Words at the start of the captions; empty for none."""
    settings: TrainingSettings
    prompts: tuple[str, ...]
    """Prompts of the previews."""
    fingerprint: str
    """Fingerprint of the run's pictures and captions."""
    began: str
    """When the run was set up, in ISO 8601."""
    parent: str | None = None
    """The run and step that this one was forked from, as `name@step`."""


def write_run(run: Run, folder: RunFolder) -> None:
    """Write a run into its folder, as JSON."""
    write_text(folder.run_file, json.dumps(asdict(run), indent=1))


def read_run(folder: RunFolder) -> Run:
    """Read the run of a folder.

    Raises `UserError` for a run that is not valid, and `FileNotFoundError` if there is none.
    """
    try:
        table = json.loads(folder.run_file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError("run", f"{folder.name} cannot be read; its run.json is damaged.") from error
    return parse_run(table)


def parse_run(table: Any) -> Run:
    """Parse a run from its table.

    Raises `UserError` if a key is not a field, or a value not of its type.
    """
    if not isinstance(table, Mapping) or not isinstance(table.get("settings"), Mapping):
        raise UserError("run", "it is not the table of a run, with its settings.")
    settings = {
        name: value
        for name, value in replace_old_names(table["settings"], "run").items()
        if value is not None
    }
    return make_record(
        Run,
        {**{name: value for name, value in table.items() if value is not None}, "settings": settings},
        "run",
    )


def find_final_lora(folder: RunFolder) -> Path | None:
    """Return the LoRA of the last step, or `None` before there is one."""
    file = folder.loras / f"{read_run(folder).name}.safetensors"
    return file if file.exists() else None
