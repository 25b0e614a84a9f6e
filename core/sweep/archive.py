"""Reads a sweep's zip, also a stranger's, and writes its report anew.

No name in it becomes a path, and nothing is unpacked onto the disk.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from PIL import Image

from core.dataset.dataset import clean_name
from core.dataset.files import Entry
from core.dataset.pictures import UnusableFile, decode_picture
from core.dataset.sources import open_file_trees
from core.schema import limits
from core.schema.errors import UserError
from core.system import disk
from core.system.atomic_files import replace_file

REPORT_NAME = "report.json"


def read_report(file: Path) -> dict[str, Any]:
    """Return the report in a sweep's zip, or the report that any other file is.

    Raises `UserError` with one sentence if there is none.
    """
    try:
        if file.suffix.lower() == ".zip":
            with _open_archive(file) as entries:
                data = entries[REPORT_NAME].read(limits.BODY_BYTES)
        else:
            with file.open("rb") as opened:
                data = opened.read(limits.BODY_BYTES + 1)
            if len(data) > limits.BODY_BYTES:
                raise UnusableFile(f"it has more than {limits.BODY_BYTES:,} bytes, the limit")
        report = json.loads(data)
    except UnusableFile as error:
        raise UserError("report", f"{clean_name(file.name)} cannot be read: {error}.") from error
    except (OSError, KeyError, ValueError, RecursionError) as error:
        raise UserError("report", f"{clean_name(file.name)} contains no readable {REPORT_NAME}.") from error
    if not isinstance(report, dict):
        raise UserError("report", f"{clean_name(file.name)} contains no report.")
    return report


def load_pictures(file: Path, names: Sequence[str]) -> list[Image.Image]:
    """Return pictures of a sweep's zip, RGB. Raises `UserError` for one that is missing or unusable."""
    with _open_archive(file) as entries:
        if missing := next((name for name in names if name not in entries), None):
            raise UserError("report", f"{clean_name(file.name)} lacks the image {clean_name(missing)}.")
        try:
            return [decode_picture(entries[name].read()).picture for name in names]
        except UnusableFile as error:
            raise UserError("report", f"an image in {clean_name(file.name)} is unusable: {error}.") from error


def replace_report(file: Path, report: Mapping[str, Any]) -> None:
    """Write the zip anew with this report and all its other files; after an error it stays as it was.

    The files in it carry today's date, and no time. Raises `UserError` if one of them is unusable.
    """
    disk.check_free_disk(file.parent)
    today = date.today().timetuple()[:6]
    try:
        with (
            _open_archive(file) as entries,
            replace_file(file) as unfinished,
            zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as out,  # PNG does not get smaller
        ):
            for name, entry in entries.items():
                if name != REPORT_NAME:
                    out.writestr(zipfile.ZipInfo(name, today), entry.read())
            out.writestr(zipfile.ZipInfo(REPORT_NAME, today), json.dumps(report, indent=1))
    except UnusableFile as error:
        raise UserError("report", f"a file in {clean_name(file.name)} is unusable: {error}.") from error


@contextmanager
def _open_archive(file: Path) -> Iterator[dict[str, Entry]]:
    """Open a zip as its files by name. Raises `UserError` if it is none, or has a file that could harm."""
    if file.suffix.lower() != ".zip":
        raise UserError("report", f"{clean_name(file.name)} is no zip; use the zip of a sweep.")
    try:
        with open_file_trees([file], trusted=False) as (tree, _):
            if tree.skipped:
                first = tree.skipped[0]
                raise UserError("report", f"{first.name} in {clean_name(file.name)}: {first.reason}.")
            yield {entry.name: entry for entry in tree.entries}
    except UserError as error:
        raise UserError("report", error.sentence) from error
