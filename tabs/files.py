"""Where the files that a page shows are written: inside Gradio's cache, under a name that cannot be guessed; and no file from elsewhere."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
import safehttpx
from gradio import processing_utils

from core import atomic, models, paths, record, room, shelf
from core.events import Picture
from core.infotext import infotext
from core.types import UserError

FILES = Path(os.environ.setdefault("GRADIO_TEMP_DIR", str(paths.OUTPUTS)))


async def _unasked(*_: Any, **__: Any) -> NoReturn:
    raise gr.Error("file: it takes an uploaded file; no address is opened.")


# Gradio would fetch from any public machine what a client names by an address: in any field that takes a file, and at /gradio_api/file=.
processing_utils.async_ssrf_protected_download = safehttpx.async_validate_url = _unasked


class _Used(set[str]):
    """In place of a list of files to delete, which Gradio would keep for good: a file that a call takes or gives is in use now."""

    def add(self, file: str) -> None:
        with suppress(OSError, ValueError):  # gone, or none of a page's
            os.utime(FILES / Path(file).relative_to(FILES).parts[0])  # its folder: whoever knows the file by its time still does

    def update(self, *files: Iterable[str]) -> None:
        pass  # uploads, which are new


def keep_files(page: gr.Blocks) -> None:
    """Files go by the ages of `core.limits` alone, counted from their last use: no restart and no clock of Gradio's takes them."""
    page.upload_file_set = _Used()
    for block in page.blocks.values():
        block.temp_files = _Used()
    page.temp_file_sets = []


def new_folder() -> Path:
    """A folder of its own for one job's files. Raises `UserError` where the disk has no room for them."""
    room.check(FILES)
    folder = FILES / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return folder


@contextmanager
def filled_folder() -> Iterator[Path]:
    """The same, gone again if the job fails."""
    folder = new_folder()
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder)
        raise


@contextmanager
def passing_folder() -> Iterator[Path]:
    """The same for files that nobody is shown, gone again at the end."""
    folder = new_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def save(event: Picture, folder: Path) -> tuple[str, str]:
    """Write a picture as PNG with its settings inside; returns the file and the settings."""
    request = event.cell.request
    text = infotext(request, models.find(request.model), shelf.hashes(request.loras))
    file = folder / f"{event.index:02d}-{request.seed}.png"
    record.save_png(event.image, file, text)
    return str(file), text


def uploaded(said: Any, field: str) -> str:
    """The path of a file that a client uploaded. Raises `UserError` for anything else; no other path of this machine is ever opened."""
    if isinstance(said, dict) and isinstance(said.get("path"), str):
        path = Path(said["path"].replace("\0", "")).resolve()
        if path.is_relative_to(FILES.resolve()) and path.is_file():
            return str(path)
    raise UserError(f"{field}: it takes an uploaded file.")


def chosen(lora: Any) -> str:
    """The path of a LoRA that a client names: a file that it uploaded, the name of one on the shelf, or a Hub id.

    Raises `UserError` for anything else.
    """
    if isinstance(lora, str):
        return str(shelf.found(lora))
    try:
        return uploaded(lora, "lora")
    except UserError:
        raise UserError("lora: it takes an uploaded file, the name of one on the shelf, or a Hub id owner/name.") from None


def placed(file: Path, folder: str) -> Path:
    """A run's file where a page may show it; `folder` is what `core.train.owner.shown` says, which cannot be guessed."""
    at = FILES / folder / file.name
    atomic.placed(file, at)
    return at
