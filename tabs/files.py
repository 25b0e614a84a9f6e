"""Where the files that a page shows are written: inside Gradio's cache, under a name that cannot be guessed."""

import os
import secrets
from pathlib import Path

FILES = Path(os.environ.setdefault("GRADIO_TEMP_DIR", str(Path.home() / ".cache" / "sweetspot" / "files")))


def new_folder() -> Path:
    """A folder of its own for one job's files."""
    folder = FILES / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return folder
