"""A small picture of what a LoRA does: the preview beside it, or the one in its metadata."""

import base64
import io
import re
import struct
from pathlib import Path

from PIL import Image

from core.models.lora_sidecars import find_beside

PREVIEW_SUFFIXES = tuple(
    f"{start}.{kind}" for start in (".preview", "") for kind in ("png", "jpg", "jpeg", "webp")
)
"""How other programs' previews end, after the LoRA's own name."""
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PREVIEW_BYTES = 20_000_000
MAX_PREVIEW_PIXELS = 20_000_000
SIDE = 160
"""Pixels of a thumbnail's longer side."""
DATA_URI = re.compile(r"data:image/(?:png|jpeg|webp);base64,([A-Za-z0-9+/=\s]*)")


def find_preview(lora: Path) -> str | None:
    """Return the preview beside a LoRA as a data URI of a small JPEG; `None` without one that can be read."""
    for suffix in PREVIEW_SUFFIXES:
        if (file := find_beside(lora, suffix)) and (made := _shrink(_read_bytes(file))):
            return made
    return None


def shrink_embedded(uri: str) -> str | None:
    """Return the picture of a data URI in a LoRA's metadata as one of a small JPEG; `None` if it is none."""
    if (found := DATA_URI.fullmatch(uri)) is None:
        return None
    try:
        return _shrink(base64.b64decode(found[1]))
    except ValueError:
        return None


def _read_bytes(file: Path) -> bytes:
    """Return a file's bytes; none of one that is too large or cannot be read."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_PREVIEW_BYTES + 1)
    except OSError:
        return b""
    return data if len(data) <= MAX_PREVIEW_BYTES else b""


def _shrink(data: bytes) -> str | None:
    """Return a picture of any size as a data URI of a small JPEG; `None` for what is no picture."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PREVIEW_PIXELS:
                return None
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))
            small = opened.convert("RGB")
            small.thumbnail((SIDE, SIDE))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=80)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
