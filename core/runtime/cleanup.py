"""Remove what nobody uses any more, and give back memory.

The ages are in `core.schema.limits`. Removed are a page's files and cells, and on a hosted Space
runs and downloads, too.
"""

import re
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from core.hub import downloads
from core.schema import limits
from core.schema.errors import UserError
from core.sweep import cell_cache
from core.system import call_log, disk, memory
from core.system.device import is_space
from core.train import runs
from core.train.trainer.run_folder import RunFolder

FOLDER_NAME = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
"""Names of folders of files and runs, ours and Gradio's.

Nothing of another name is touched, wherever an environment variable points to.
"""
STRAY_NAME = re.compile(r"tmp[a-z0-9_]{8}")
"""Gradio leaves an empty file for each file in a call, and what it got of a cancelled upload."""
CELL_NAME = re.compile(r"[0-9a-f]{64}(-[\w.-]+)?\.(png|npz|json)")


def start_cleanup(files: Path) -> None:
    """Start a thread that removes expired files now and every hour.

    While a hosted Space's disk is below its floor, it does so every minute. `files` is the folder
    of the page's files.
    """

    def run_cleanup() -> None:
        last = float("-inf")
        while True:
            if time.monotonic() - last >= limits.HOUR or _is_disk_low(files):
                last = time.monotonic()
                if gone := {name: many for name, many in remove_expired(files).items() if many}:
                    call_log.log_line("swept", **gone)
            memory.trim_heap()
            time.sleep(60)

    threading.Thread(target=run_cleanup, name="sweeper", daemon=True).start()


def remove_expired(files: Path) -> dict[str, int]:
    """Remove what is older than its age, and return how many of each kind were removed."""
    ages = {
        name: age
        for name, (hosted, home) in limits.UNUSED_AGES.items()
        if (age := hosted if is_space() else home) is not None
    }
    if short := _is_disk_low(files):
        ages |= dict.fromkeys(("files", "cells", "downloads"), limits.HOUR)
    now = time.time()
    old = {name: now - age for name, age in ages.items()}
    return {
        "files": sum(
            _remove(each)
            for each in (*_list_folders(files), *_list_strays(files))
            if _find_last_change(each) < old["files"]
        ),
        "cells": sum(
            _remove(file)
            for file in cell_cache.FOLDER.glob("??/*")
            if CELL_NAME.fullmatch(file.name) and _find_last_change(file) < old["cells"]
        ),
        "runs": sum(
            _remove_run(folder)
            for folder in _list_folders(runs.RUNS)
            if _find_last_training(folder) < now - _choose_run_age(folder, ages["runs"], short)
        )
        if "runs" in ages
        else 0,
        "downloads": downloads.remove_unused_repos(ages["downloads"]) if "downloads" in ages else 0,
    }


def _is_disk_low(files: Path) -> bool:
    """Whether a hosted Space's disk is so full that nothing can begin until there is room."""
    return is_space() and disk.get_free_bytes(files) < limits.DISK_FLOOR


def _list_folders(parent: Path) -> Iterable[Path]:
    return [
        folder
        for folder in parent.glob("*")
        if FOLDER_NAME.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink()
    ]


def _list_strays(parent: Path) -> Iterable[Path]:
    return [
        file
        for file in parent.glob("tmp*")
        if STRAY_NAME.fullmatch(file.name) and file.is_file() and not file.is_symlink()
    ]


def _find_last_change(path: Path) -> float:
    """Return when the path or anything in it last changed.

    A folder changes when something is copied into it, however old the copied file is.
    """
    latest = 0.0
    for each in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):
            latest = max(latest, each.stat().st_mtime)
    return latest


def _find_last_training(folder: Path) -> float:
    """Return when a run was set up or last trained.

    A request to stop it, or a look at it, does not count as use.
    """
    run = RunFolder(folder)
    return (
        max(map(_find_last_change, (run.run_file, run.events_file, run.states, run.latents)))
        if run.run_file.exists()
        else _find_last_change(folder)
    )


def _choose_run_age(folder: Path, age: int, short: bool) -> int:
    """Return the age at which a run is removed.

    If the disk is short, that is a day, or an hour if the run has no step that would be lost.
    """
    if not short:
        return age
    return limits.DAY if RunFolder(folder).find_last_step() else limits.HOUR


def _remove(path: Path) -> bool:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return not path.exists()


def _remove_run(folder: Path) -> bool:
    """Remove a run unless a process trains it or waits to; nobody can take it meanwhile."""
    try:
        with RunFolder(folder).lock():
            return _remove(folder)
    except UserError:
        return False
