"""The texts inside a picture's file: PNG's text chunks, EXIF, and the lowest bits of its pixels."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

MAX_CHUNKS = 100_000
"""Chunks of a PNG that are looked at."""
MAX_TEXT = 4_000_000
"""Bytes of one text, unpacked."""
MAX_TEXTS = 64
"""Texts of one file."""
MAX_HIDDEN_PIXELS = 16_000_000
"""Larger pictures are not decoded to look for a text in their lowest bits."""
# The mark at the start of the lowest bits -> whether the text is packed with gzip.
ALPHA_MARKS = {b"stealth_pnginfo": False, b"stealth_pngcomp": True}
COLOUR_MARKS = {b"stealth_rgbinfo": False, b"stealth_rgbcomp": True}


def read_texts(image: Image.Image, file: Path) -> dict[str, str]:
    """Return the texts of an open picture by their names, without decoding its pixels.

    EXIF's comment, or another field of EXIF that holds A1111's text, is called `UserComment`;
    `prompt:...`, as ComfyUI writes into fields of EXIF, is called `prompt`. Raises `ValueError` or
    `OSError` for a file that is torn, and for texts that are too long.
    """
    texts = dict(_read_png_texts(file)) if image.format == "PNG" else {}
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode the pixels to find it
        return texts
    exif = image.getexif()
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    comment = inner.get(ExifTags.Base.UserComment, exif.get(ExifTags.Base.UserComment))
    said = decode_comment(comment) if comment else ""
    fields = [said, *(value for value in exif.values() if isinstance(value, str))]
    named = [(name.strip().lower(), text) for name, _, text in (value.partition(":") for value in fields)]
    return {
        **{name: text.rstrip("\0") for name, text in named if name in ("prompt", "workflow")},
        "UserComment": next((value for value in fields if "Steps: " in value), said),
        **texts,
    }


def _read_png_texts(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of a PNG, also of those after the pixels."""
    count = 0
    with file.open("rb") as opened:
        opened.seek(8)
        for _ in range(MAX_CHUNKS):
            head = opened.read(8)
            kind, length = head[4:], int.from_bytes(head[:4], "big")
            if len(head) < 8 or kind == b"IEND":
                return
            if kind not in (b"tEXt", b"zTXt", b"iTXt"):
                opened.seek(length + 4, 1)
                continue
            count += 1
            if length > MAX_TEXT or count > MAX_TEXTS:
                raise ValueError("its texts are too long")
            name, _, rest = opened.read(length).partition(b"\0")
            opened.seek(4, 1)
            yield name.decode("latin-1"), _decode_png_text(kind, rest)


def _decode_png_text(kind: bytes, rest: bytes) -> str:
    """Decode what stands after the name of a text chunk."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _unpack(rest[1:], zlib.MAX_WBITS).decode("latin-1")
    packed = rest[:1] == b"\1"
    text = rest[2:].split(b"\0", 2)[-1]  # after the language and the translated name
    return (_unpack(text, zlib.MAX_WBITS) if packed else text).decode("utf-8", "replace")


def _unpack(data: bytes, wbits: int) -> bytes:
    """Unpack a text. Raises `ValueError` if it is torn or too long."""
    unpacker = zlib.decompressobj(wbits)
    try:
        text = unpacker.decompress(data, MAX_TEXT)
    except zlib.error as error:
        raise ValueError("a text is torn") from error
    if unpacker.unconsumed_tail:
        raise ValueError("a text is too long")
    return text


def decode_comment(comment: bytes | str) -> str:
    """Return the text of EXIF's UserComment: eight bytes that name the encoding, then the text."""
    if isinstance(comment, str):
        return comment.strip("\0")
    if not isinstance(comment, bytes) or len(comment) > MAX_TEXT:
        return ""
    encoding, text = comment[:8], comment[8:]
    if encoding not in (b"UNICODE\0", b"ASCII\0\0\0", bytes(8)):  # Fooocus leaves it out
        return comment.decode("utf-8", "replace").strip("\0")
    if encoding != b"UNICODE\0" or 0 not in text:
        return text.decode("utf-8", "replace").strip("\0")
    # UTF-16, mostly without a mark: the zero bytes of its many ASCII characters show the order.
    big_endian = text[::2].count(0) >= text[1::2].count(0)
    return text.decode("utf-16-be" if big_endian else "utf-16-le", "replace").strip("\0\ufeff")


def read_hidden_text(image: Image.Image) -> str:
    """Return the text in the lowest bits of an open picture's alpha or colours; empty if there is none.

    Known as stealth PNG: by columns, a mark of 15 bytes, the text's length in bits as 4 bytes, the text.
    Raises `ValueError` or `OSError` for a text or a picture that is torn.
    """
    if image.mode not in ("RGB", "RGBA") or image.width * image.height > MAX_HIDDEN_PIXELS:
        return ""
    bits = (np.asarray(image) & 1).transpose(1, 0, 2)
    hidden = _unpack_bits(bits[..., 3].reshape(-1), ALPHA_MARKS) if image.mode == "RGBA" else ""
    return hidden or _unpack_bits(bits[..., :3].reshape(-1), COLOUR_MARKS)


def _unpack_bits(bits: np.ndarray, marks: dict[bytes, bool]) -> str:
    """Return the text after one of the `marks`; empty without one."""
    packed = marks.get(np.packbits(bits[:120]).tobytes())
    length = int.from_bytes(np.packbits(bits[120:152]).tobytes(), "big")
    if packed is None:
        return ""
    if length > min(8 * MAX_TEXT, bits.size - 152):
        raise ValueError("the text is longer than the picture")
    data = np.packbits(bits[152 : 152 + length]).tobytes()
    return (_unpack(data, zlib.MAX_WBITS | 16) if packed else data).decode("utf-8", "replace")
