"""Where Sweetspot finds models and keeps what it writes.

Everything is below SWEETSPOT_HOME if that is set, else in a default place of its own.
"""

import os
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent.parent
"""The checkout's root, with the embedded weights and the presets."""
HOME = Path(given).expanduser().absolute() if (given := os.environ.get("SWEETSPOT_HOME")) else None
if HOME:
    os.environ["SWEETSPOT_HOME"] = str(HOME)  # a training's process starts in another folder


def choose_folder(variable: str, name: str, default: Path) -> Path:
    """Return the folder that `variable` names, else `name` below SWEETSPOT_HOME, else `default`.

    `variable` is an environment variable; the absolute path is written back to it.
    """
    if folder := os.environ.get(variable):
        found = Path(folder).expanduser().absolute()
        os.environ[variable] = str(found)  # a training's process starts in another folder
        return found
    return HOME / name if HOME else default


MODELS = HOME / "models" if HOME else CODE / "models"
"""The studio's own folders of models, `checkpoints`, `loras`, `upscalers` and `detectors`."""
WILDCARDS = HOME / "wildcards" if HOME else CODE / "wildcards"
"""The choices that `__name__` in a prompt stands for, a text file for each name."""
MODEL_ROOTS = [
    Path(os.path.expanduser(each)).absolute()  # noqa: PTH111  (an unknown `~user` is only not there)
    for each in os.environ.get("SWEETSPOT_MODELS", "").split(os.pathsep)
    if each
]
"""Installations of other programs whose models are used where they are."""
if MODEL_ROOTS:  # a training's process starts in another folder
    os.environ["SWEETSPOT_MODELS"] = os.pathsep.join(map(str, MODEL_ROOTS))
RUNS = choose_folder("SWEETSPOT_RUNS", "runs", Path.home() / ".local" / "share" / "sweetspot" / "runs")
"""Training runs, a folder each."""
CELL_CACHE = choose_folder("SWEETSPOT_CELLS", "cells", Path.home() / ".cache" / "sweetspot" / "cells")
"""Cached pictures that a sweep need not make again."""
MEASURED = choose_folder(
    "SWEETSPOT_MEASURED", "measured", Path.home() / ".local" / "share" / "sweetspot" / "measured"
)
"""At which strengths own sweeps found that LoRAs work, a small file for each."""
FILES = choose_folder("GRADIO_TEMP_DIR", "files", Path.home() / ".cache" / "sweetspot" / "files")
"""Files that the page shows: uploads, pictures, sheets. They go when nobody uses them."""
OUTPUTS = choose_folder("SWEETSPOT_OUTPUTS", "outputs", CODE / "outputs")
"""Finished pictures at home, for ever."""


def locate(source: str) -> Path:
    """Return the path that a table of `presets/` refers to.

    `models/...` lies in `MODELS`, any other relative path in the checkout.
    """
    path = Path(source).expanduser()
    return MODELS.joinpath(*path.parts[1:]) if path.parts[:1] == ("models",) else CODE / path
