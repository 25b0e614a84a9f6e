"""Opens what a person brings as file trees: zips, folders, and files dropped side by side.

No name becomes a path. The number of files and their sizes are checked before any is read.
"""

import io
import math
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from core.dataset.dataset import SkippedFile, clean_name
from core.dataset.files import UNZIP_ERRORS, Entry, FileTree, make_file_tree
from core.schema import limits
from core.schema.errors import UserError

HIDDEN_FILE = re.compile(r"(.*/)?(__MACOSX/|\.[^./]|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE)
"""Hidden files, and others that systems put beside people's own; they are ignored silently."""
PATH_TRAVERSAL = re.compile(r"/|[A-Za-z]:|(.*/)?\.\.(/|$)")
"""A name that leads out of its folder."""
COMPRESSION_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The supported methods; the decoders of others take as much memory as a file tells them to."""
MAX_DIRECTORY_BYTES = limits.DATASET_MEMBERS * 1000
"""Limit in bytes of a zip's list of members, which is read in one piece."""


@contextmanager
def open_file_trees(sources: Sequence[Path], trusted: bool) -> Iterator[list[FileTree]]:
    """Open the sources as file trees, until the context ends.

    Links in a folder are followed only if it is `trusted`, and only to files. Raises `UserError`
    for too many files or bytes, and for a source that does not exist.
    """
    with ExitStack() as stack:
        found, loose = [], []
        for source in sources:
            if source.is_dir():
                found.append(scan_files(source.rglob("*"), source, trusted))
            elif not source.is_file():
                raise UserError("dataset", f"{clean_name(source.name)} does not exist.")
            elif source.suffix.lower() == ".zip":
                found.append(_scan_zip(source, stack))
            else:
                loose.append(_make_entry(source, source.name))
        found.append(make_file_tree(loose, ()))
        entries = [entry for box in found for entry in box.entries]
        if len(entries) > limits.DATASET_MEMBERS:
            raise _make_count_error()
        if (total := sum(entry.size for entry in entries)) > limits.DATASET_BYTES:
            raise UserError(
                "dataset", f"{total:,} bytes unpacked are too many; the limit is {limits.DATASET_BYTES:,}."
            )
        yield found


def scan_files(files: Iterable[Path], root: Path, trusted: bool) -> FileTree:
    """Return files of a folder on this machine as a tree, named relative to `root`.

    Raises `UserError` if there are too many.
    """
    entries, skipped = [], []
    for file in files:
        name = file.relative_to(root).as_posix()
        if HIDDEN_FILE.match(name):
            continue
        if file.is_symlink() and not (trusted and file.is_file()):
            skipped.append(SkippedFile(name=clean_name(name), reason="it is a link"))
        elif file.is_file():
            entries.append(_make_entry(file, name))
        if len(entries) > limits.DATASET_MEMBERS:
            raise _make_count_error()
    return make_file_tree(entries, skipped)


def _make_entry(file: Path, name: str) -> Entry:
    return Entry(name=name, size=file.stat().st_size, open_file=lambda: file.open("rb"), path=file)


class _BoundedZipFile(io.FileIO):
    """A zip file that refuses to read a list of members that is far too long."""

    max_read: float = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self.max_read:
            raise _make_count_error()
        return super().read(size)


def _scan_zip(source: Path, stack: ExitStack) -> FileTree:
    file = stack.enter_context(_BoundedZipFile(source))
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
    except UNZIP_ERRORS:
        return make_file_tree(
            (), [SkippedFile(name=clean_name(source.name), reason="it is not a complete zip archive")]
        )
    file.max_read = math.inf  # members have limits of their own
    members = archive.infolist()
    if len(members) > limits.DATASET_MEMBERS:
        raise _make_count_error()
    total, packed = sum(member.file_size for member in members), source.stat().st_size
    if total > limits.DATASET_RATIO * packed:
        raise UserError(
            "dataset",
            f"{clean_name(source.name)} has {packed:,} bytes and unpacks to {total:,}; "
            f"the limit is {limits.DATASET_RATIO} times its size.",
        )
    entries, skipped = [], []
    for member in members:
        name = _decode_name(member)
        if name.endswith("/") or HIDDEN_FILE.match(name):
            continue
        if reason := _find_skip_reason(member, name):
            skipped.append(SkippedFile(name=clean_name(name), reason=reason))
        else:
            entries.append(
                Entry(
                    name=str(PurePosixPath(name)),
                    size=member.file_size,
                    open_file=lambda member=member: archive.open(member),
                )
            )
    return make_file_tree(entries, skipped)


def _decode_name(member: zipfile.ZipInfo) -> str:
    """Return a member's name as it was meant.

    Without the UTF-8 flag it may still be UTF-8, or the encoding of Japanese Windows.
    """
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


def _find_skip_reason(member: zipfile.ZipInfo, name: str) -> str | None:
    if PATH_TRAVERSAL.match(name):
        return "its path leads out of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "it is a link"
    if member.flag_bits & 1:
        return "it is encrypted"
    if member.compress_type not in COMPRESSION_METHODS:
        return "its compression is not supported; stored and deflated files are"
    return None


def _make_count_error() -> UserError:
    return UserError("dataset", f"more than {limits.DATASET_MEMBERS:,} files are too many.")
