"""Files that are whole at any time: the old one, then the new one, whatever happens in between."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

TORN = ".*.tmp"
"""What a killed process may leave behind."""


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to; what is there at the end takes `file`'s place, once it is on disk. Nothing does after an error."""
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
def filling(folder: Path) -> Iterator[None]:
    """While a job's own folder is filled: after an error, such as a full disk, nothing of it is left."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def placed(file: Path, at: Path) -> None:
    """The same file at another place: a second name for it, or a copy where the disk has no such thing."""
    at.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, at)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(file, at)
