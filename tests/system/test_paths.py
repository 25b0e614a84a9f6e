"""SWEETSPOT_HOME moves what people add and what the studio writes, and nothing of the checkout."""

import os
import subprocess
import sys
from pathlib import Path

from core.system import paths

PRINT_SCRIPT = (
    "from core.system import paths; print(paths.MODELS, paths.RUNS, paths.CELL_CACHE, paths.FILES, "
    "paths.OUTPUTS, paths.locate('models/a.safetensors'), sep='\\n')"
)
FOLDER_VARIABLES = (
    "SWEETSPOT_HOME",
    "SWEETSPOT_RUNS",
    "SWEETSPOT_CELLS",
    "GRADIO_TEMP_DIR",
    "SWEETSPOT_OUTPUTS",
)


def read_folders(**environment: str) -> list[str]:
    rest = {name: value for name, value in os.environ.items() if name not in FOLDER_VARIABLES}
    command = [sys.executable, "-c", PRINT_SCRIPT]
    return subprocess.run(
        command, cwd=paths.CODE, env={**rest, **environment}, capture_output=True, text=True, check=True
    ).stdout.split()


def test_one_folder_holds_models_outputs_and_runs(tmp_path: Path) -> None:
    names = ("models", "runs", "cells", "files", "outputs", "models/a.safetensors")
    assert read_folders(SWEETSPOT_HOME=str(tmp_path)) == [str(tmp_path / name) for name in names]


def test_a_relative_folder_is_one_for_a_training_too() -> None:
    """Otherwise a training, which starts in another folder, looks for models and runs elsewhere."""
    command = [
        sys.executable,
        "-c",
        (
            "import os; from core.system import paths; "
            "print(paths.RUNS, os.environ['SWEETSPOT_HOME'], os.environ['SWEETSPOT_RUNS'])"
        ),
    ]
    here = {**os.environ, "SWEETSPOT_HOME": "data", "SWEETSPOT_RUNS": "others"}
    found = subprocess.run(
        command, cwd=paths.CODE, env=here, capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == [str(paths.CODE / "others"), str(paths.CODE / "data"), str(paths.CODE / "others")]


def test_a_folder_of_its_own_comes_before_it(tmp_path: Path) -> None:
    assert read_folders(SWEETSPOT_HOME=str(tmp_path), SWEETSPOT_RUNS=str(tmp_path / "other"))[1] == str(
        tmp_path / "other"
    )


def test_without_it_everything_is_where_it_was(tmp_path: Path) -> None:
    """A person who updates keeps the runs and pictures made before."""
    found = read_folders(HOME=str(tmp_path))
    cache = tmp_path / ".cache/sweetspot"
    runs = tmp_path / ".local/share/sweetspot/runs"
    assert found == [
        str(each)
        for each in (
            paths.CODE / "models",
            runs,
            cache / "cells",
            cache / "files",
            paths.CODE / "outputs",
            paths.CODE / "models/a.safetensors",
        )
    ]


def test_embedded_weights_stay_with_the_code() -> None:
    assert paths.locate("core/nano/weights/nano").is_dir()
    assert paths.locate("/elsewhere/a.safetensors") == Path("/elsewhere/a.safetensors")
