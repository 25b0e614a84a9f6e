"""Infotext in picture files: writes it into PNG, reads it from PNG, JPEG and WebP."""

import struct
from pathlib import Path

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from core.prompts.infotext import Reading, parse_infotext
from core.schema.errors import UserError
from core.system.atomic_files import replace_file

MAX_PIXELS = 64_000_000


def save_png(image: Image.Image, file: Path, infotext: str) -> None:
    """Write the picture as PNG, with its infotext where A1111 puts it.

    The write is atomic: `file` is always complete, the old one or the new one.
    """
    info = PngInfo()
    info.add_text("parameters", infotext)  # tEXt where Latin-1 can hold it, iTXt otherwise
    with replace_file(file) as unfinished:
        image.save(unfinished, format="PNG", pnginfo=info)


def read_infotext(file: Path) -> Reading:
    """Parse the infotext of a PNG, JPEG or WebP file without decoding its pixels.

    Raises `UserError` for a file that is none of these, has more than 64 megapixels or has no
    settings, and for an infotext that `parse_infotext` refuses.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            text = image.info.get("parameters") if image.format == "PNG" else _user_comment(image)
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher
        raise UserError(
            file.name, f"the image is too large; the limit is {MAX_PIXELS // 10**6} megapixels."
        ) from error
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise UserError(file.name, "it cannot be read as a PNG, JPEG or WebP image.") from error
    if not text:
        raise UserError(
            file.name,
            "the image contains no settings. "
            "Use one as it was saved, not a screenshot or a copy from a chat.",
        )
    return parse_infotext(text)


def _user_comment(image: Image.Image) -> str:
    """Return the text of EXIF's UserComment: eight bytes that name the encoding, then the text."""
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if not isinstance(comment, bytes):
        return ""
    encoding, text = comment[:8], comment[8:]
    if encoding != b"UNICODE\0":
        return text.decode().strip("\0")
    # UTF-16, mostly without a mark: the zero bytes of its many ASCII characters show the order.
    big_endian = text[::2].count(0) >= text[1::2].count(0)
    return text.decode("utf-16-be" if big_endian else "utf-16-le").strip("\0\ufeff")
