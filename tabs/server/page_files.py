"""Write the files that a page shows: inside Gradio's cache, under names that cannot be guessed.

No file from elsewhere is opened.
"""

import hashlib
import os
import secrets
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
import safehttpx
from PIL import Image

from core.generate.picture_file import save_picture
from core.models import lora_library
from core.schema import limits
from core.schema.errors import UserError
from core.schema.events import Picture
from core.system import atomic_files, disk, paths
from tabs.server.gradio_internals import processing_utils

FILES_FOLDER = Path(os.environ.setdefault("GRADIO_TEMP_DIR", str(paths.FILES)))


async def _refuse_address(*_: Any, **__: Any) -> NoReturn:
    raise gr.Error("file: use an uploaded file; URLs are not opened.")


# Gradio would fetch from any public machine what a client names by an address: in any field that
# takes a file, and at /gradio_api/file=.
processing_utils.async_ssrf_protected_download = safehttpx.async_validate_url = _refuse_address


class _FilesInUse(set[str]):
    """Mark the files that a call takes or gives as in use now.

    This stands in place of a list of files to delete, which Gradio would keep for good.
    """

    def add(self, file: str) -> None:
        with suppress(OSError, ValueError):  # it is gone, or not a file of a page
            # The time of its folder: whatever knows the file by its own time still does.
            os.utime(FILES_FOLDER / Path(file).relative_to(FILES_FOLDER).parts[0])

    def update(self, *files: Iterable[str]) -> None:
        pass  # uploads, which are new


def keep_files(page: gr.Blocks) -> None:
    """Let only the ages in `core.schema.limits` decide when files go, counted from their last use.

    No restart and no clock of Gradio's deletes them.
    """
    page.upload_file_set = _FilesInUse()
    for block in page.blocks.values():
        block.temp_files = _FilesInUse()
    page.temp_file_sets = []


def create_folder() -> Path:
    """Create a folder of its own for one job's files.

    Raises `UserError` if the disk has no room for them.
    """
    disk.check_free_disk(FILES_FOLDER)
    folder = FILES_FOLDER / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return folder


@contextmanager
def create_output_folder() -> Iterator[Path]:
    """Create a folder for one job's files, which is deleted if the job fails.

    Raises `UserError` if the disk has no room for them.
    """
    folder = create_folder()
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder)
        raise


@contextmanager
def create_temporary_folder() -> Iterator[Path]:
    """Create a folder for files that nobody is shown, which is deleted at the end.

    Raises `UserError` if the disk has no room for them.
    """
    folder = create_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what is inside may have deleted it after an error


def save_result(event: Picture, folder: Path) -> str:
    """Write a picture as PNG with its settings inside, and return the file."""
    request = event.cell.request
    file = folder / f"{event.index:02d}-{request.seed}.png"
    save_picture(event.image, request, file)
    return str(file)


def resolve_upload(value: Any, field: str) -> str:
    """Return the path of a file that a client uploaded.

    Raises `UserError` for anything else; no other path of this machine is ever opened.
    """
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        with suppress(OSError, ValueError):  # no path of a file: too long, or with half a character
            path = Path(value["path"].replace("\0", "")).resolve()
            if path.is_relative_to(FILES_FOLDER.resolve()) and path.is_file():
                return str(path)
    raise UserError(field, "use an uploaded file.")


def resolve_uploads(values: Any, field: str) -> tuple[str, ...]:
    """Return the paths of images that a client uploaded.

    Raises `UserError` for anything else.
    """
    if not isinstance(values, list | tuple):
        raise UserError(field, "use a list of uploaded images.")
    return tuple(resolve_upload(each, field) for each in values)


def resolve_lora(lora: Any) -> str:
    """Return the path of a LoRA: an uploaded file, a name in the LoRA library, or a Hub id.

    Raises `UserError` for anything else.
    """
    if isinstance(lora, str):
        return str(lora_library.find_lora(lora))
    try:
        return resolve_upload(lora, "lora")
    except UserError:
        raise UserError(
            "lora", "use an uploaded file, a name in the LoRA library, or a Hub id owner/name."
        ) from None


def expose_run_file(file: Path, folder: str) -> Path:
    """Put a run's file where a page may show it, and return its path there.

    `folder` is what `core.train.access.get_public_id` returns, which cannot be guessed.
    """
    at = FILES_FOLDER / folder / file.name
    atomic_files.link_or_copy(file, at)
    return at


THUMBNAIL_SIDE = 320
"""Pixels of a thumbnail's longer side."""


def expose_thumbnail(file: Path) -> Path | None:
    """Put a small copy of a picture where a page may show it; `None` if it cannot be read as a PNG."""
    try:
        target = locate_copies(file) / "thumbnail.jpg"
        if not target.exists():
            with Image.open(file, formats=("PNG",)) as image, atomic_files.replace_file(target) as unfinished:
                if image.width * image.height > limits.PICTURE_PIXELS:
                    return None
                image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=2)
                image.convert("RGB").save(unfinished, "JPEG", quality=85)
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        return None
    return target


def expose_picture(file: Path) -> Path:
    """Put a picture where a page may show it, under its own name, and return its path there."""
    at = locate_copies(file) / file.name
    atomic_files.link_or_copy(file, at)
    return at


def locate_copies(file: Path) -> Path:
    """Return the folder for a page's copies of a file, which is another one once the file has changed."""
    told = file.stat()
    name = f"{file} {told.st_mtime_ns} {told.st_size}"
    return FILES_FOLDER / hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
