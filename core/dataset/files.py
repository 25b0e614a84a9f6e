"""Imported files that are not read yet.

Each can be read once it is known to be small enough, and none beyond the size that it declared.
"""

import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO

from core.dataset.dataset import SkippedFile, clean_name
from core.dataset.pictures import UnusableFile, is_picture
from core.schema import limits

UNZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError)
"""What `zipfile` raises for bad archives."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a file tree."""

    name: str
    """Path within what was imported, with `/` between folders; never a path that is opened."""
    size: int
    """Bytes that the file declares."""
    open_file: Callable[[], IO[bytes]] = field(repr=False)
    path: Path | None = None
    """Where the file is on this machine; `None` in a zip."""

    @property
    def folder(self) -> str:
        """Return the folder of the file; `.` at the top."""
        return str(PurePosixPath(self.name).parent)

    @property
    def suffix(self) -> str:
        """Return the file's suffix as it is written."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """Return the name, folders included, without the suffix.

        A picture and its caption share it.
        """
        return self.name.removesuffix(self.suffix)

    @cached_property
    def is_picture(self) -> bool:
        """Whether the file starts as a picture does.

        Also true if it cannot be unpacked; reading it reports that.
        """
        try:
            return is_picture(self._read_head(12))
        except UnusableFile:
            return True

    def read(self, max_bytes: int = limits.DATASET_FILE_BYTES) -> bytes:
        """Return all bytes of the file.

        Raises `UnusableFile` if it has more than `max_bytes` or more than it declared, or cannot be
        unpacked.
        """
        if self.size > max_bytes:
            raise UnusableFile(f"it has {self.size:,} bytes; the limit is {max_bytes:,}")
        data = self._read_head(self.size + 1)
        if len(data) > self.size:
            raise UnusableFile("it is larger than its header says")
        return data

    def _read_head(self, count: int) -> bytes:
        try:
            with self.open_file() as file:
                return file.read(count)
        except UNZIP_ERRORS as error:
            raise UnusableFile("it cannot be unpacked") from error


@dataclass(frozen=True, kw_only=True)
class FileTree:
    """Files that belong together: a zip, a folder, or files dropped side by side."""

    entries: tuple[Entry, ...]
    """Sorted by name, so that their order is the same on every disk."""
    skipped: tuple[SkippedFile, ...]

    def group_by_folder(self) -> dict[str, list[Entry]]:
        """Return folder -> the files directly in it."""
        found: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            found[entry.folder].append(entry)
        return found


def make_file_tree(entries: Iterable[Entry], skipped: Iterable[SkippedFile]) -> FileTree:
    """Return the files as a tree; of files with the same name only the first is kept."""
    known: dict[str, Entry] = {}
    twice = [entry for entry in entries if known.setdefault(entry.name, entry) is not entry]
    left = [
        *skipped,
        *(
            SkippedFile(name=clean_name(entry.name), reason="another file has the same name")
            for entry in twice
        ),
    ]
    return FileTree(
        entries=tuple(sorted(known.values(), key=lambda entry: entry.name)),
        skipped=tuple(sorted(left, key=lambda file: file.name)),
    )
