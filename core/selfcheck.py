"""What this machine lacks, looked at before the start: what cannot be used here and why, in sentences without a path."""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from huggingface_hub import constants, get_token, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from core import cells, limits, models, presets, room
from core.device import on_space, this_machine
from core.train import runs, settings


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found."""

    wrong: tuple[str, ...]
    """What a person has to put right before work can be done."""
    missing: tuple[str, ...]
    """What cannot be used here, and why; the rest can."""

    def line(self) -> str:
        """One line for the page; empty where nothing is wrong or missing."""
        return " ".join([*(f"⚠️ {sentence}" for sentence in self.wrong), *self.missing])


def check(files: Path) -> Check:
    """Look at everything; `files` is where a page's files lie. Raises `UserError` for a preset that is wrong."""
    for table in (presets.models, presets.tools, presets.recipes, settings.recipes):
        table()
    folders = {"files (GRADIO_TEMP_DIR)": files, "cells (SWEETSPOT_CELLS)": cells.FOLDER, "runs (SWEETSPOT_RUNS)": runs.RUNS}
    wrong = [why for name, folder in folders.items() if (why := _unwritable(name, folder))]
    missing = [why for why in (_no_gpu(), _no_hub(), no_login(), _not_here()) if why]
    return Check(wrong=(*wrong, *_shared()), missing=tuple(missing))


def _unwritable(name: str, folder: Path) -> str | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"The folder of {name} cannot be written to ({error.strerror}): nothing can be made."
    if (left := room.free(folder)) < limits.DISK_FLOOR:
        return f"The disk of {name} has {left / room.GB:.2f} GB free, and {limits.DISK_FLOOR / room.GB:g} GB must stay free: nothing new begins."
    return None


def _shared() -> list[str]:
    if os.environ.get("GRADIO_SHARE", "").lower() == "true" and get_token():
        return ["GRADIO_SHARE opens this studio to everybody who has the link, and a Hugging Face token is saved on this machine: remove one of them."]
    return []


def _no_gpu() -> str | None:
    return None if this_machine().device == "cuda" else "No GPU: nano works in seconds, a picture of a full SDXL takes minutes."


def _no_hub() -> str | None:
    return "The Hub is switched off (HF_HUB_OFFLINE): nothing is fetched from it or published." if constants.HF_HUB_OFFLINE else None


def no_login() -> str | None:
    """Why nobody can log in; `None` if somebody can."""
    if not on_space():
        return None if get_token() else "No Hugging Face login on this machine (`hf auth login`): Publish shows what it would send, and sends nothing."
    try:
        importlib.import_module("authlib")
    except ImportError:
        return "No login: authlib is not installed (`gradio[oauth]`), so nothing can be published from here."
    if not os.environ.get("OAUTH_CLIENT_ID"):
        return "No login: this Space has no `hf_oauth: true`, so nothing can be published from here."
    return None


def _not_here() -> str | None:
    """Which models and tools are not on this machine."""
    there = {name: not models.absence(model) for name, model in presets.models().items()}
    there |= {name: tool.revision is None or _cached(tool.source, tool.revision) for name, tool in presets.tools().items()}
    gone = [name for name, here in there.items() if not here]
    return f"Not on this machine yet: {', '.join(gone)}." if gone else None


def _cached(repo: str, revision: str) -> bool:
    try:
        snapshot_download(repo, revision=revision, local_files_only=True, token=False)
    except LocalEntryNotFoundError:
        return False
    return True
