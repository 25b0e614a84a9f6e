"""Pictures of every kind become upright RGB; anything else, too large or broken, is left out."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.schema.errors import UserError
from tests.dataset.parts import (
    BLUE,
    GREEN,
    PNG,
    RED,
    ImportZip,
    encode_image,
    list_names,
    list_reasons,
    make_picture,
    read_pixel,
)


def make_png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims this size, with next to nothing in it."""

    def make_chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + make_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + make_chunk(b"IDAT", zlib.compress(bytes(99)))
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("text.png", b"not a picture at all", "it is not a PNG, JPEG, WebP or BMP image"),
        (
            "page.svg",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "it is not a PNG, JPEG, WebP or BMP image",
        ),
        (
            "moving.gif",
            make_picture(kind="GIF", mode="P", colour=(1,)),
            "it is not a PNG, JPEG, WebP or BMP image",
        ),
        ("empty.png", b"", "it is not a PNG, JPEG, WebP or BMP image"),
        ("head.png", PNG[:12], "it is broken, or not a PNG, JPEG, WebP or BMP image"),
        (
            "cut.jpg",
            encode_image(Image.effect_noise((99, 99), 50), "JPEG")[:-900],
            "it is broken, or not a PNG, JPEG, WebP or BMP image",
        ),
        ("bmp.txt.png", b"BM is no picture", "it is broken, or not a PNG, JPEG, WebP or BMP image"),
        ("huge.png", make_png_header(20_000, 20_000), "it has more than 64 megapixels"),
        ("large.png", make_png_header(9000, 9000), "it has 9000 x 9000 pixels; the limit is 64 megapixels"),
        (
            "larger.png",
            make_png_header(12_000, 12_000),
            "it has 12000 x 12000 pixels; the limit is 64 megapixels",
        ),
        ("dot.png", make_picture(size=(1, 1)), "it has 1 x 1 pixels; each side must have at least 32"),
        ("thin.png", make_picture(size=(31, 99)), "it has 31 x 99 pixels; each side must have at least 32"),
        (
            "strip.png",
            make_picture(size=(32, 513)),
            "it has 32 x 513 pixels; one side may be at most 16 times the other",
        ),
    ],
)
def test_case_08_an_unusable_picture_is_left_out_with_its_reason(
    import_zip: ImportZip, name: str, data: bytes, reason: str
) -> None:
    found = import_zip({"a.png": PNG, name: data})
    assert (list_names(found), list_reasons(found)) == (["a.png"], {name: reason})


def test_when_nothing_is_left_the_first_reason_is_told(import_zip: ImportZip, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^dataset: none of the files can be used; "
            r"'text\.png': it is not a PNG, JPEG, WebP or BMP image\.$"
        ),
    ):
        import_zip({"text.png": "no"})
    assert not (tmp_path / "into").exists()


HALF_TRANSPARENT = Image.new("RGBA", (40, 48), (255, 0, 0, 128))
TRANSPARENT = Image.new("RGBA", (40, 48), (255, 0, 0, 0))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (make_picture(GREEN, kind="BMP"), GREEN),
        (make_picture(GREEN, kind="WEBP", lossless=True), GREEN),
        (make_picture((0, 255, 255, 0), kind="JPEG", mode="CMYK", quality=100), RED),
        (encode_image(Image.fromarray(np.full((48, 40), 0x8040, np.uint16))), (128, 128, 128)),
        (encode_image(Image.new("RGB", (40, 48), BLUE).quantize(4)), BLUE),
        (make_picture((1,), mode="1"), (255, 255, 255)),
        (make_picture((7, 255), mode="LA"), (7, 7, 7)),
        (encode_image(HALF_TRANSPARENT), (255, 127, 127)),
        (encode_image(TRANSPARENT), (255, 255, 255)),
        (encode_image(TRANSPARENT.quantize(4)), (255, 255, 255)),
        (make_picture(RED, transparency=RED), (255, 255, 255)),
    ],
    ids=[
        "BMP",
        "WebP",
        "CMYK",
        "16 bits",
        "palette",
        "1 bit",
        "LA",
        "RGBA",
        "clear",
        "clear palette",
        "clear colour",
    ],
)
def test_case_08_every_kind_becomes_rgb_on_white(
    import_zip: ImportZip, data: bytes, expected: tuple[int, ...]
) -> None:
    found = import_zip({"a.png": data})
    assert np.abs(np.subtract(read_pixel(found), expected)).max() <= 1


def test_case_08_a_picture_is_turned_upright_and_forgets_where_it_was_taken(import_zip: ImportZip) -> None:
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    exif.get_ifd(0x8825)[1] = "N"
    found = import_zip({"a.png": encode_image(image, exif=exif, icc_profile=b"profile")})
    assert (found.samples[0].width, found.samples[0].height, read_pixel(found)) == (32, 64, BLUE)
    with Image.open(found.folder / "0001.png") as written_anew:
        assert (written_anew.info, dict(written_anew.getexif())) == ({}, {})


def test_case_08_of_an_animation_the_first_frame_is_taken_and_said(import_zip: ImportZip) -> None:
    frames = [Image.new("RGB", (40, 48), colour) for colour in (RED, BLUE)]
    found = import_zip(
        {
            f"a.{kind}": encode_image(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
            for kind in ("webp", "png")
        }
    )
    assert (read_pixel(found, 0), read_pixel(found, 1)) == (RED, RED)
    assert found.notes == ("Only the first of several frames is used: 2 images, such as 'a.png'.",)
