"""Free space on the disk, and the floor below which nothing new begins."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from core.schema import limits
from core.schema.errors import UserError

GB = 10**9


def get_free_bytes(folder: Path) -> int:
    """Return the free bytes on the folder's disk; the folder need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_free_disk(folder: Path, files_to_copy: Iterable[Path] = ()) -> None:
    """Check that the disk has room for new work and for copies of `files_to_copy`.

    Raises `UserError` if the free space is, or would be, below `limits.DISK_FLOOR`.
    """
    if (left := get_free_bytes(folder)) < limits.DISK_FLOOR:
        raise UserError(
            "disk",
            f"{left / GB:.2f} GB are free, but {limits.DISK_FLOOR / GB:g} GB must stay free. "
            "Free up space to start new jobs.",
        )
    if left - (wanted := sum(file.stat().st_size for file in files_to_copy)) < limits.DISK_FLOOR:
        raise UserError(
            "disk",
            f"this needs {wanted / GB:.2f} GB; {left / GB:.2f} GB are free, and "
            f"{limits.DISK_FLOOR / GB:g} GB must stay free.",
        )
