"""What a person brought, as boxes of files: zips, folders, and files dropped side by side.

No name becomes a path. How many files there are and how large they are is checked before any is read.
"""

import io
import math
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from core import limits
from core.data.dataset import Skipped, shown
from core.data.files import UNPACKING, Box, Entry, boxed
from core.types import UserError

QUIET = re.compile(r"(.*/)?(__MACOSX/|\.[^./]|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE)
"""Hidden files, and others that systems put beside people's own; nobody misses them."""
OUTSIDE = re.compile(r"/|[A-Za-z]:|(.*/)?\.\.(/|$)")
"""A name that leads out of where it stands."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The others' decoders take as much memory as a file tells them to."""
DIRECTORY = limits.DATASET_MEMBERS * 1000
"""Bytes of a zip's list of members, which is read in one piece."""


@contextmanager
def boxes(sources: Sequence[Path], trusted: bool) -> Iterator[list[Box]]:
    """The sources as boxes, open while it lasts. Raises `UserError` for too many files or bytes, and for one that is not there.

    Links in a folder are followed, to files, only if it is `trusted`.
    """
    with ExitStack() as stack:
        found, loose = [], []
        for source in sources:
            if source.is_dir():
                found.append(on_disk(source.rglob("*"), source, trusted))
            elif not source.is_file():
                raise UserError(f"dataset: {shown(source.name)} is not there.")
            elif source.suffix.lower() == ".zip":
                found.append(_zip(source, stack))
            else:
                loose.append(_on_disk(source, source.name))
        found.append(boxed(loose, ()))
        entries = [entry for box in found for entry in box.entries]
        if len(entries) > limits.DATASET_MEMBERS:
            raise _too_many()
        if (total := sum(entry.size for entry in entries)) > limits.DATASET_BYTES:
            raise UserError(f"dataset: {total:,} bytes unpacked are too many; it takes up to {limits.DATASET_BYTES:,}.")
        yield found


def on_disk(files: Iterable[Path], root: Path, trusted: bool) -> Box:
    """Files of a folder on this machine, by their names from `root` on. Raises `UserError` for too many."""
    entries, skipped = [], []
    for file in files:
        name = file.relative_to(root).as_posix()
        if QUIET.match(name):
            continue
        if file.is_symlink() and not (trusted and file.is_file()):
            skipped.append(Skipped(name=shown(name), reason="it is a link"))
        elif file.is_file():
            entries.append(_on_disk(file, name))
        if len(entries) > limits.DATASET_MEMBERS:
            raise _too_many()
    return boxed(entries, skipped)


def _on_disk(file: Path, name: str) -> Entry:
    return Entry(name=name, size=file.stat().st_size, opened=lambda: file.open("rb"), path=file)


class _Bounded(io.FileIO):
    """A zip whose list of members is not taken into memory if it is far too long."""

    most: float = DIRECTORY

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self.most:
            raise _too_many()
        return super().read(size)


def _zip(source: Path, stack: ExitStack) -> Box:
    file = stack.enter_context(_Bounded(source))
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
    except UNPACKING:
        return boxed((), [Skipped(name=shown(source.name), reason="it is not a whole zip archive")])
    file.most = math.inf  # members have limits of their own
    members = archive.infolist()
    if len(members) > limits.DATASET_MEMBERS:
        raise _too_many()
    total, packed = sum(member.file_size for member in members), source.stat().st_size
    if total > limits.DATASET_RATIO * packed:
        raise UserError(f"dataset: {shown(source.name)} has {packed:,} bytes and would have {total:,}; it takes up to {limits.DATASET_RATIO} times as many.")
    entries, skipped = [], []
    for member in members:
        name = _name(member)
        if name.endswith("/") or QUIET.match(name):
            continue
        if reason := _refusal(member, name):
            skipped.append(Skipped(name=shown(name), reason=reason))
        else:
            entries.append(Entry(name=str(PurePosixPath(name)), size=member.file_size, opened=lambda member=member: archive.open(member)))
    return boxed(entries, skipped)


def _name(member: zipfile.ZipInfo) -> str:
    """A member's name as it was meant: without the flag for UTF-8 it may be UTF-8 all the same, or Japanese Windows' encoding."""
    name = member.orig_filename
    if not member.flag_bits & 0x800:
        raw = name.encode("cp437")
        for encoding in ("utf-8", "cp932"):
            try:
                name = raw.decode(encoding)
                break
            except UnicodeDecodeError:
                continue
    return name.replace("\\", "/").partition("\0")[0]


def _refusal(member: zipfile.ZipInfo, name: str) -> str | None:
    if OUTSIDE.match(name):
        return "its name leads out of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "it is a link"
    if member.flag_bits & 1:
        return "it is encrypted"
    if member.compress_type not in METHODS:
        return "it is packed in a way that is not read; stored and deflated members are"
    return None


def _too_many() -> UserError:
    return UserError(f"dataset: more than {limits.DATASET_MEMBERS:,} files are too many.")
