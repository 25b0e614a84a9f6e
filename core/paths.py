"""Where Sweetspot finds models and keeps what it writes: below SWEETSPOT_HOME where that is set, else where each belongs."""

import os
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent
"""The checkout, with the embedded weights and the presets."""
HOME = Path(given).expanduser().absolute() if (given := os.environ.get("SWEETSPOT_HOME")) else None
if HOME:
    os.environ["SWEETSPOT_HOME"] = str(HOME)  # a training's process starts in another folder


def choose(variable: str, name: str, otherwise: Path) -> Path:
    """The folder that an environment variable names, else `name` below SWEETSPOT_HOME, else `otherwise`."""
    if folder := os.environ.get(variable):
        found = Path(folder).expanduser().absolute()
        os.environ[variable] = str(found)  # a training's process starts in another folder
        return found
    return HOME / name if HOME else otherwise


MODELS = HOME / "models" if HOME else CODE / "models"
"""Checkpoints, and in folders of their own `loras`, `upscalers` and `detectors`."""
RUNS = choose("SWEETSPOT_RUNS", "runs", Path.home() / ".local" / "share" / "sweetspot" / "runs")
"""Trainings, a folder each."""
CELLS = choose("SWEETSPOT_CELLS", "cells", Path.home() / ".cache" / "sweetspot" / "cells")
"""Pictures that a sweep need not make again."""
OUTPUTS = choose("GRADIO_TEMP_DIR", "outputs", Path.home() / ".cache" / "sweetspot" / "files")
"""What the page shows: uploads, pictures, sheets."""


def locate(source: str) -> Path:
    """The path that a table of `presets/` means: `models/...` lies in `MODELS`, any other relative one in the checkout."""
    path = Path(source).expanduser()
    return MODELS.joinpath(*path.parts[1:]) if path.parts[:1] == ("models",) else CODE / path
