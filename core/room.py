"""Room on the disk: what is free, and the floor below which nothing new begins."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from core import limits
from core.types import UserError

GB = 10**9


def free(folder: Path) -> int:
    """Bytes that are free on the folder's disk; the folder may not be there yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check(folder: Path, copied: Iterable[Path] = ()) -> None:
    """Raise `UserError` where what is written, files that are copied among it, would bring the disk below its floor."""
    if (left := free(folder)) < limits.DISK_FLOOR:
        raise UserError(f"disk: {left / GB:.2f} GB are free, and {limits.DISK_FLOOR / GB:g} GB must stay free; nothing new begins until there is room.")
    if left - (wanted := sum(file.stat().st_size for file in copied)) < limits.DISK_FLOOR:
        raise UserError(f"disk: it takes {wanted / GB:.2f} GB; {left / GB:.2f} GB are free, and {limits.DISK_FLOOR / GB:g} GB must stay free.")
