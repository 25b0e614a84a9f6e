"""Files that were brought and not read yet: each can be read once it is known to be small enough, none beyond the size that it declared."""

import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO

from core import limits
from core.data.dataset import Skipped, shown
from core.data.pictures import Unusable, is_picture

UNPACKING = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError)
"""What `zipfile` raises over bad archives."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file."""

    name: str
    """Its place in what was brought, with `/` between folders; never a path that is opened."""
    size: int
    """Bytes that it says it has."""
    opened: Callable[[], IO[bytes]] = field(repr=False)
    path: Path | None = None
    """Where it lies on this machine; `None` in a zip."""

    @property
    def folder(self) -> str:
        """The folder that it lies in; `.` for the topmost."""
        return str(PurePosixPath(self.name).parent)

    @property
    def suffix(self) -> str:
        """The ending, as it is written."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """Its name without the ending, folders and all: what a picture and its caption share."""
        return self.name.removesuffix(self.suffix)

    @cached_property
    def is_picture(self) -> bool:
        """Whether it begins as a picture does; also if it cannot be unpacked, which is told when it is read."""
        try:
            return is_picture(self._begin(12))
        except Unusable:
            return True

    def read(self, most: int = limits.DATASET_FILE) -> bytes:
        """All of it. Raises `Unusable` for a file of more than `most` bytes, or more than it declared, or that cannot be unpacked."""
        if self.size > most:
            raise Unusable(f"it has {self.size:,} bytes; up to {most:,} are read")
        data = self._begin(self.size + 1)
        if len(data) > self.size:
            raise Unusable("it is larger than it says")
        return data

    def _begin(self, count: int) -> bytes:
        try:
            with self.opened() as file:
                return file.read(count)
        except UNPACKING as error:
            raise Unusable("it cannot be unpacked") from error


@dataclass(frozen=True, kw_only=True)
class Box:
    """Files that belong together: a zip, a folder, or what was dropped side by side."""

    entries: tuple[Entry, ...]
    """By their names, so that their order is the same on every disk."""
    skipped: tuple[Skipped, ...]

    def folders(self) -> dict[str, list[Entry]]:
        """Folder -> the files right in it."""
        found: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            found[entry.folder].append(entry)
        return found


def boxed(entries: Iterable[Entry], skipped: Iterable[Skipped]) -> Box:
    """The files as a box; of two with one name the first."""
    known: dict[str, Entry] = {}
    twice = [entry for entry in entries if known.setdefault(entry.name, entry) is not entry]
    left = [*skipped, *(Skipped(name=shown(entry.name), reason="another file has the same name") for entry in twice)]
    return Box(entries=tuple(sorted(known.values(), key=lambda entry: entry.name)), skipped=tuple(sorted(left, key=lambda file: file.name)))
