"""Where the files that a page shows are written: inside Gradio's cache, under a name that cannot be guessed."""

import os
import secrets
from pathlib import Path

from core import models, record
from core.types import Picture

FILES = Path(os.environ.setdefault("GRADIO_TEMP_DIR", str(Path.home() / ".cache" / "sweetspot" / "files")))


def new_folder() -> Path:
    """A folder of its own for one job's files."""
    folder = FILES / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return folder


def save(event: Picture, folder: Path) -> tuple[str, str]:
    """Write a picture as PNG with its settings inside; returns the file and the settings."""
    request = event.cell.request
    text = record.infotext(request, models.find(request.model))
    file = folder / f"{event.index:02d}-{request.seed}.png"
    record.save_png(event.image, file, text)
    return str(file), text
