"""Sweeps away what nobody uses any more, by the ages in `core.limits`: a page's files, cells, on a hosted Space runs and downloads. And memory."""

import re
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from core import cells, hubcache, journal, limits, memory, room
from core.device import on_space
from core.train import runs
from core.train.folder import Folder
from core.types import UserError

NAMED = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
"""How folders of files and of runs are called, by us and by Gradio; nothing of another name is touched, wherever a variable points to."""
STRAY = re.compile(r"tmp[a-z0-9_]{8}")
"""Gradio leaves an empty file for each file that a call brings, and what it has of an upload that was broken off."""
CELL = re.compile(r"[0-9a-f]{64}(-[\w.-]+)?\.(png|npz)")


def start(files: Path) -> None:
    """Sweep now and every hour, and each minute while a hosted Space's disk is below its floor; `files` is where a page's lie."""

    def sweeping() -> None:
        last = float("-inf")
        while True:
            if time.monotonic() - last >= limits.HOUR or _short(files):
                last = time.monotonic()
                if gone := {name: many for name, many in sweep(files).items() if many}:
                    journal.say("swept", **gone)
            memory.trim()
            time.sleep(60)

    threading.Thread(target=sweeping, name="sweeper", daemon=True).start()


def sweep(files: Path) -> dict[str, int]:
    """Remove what is older than its age; how many of each went."""
    ages = {name: age for name, (hosted, home) in limits.AGES.items() if (age := hosted if on_space() else home) is not None}
    if short := _short(files):
        ages |= dict.fromkeys(("files", "cells", "downloads"), limits.HOUR)
    now = time.time()
    old = {name: now - age for name, age in ages.items()}
    return {
        "files": sum(_removed(each) for each in (*_folders(files), *_strays(files)) if _used(each) < old["files"]),
        "cells": sum(_removed(file) for file in cells.FOLDER.glob("??/*") if CELL.fullmatch(file.name) and _used(file) < old["cells"]),
        "runs": sum(_removed_run(folder) for folder in _folders(runs.RUNS) if _trained(folder) < now - _kept(folder, ages["runs"], short))
        if "runs" in ages
        else 0,
        "downloads": hubcache.swept(ages["downloads"]) if "downloads" in ages else 0,
    }


def _short(files: Path) -> bool:
    """Whether nothing can begin on a hosted Space until there is room."""
    return on_space() and room.free(files) < limits.DISK_FLOOR


def _folders(within: Path) -> Iterable[Path]:
    return [folder for folder in within.glob("*") if NAMED.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink()]


def _strays(within: Path) -> Iterable[Path]:
    return [file for file in within.glob("tmp*") if STRAY.fullmatch(file.name) and file.is_file() and not file.is_symlink()]


def _used(path: Path) -> float:
    """When something in it last changed: a folder changes with what comes into it, however old the file is that was copied."""
    latest = 0.0
    for each in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):
            latest = max(latest, each.stat().st_mtime)
    return latest


def _trained(folder: Path) -> float:
    """When a run was set up or last trained; to be asked to stop, or looked at, is no use of it."""
    run = Folder(folder)
    return max(map(_used, (run.run, run.events, run.states, run.latents))) if run.run.exists() else _used(folder)


def _kept(folder: Path, age: int, short: bool) -> int:
    """The age at which a run goes; where the disk is short, after a day, and after an hour if there is no step in it that would be lost."""
    if not short:
        return age
    return limits.DAY if Folder(folder).last() else limits.HOUR


def _removed(path: Path) -> bool:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return not path.exists()


def _removed_run(folder: Path) -> bool:
    """Gone unless a process has it, which trains it or waits its turn; nobody takes it meanwhile."""
    try:
        with Folder(folder).owned():
            return _removed(folder)
    except UserError:
        return False
