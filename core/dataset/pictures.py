"""Decodes a picture file of any kind to upright RGB: what a person sees, and nothing else of it."""

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from core.schema import limits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""The formats that kohya's trainer takes without further packages."""
DECODE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    ArithmeticError,
    LookupError,
    TypeError,
    struct.error,
)
"""What Pillow raises for bad files."""


class UnusableFile(Exception):
    """Why one file is left out; the import goes on with the others."""


class DecodedPicture(NamedTuple):
    """A decoded picture and how many frames its file has."""

    picture: Image.Image
    """RGB, turned as its EXIF says; transparent areas are white."""
    frames: int


def is_picture(head: bytes) -> bool:
    """Whether a file that starts with `head` is a PNG, JPEG, WebP or BMP, whatever its name.

    12 bytes are enough.
    """
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")) or (
        head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    )


def decode_picture(data: bytes) -> DecodedPicture:
    """Decode a file, checking its size before the pixels. Raises `UnusableFile` with the reason."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_size(opened.width, opened.height)
            frames = getattr(opened, "n_frames", 1)
            return DecodedPicture(_flatten_to_rgb(ImageOps.exif_transpose(opened)), frames)
    except Image.DecompressionBombError as error:
        # Pillow's own limit is higher, and it raises this before the size can be read.
        raise UnusableFile(f"it has more than {limits.PICTURE_PIXELS // 10**6} megapixels") from error
    except DECODE_ERRORS as error:
        raise UnusableFile("it is broken, or not a PNG, JPEG, WebP or BMP image") from error


def _check_size(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if width * height > limits.PICTURE_PIXELS:
        raise UnusableFile(
            f"it has {width} x {height} pixels; the limit is {limits.PICTURE_PIXELS // 10**6} megapixels"
        )
    if short < limits.PICTURE_SIDE:
        raise UnusableFile(
            f"it has {width} x {height} pixels; each side must have at least {limits.PICTURE_SIDE}"
        )
    if long > limits.PICTURE_ASPECT * short:
        raise UnusableFile(
            f"it has {width} x {height} pixels; one side may be at most {limits.PICTURE_ASPECT} "
            "times the other"
        )


def _flatten_to_rgb(picture: Image.Image) -> Image.Image:
    """Put a picture of any mode on white.

    The file's other data are left out: profiles, texts, where it was taken.
    """
    if picture.mode.startswith("I;16"):  # Pillow would clip values above 255 of 65,535
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    paper = Image.new("RGB", picture.size, "white")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper.paste(picture, mask=picture.getchannel("A"))
    else:
        paper.paste(picture.convert("RGB"))
    return paper
