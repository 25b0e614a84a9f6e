"""Infotext in picture files: writes it into PNG, reads it from PNG, JPEG, WebP and AVIF, of any tool."""

import struct
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core.prompts.dialects import translate_settings
from core.prompts.infotext import Reading, convert_settings
from core.prompts.picture_texts import read_hidden_text, read_texts
from core.prompts.readers import a1111, comfyui, fooocus, invokeai, novelai, swarmui
from core.prompts.readers.json_text import parse_table
from core.schema.errors import UserError
from core.schema.limits import DATASET_FILE_BYTES
from core.system.atomic_files import replace_file

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")
# A1111's text is before ComfyUI's graph: of a picture that has both, it says what was done.
READERS = (swarmui.read, fooocus.read, invokeai.read, novelai.read, a1111.read, comfyui.read)

JSON_NAMES = ("prompt", "invokeai_metadata", "Comment")
"""Where ComfyUI, InvokeAI and NovelAI write their JSON."""


def save_png(image: Image.Image, file: Path, infotext: str) -> None:
    """Write the picture as PNG, with its infotext where A1111 puts it.

    The write is atomic: `file` is always complete, the old one or the new one.
    """
    info = PngInfo()
    info.add_text("parameters", infotext)  # tEXt where Latin-1 can hold it, iTXt otherwise
    with replace_file(file) as unfinished:
        image.save(unfinished, format="PNG", pnginfo=info)


def read_infotext(file: Path) -> Reading:
    """Return the settings of a PNG, JPEG, WebP or AVIF file that any known tool made.

    Its pixels are decoded only if its texts have none. Raises `UserError` for a file that is none of
    these, has more than 64 megapixels or has no settings, and for settings that cannot be read.
    """
    try:
        if file.stat().st_size > DATASET_FILE_BYTES:  # Pillow reads a WebP or AVIF into memory
            raise UserError(
                file.name, f"the file is too large; the limit is {DATASET_FILE_BYTES // 10**6} MB."
            )
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return _read_open_picture(image, file)
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher
        raise UserError(
            file.name, f"the image is too large; the limit is {MAX_PIXELS // 10**6} megapixels."
        ) from error
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise UserError(file.name, "it cannot be read as a PNG, JPEG, WebP or AVIF image.") from error


def read_settings_text(text: str) -> Reading:
    """Return the settings of a text that any known tool wrote. Raises `UserError` for any other text."""
    places = [{"parameters": text}]
    if parse_table(text):  # a picture's texts in one, or what a tool writes into one of them
        places += [_list_texts(text), *({name: text} for name in JSON_NAMES)]
    refused = None
    for texts in places:
        if isinstance(found := _read_settings(texts), Reading):
            return found
        refused = refused or found
    raise refused or UserError("settings", "the text contains none.")


def get_infotext(file: Path) -> str:
    """Return what A1111 and Sweetspot write into a PNG, as it stands; empty for a file without it."""
    try:
        with Image.open(file, formats=("PNG",)) as image:
            text = image.info.get("parameters", "")
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        return ""
    return text if isinstance(text, str) else ""


def _list_texts(text: str) -> dict[str, str]:
    """Return the texts of a JSON object by name; any other text as A1111 would write it."""
    table = parse_table(text) or {"parameters": text}
    return {str(name): value for name, value in table.items() if isinstance(value, str)}


def _read_open_picture(image: Image.Image, file: Path) -> Reading:
    texts = read_texts(image, file)
    found = _read_settings(texts)
    if isinstance(found, Reading):
        return found
    if image.format == "PNG" and (text := read_hidden_text(image)):
        hidden = _read_settings(_list_texts(text))
        if isinstance(hidden, Reading):
            return hidden
        found = hidden or found
    raise found or UserError(
        file.name,
        "the image contains no settings. Use one as it was saved, not a screenshot or a copy from a chat.",
    )


def _read_settings(texts: Mapping[str, str]) -> Reading | UserError | None:
    """Return what the first reader makes of the texts; else why the first refused, or `None` if none did."""
    refused = None
    for read in READERS:
        try:
            if (found := read(texts)) is not None:
                return convert_settings(translate_settings(found))
        except UserError as error:
            refused = refused or error
    return refused
