"""Infotext in picture files: written into a PNG, read from PNG, JPEG and WebP."""

import struct
from pathlib import Path

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from core.atomic import replacing
from core.infotext import Reading, read
from core.types import UserError

PIXELS = 64_000_000


def save_png(image: Image.Image, file: Path, text: str) -> None:
    """Write the picture with `text` as A1111 does. `file` is whole at any time: the old one, then the new one."""
    info = PngInfo()
    info.add_text("parameters", text)  # tEXt where Latin-1 can hold it, iTXt otherwise
    with replacing(file) as unfinished:
        image.save(unfinished, format="PNG", pnginfo=info)


def read_picture(file: Path) -> Reading:
    """What the infotext in a PNG, JPEG or WebP file says; the pixels are not decoded.

    Raises `UserError` for a file that is none of these, is larger than 64 megapixels or has no
    settings, and as `read` does.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > PIXELS:
                raise Image.DecompressionBombError
            text = image.info.get("parameters") if image.format == "PNG" else _user_comment(image)
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher
        raise UserError(f"{file.name}: the picture is too large; up to {PIXELS // 10**6} megapixels are read.") from error
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise UserError(f"{file.name}: it cannot be read as a PNG, JPEG or WebP picture.") from error
    if not text:
        raise UserError(f"{file.name}: the picture holds no settings; it takes one as it was saved, not a screenshot or a copy from a chat.")
    return read(text)


def _user_comment(image: Image.Image) -> str:
    """EXIF's UserComment: eight bytes that name the encoding, then the text."""
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if not isinstance(comment, bytes):
        return ""
    encoding, text = comment[:8], comment[8:]
    if encoding != b"UNICODE\0":
        return text.decode().strip("\0")
    # UTF-16, mostly without a mark: the zero bytes of its many ASCII characters tell the order.
    big_endian = text[::2].count(0) >= text[1::2].count(0)
    return text.decode("utf-16-be" if big_endian else "utf-16-le").strip("\0\ufeff")
