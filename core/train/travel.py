"""What of a run travels to another machine and comes back; and the copy of a run that is trained where its own folder cannot be.

A bucket that is mounted takes files whole: nothing is appended to it and nobody locks in it. So a Job trains a copy on its own
disk and writes back what is new.
"""

import re
import shutil
import time
from pathlib import Path

from core.atomic import replacing
from core.train.folder import Folder

ORDER = ("run.json", "dataset/", "loras/", "previews/", "events.jsonl", "state/", "failure")
"""Files in which nothing speaks of one that comes later: after any of them, what is there can be gone on with."""
TRAVELS = re.compile(r"(?:dataset|loras|previews|state)/[^/.][^/]*|run\.json|events\.jsonl|failure")
"""Locks, logs and what can be computed again stay."""
PAUSE = 10
"""Seconds between two looks at what is new, beside those at each state."""


def travelling(folder: Folder) -> dict[str, Path]:
    """The files of a run by their names, in an order in which they can be written."""
    files = {file.relative_to(folder.path).as_posix(): file for file in sorted(folder.path.rglob("*")) if file.is_file()}
    return {name: files[name] for name in sorted(filter(TRAVELS.fullmatch, files), key=place)}


def place(name: str) -> int:
    """Where a file stands in `ORDER`."""
    return next(i for i, start in enumerate(ORDER) if name.startswith(start))


class Copy:
    """A run's copy on this machine's disk."""

    def __init__(self, home: Folder, folder: Path):
        self.home, self.folder = home, Folder(folder)
        for name, file in travelling(home).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
        self._written = {name: _mark(file) for name, file in travelling(self.folder).items()}
        self._looked = time.monotonic()

    def keep_up(self) -> None:
        """Write back what is new, if there is a new state or it is time."""
        states = {f"state/{file.name}" for file in self.folder.states.glob("[!.]*.safetensors")}
        if states - self._written.keys() or time.monotonic() - self._looked > PAUSE:
            self.write_back()

    def write_back(self) -> None:
        """Write back all that is new, each file whole, and take away what is gone."""
        now = travelling(self.folder)
        for name, file in now.items():
            if (mark := _mark(file)) != self._written.get(name):
                with replacing(self.home.path / name) as unfinished:
                    shutil.copyfile(file, unfinished)
                self._written[name] = mark
        for gone in self._written.keys() - now.keys():
            (self.home.path / gone).unlink(missing_ok=True)
            del self._written[gone]
        self._looked = time.monotonic()


def _mark(file: Path) -> tuple[int, int]:
    there = file.stat()
    return there.st_size, there.st_mtime_ns
