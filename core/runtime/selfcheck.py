"""Check before the start what this machine lacks: what cannot be used and why, without any path."""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from huggingface_hub import constants, get_token, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from core.generate import outputs
from core.models import bases
from core.models import folders as folders_of_models
from core.schema import limits, presets
from core.sweep import cell_cache
from core.system import disk
from core.system.device import detect_machine, is_space
from core.train import runs
from core.train.trainer import settings


@dataclass(frozen=True, kw_only=True)
class SelfCheckReport:
    """The result of the self-check."""

    problems: tuple[str, ...]
    """What a person has to fix before work can be done."""
    missing: tuple[str, ...]
    """What cannot be used here, and why; the rest can be used."""

    def describe(self) -> str:
        """Return one line for the page; empty if nothing is wrong or missing."""
        return " ".join([*(f"⚠️ {sentence}" for sentence in self.problems), *self.missing])


def run_selfcheck(files: Path) -> SelfCheckReport:
    """Run all checks; `files` is the folder of the page's files.

    Raises `UserError` for an invalid preset, `paths.toml` or `outputs.toml`.
    """
    for check in (
        presets.get_models,
        presets.get_tools,
        presets.get_prompt_presets,
        settings.load_recipes,
        outputs.find_outputs,
    ):
        check()
    folders = {
        "files (GRADIO_TEMP_DIR)": files,
        "cells (SWEETSPOT_CELLS)": cell_cache.FOLDER,
        "runs (SWEETSPOT_RUNS)": runs.RUNS,
    }
    wrong = [why for name, folder in folders.items() if (why := _check_folder(name, folder))]
    missing = [why for why in (_check_gpu(), _check_hub(), check_login(), _check_models()) if why]
    wrong += [
        f"The folder {Path(folder).name!r} of paths.toml or SWEETSPOT_MODELS is not there."
        for folder in folders_of_models.list_missing_folders()
    ]
    return SelfCheckReport(problems=(*wrong, *_check_sharing()), missing=tuple(missing))


def _check_folder(name: str, folder: Path) -> str | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"The folder for {name} is not writable ({error.strerror}): nothing can be saved."
    if (left := disk.get_free_bytes(folder)) < limits.DISK_FLOOR:
        return (
            f"The disk of {name} has {left / disk.GB:.2f} GB free, and {limits.DISK_FLOOR / disk.GB:g} GB "
            "must stay free: no new jobs start."
        )
    return None


def _check_sharing() -> list[str]:
    if os.environ.get("GRADIO_SHARE", "").lower() == "true" and get_token():
        return [
            "GRADIO_SHARE opens this studio to everybody who has the link, and a Hugging Face token is "
            "saved on this machine: turn one of them off."
        ]
    return []


def _check_gpu() -> str | None:
    return (
        None
        if detect_machine().device == "cuda"
        else "No GPU found: nano takes seconds per image, full SDXL models take minutes."
    )


def _check_hub() -> str | None:
    return (
        "Offline mode is on (HF_HUB_OFFLINE): nothing is downloaded from Hugging Face or published."
        if constants.HF_HUB_OFFLINE
        else None
    )


def check_login() -> str | None:
    """Return the reason why nobody can log in; `None` if somebody can."""
    if not is_space():
        return (
            None
            if get_token()
            else "Not logged in to Hugging Face (run `hf auth login`): Publish can preview but not upload."
        )
    try:
        importlib.import_module("authlib")
    except ImportError:
        return "No login: authlib is not installed (`gradio[oauth]`), so nothing can be published from here."
    if not os.environ.get("OAUTH_CLIENT_ID"):
        return "No login: this Space has no `hf_oauth: true`, so nothing can be published from here."
    return None


def _check_models() -> str | None:
    """Return a sentence on the models and tools that are not on this machine; `None` if all are."""
    there = {name: not bases.describe_absence(model) for name, model in presets.get_models().items()}
    there |= {
        name: tool.revision is None or _is_cached(tool.source, tool.revision)
        for name, tool in presets.get_tools().items()
    }
    gone = [name for name, here in there.items() if not here]
    return f"Not downloaded yet: {', '.join(gone)}." if gone else None


def _is_cached(repo: str, revision: str) -> bool:
    try:
        snapshot_download(repo, revision=revision, local_files_only=True, token=False)
    except LocalEntryNotFoundError:
        return False
    return True
