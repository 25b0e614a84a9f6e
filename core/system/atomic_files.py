"""Write files atomically: whatever happens, there is the whole old file or the whole new one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

TEMP_PATTERN = ".*.tmp"
"""Glob pattern of the unfinished files that a killed process may leave behind."""


@contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, whose content then replaces `file` once it is on disk.

    After an error `file` stays as it was.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{uuid4().hex}.tmp")
    try:
        yield unfinished
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def remove_on_error(folder: Path) -> Iterator[None]:
    """Remove the folder if the `with` block that fills it raises, for example on a full disk."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def link_or_copy(file: Path, target: Path) -> None:
    """Make the file available at `target`, too: as a hard link, or as a copy if the disk has none.

    An existing `target` is left as it is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except FileExistsError:
        return
    except OSError:
        with replace_file(target) as unfinished:
            shutil.copyfile(file, unfinished)


def copy_to_new_file(file: Path, target: Path) -> None:
    """Copy the file to `target`, whole or not at all; the folder is there already.

    Raises `FileExistsError` if something has that name, also if another process was first.
    """
    unfinished = target.with_name(f".{uuid4().hex}.tmp")
    try:
        shutil.copyfile(file, unfinished)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        try:
            os.link(unfinished, target)
        except FileExistsError:
            raise
        except OSError:  # a disk without hard links: whoever creates the name has it
            target.touch(exist_ok=False)
            unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
