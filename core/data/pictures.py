"""A picture file of any kind -> upright RGB: what a person sees of it, and nothing else that is in the file."""

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from core import limits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What kohya's trainer takes without further packages."""
BROKEN = (OSError, EOFError, ValueError, SyntaxError, ArithmeticError, LookupError, TypeError, struct.error)
"""What Pillow raises over bad files."""


class Unusable(Exception):
    """Why one file is left out; the others go on."""


class Upright(NamedTuple):
    """A decoded picture."""

    picture: Image.Image
    """RGB, turned as its EXIF says; transparent places are white."""
    frames: int


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so is a PNG, JPEG, WebP or BMP, whatever its name; 12 bytes tell."""
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def upright(data: bytes) -> Upright:
    """Decode a file; its size is looked at first. Raises `Unusable` with the reason."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _fits(opened.width, opened.height)
            frames = getattr(opened, "n_frames", 1)
            return Upright(_flat(ImageOps.exif_transpose(opened)), frames)
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher, and raised before the size can be asked for
        raise Unusable(f"it has more than {limits.PICTURE_PIXELS // 10**6} megapixels") from error
    except BROKEN as error:
        raise Unusable("it is broken, or no PNG, JPEG, WebP or BMP picture") from error


def _fits(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if width * height > limits.PICTURE_PIXELS:
        raise Unusable(f"it has {width} x {height} pixels; up to {limits.PICTURE_PIXELS // 10**6} megapixels are read")
    if short < limits.PICTURE_SIDE:
        raise Unusable(f"it has {width} x {height} pixels; its sides must have {limits.PICTURE_SIDE} at least")
    if long > limits.PICTURE_ASPECT * short:
        raise Unusable(f"it has {width} x {height} pixels; one side may be up to {limits.PICTURE_ASPECT} times the other")


def _flat(picture: Image.Image) -> Image.Image:
    """Any mode on white paper, without what else the file tells: profiles, texts, where it was taken."""
    if picture.mode.startswith("I;16"):  # Pillow would cut off what is lighter than 255 of 65,535
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    paper = Image.new("RGB", picture.size, "white")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper.paste(picture, mask=picture.getchannel("A"))
    else:
        paper.paste(picture.convert("RGB"))
    return paper
