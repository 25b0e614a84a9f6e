"""Everything needed to train a LoRA again: a run, as it lies in its folder and as a person writes it down."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core import presets
from core.train.folder import Folder, write_text
from core.train.settings import Training


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training, settled."""

    name: str
    """What its LoRA's file is called."""
    recipe: str
    """The recipe that it began from; `settings` is what counts."""
    model: str
    """The name of a `Model`."""
    trigger: str = ""
    """Words that stand at the start of the captions; empty for none."""
    settings: Training
    prompts: tuple[str, ...]
    """Of the previews."""
    fingerprint: str
    """Of its pictures and captions."""
    began: str
    """When it was set up, ISO."""
    parent: str | None = None
    """The run and step that it was forked from, as `name@step`."""


def write(run: Run, folder: Folder) -> None:
    write_text(folder.run, json.dumps(asdict(run), indent=1))


def read(folder: Folder) -> Run:
    """The run of a folder. Raises `UserError` for one that is not whole, and `FileNotFoundError` where there is none."""
    return parsed(json.loads(folder.run.read_text(encoding="utf-8")))


def parsed(table: Mapping[str, Any]) -> Run:
    """A run from its table; each key must be a field and each value of its type."""
    settings = {name: value for name, value in table["settings"].items() if value is not None}
    return presets.record(Run, {**{name: value for name, value in table.items() if value is not None}, "settings": settings}, "run")


def last(folder: Folder) -> Path | None:
    """The LoRA of the last step, once there is one."""
    file = folder.loras / f"{read(folder).name}.safetensors"
    return file if file.exists() else None
