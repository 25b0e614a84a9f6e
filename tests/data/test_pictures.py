"""Pictures of every kind come in as upright RGB; what is none, too large or broken is left out."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.types import UserError
from tests.data.parts import BLUE, GREEN, PNG, RED, Take, encoded, names, picture, pixel, reasons


def header(width: int, height: int) -> bytes:
    """A PNG of that size by its own word, with next to nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(99)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("text.png", b"not a picture at all", "it is no PNG, JPEG, WebP or BMP picture"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no PNG, JPEG, WebP or BMP picture"),
        ("moving.gif", picture(kind="GIF", mode="P", colour=(1,)), "it is no PNG, JPEG, WebP or BMP picture"),
        ("empty.png", b"", "it is no PNG, JPEG, WebP or BMP picture"),
        ("head.png", PNG[:12], "it is broken, or no PNG, JPEG, WebP or BMP picture"),
        ("cut.jpg", encoded(Image.effect_noise((99, 99), 50), "JPEG")[:-900], "it is broken, or no PNG, JPEG, WebP or BMP picture"),
        ("bmp.txt.png", b"BM is no picture", "it is broken, or no PNG, JPEG, WebP or BMP picture"),
        ("huge.png", header(20_000, 20_000), "it has more than 64 megapixels"),
        ("large.png", header(9000, 9000), "it has 9000 x 9000 pixels; up to 64 megapixels are read"),
        ("larger.png", header(12_000, 12_000), "it has 12000 x 12000 pixels; up to 64 megapixels are read"),
        ("dot.png", picture(size=(1, 1)), "it has 1 x 1 pixels; its sides must have 32 at least"),
        ("thin.png", picture(size=(31, 99)), "it has 31 x 99 pixels; its sides must have 32 at least"),
        ("strip.png", picture(size=(32, 513)), "it has 32 x 513 pixels; one side may be up to 16 times the other"),
    ],
)
def test_case_08_an_unusable_picture_is_left_out_with_its_reason(take: Take, name: str, data: bytes, reason: str) -> None:
    found = take({"a.png": PNG, name: data})
    assert (names(found), reasons(found)) == (["a.png"], {name: reason})


def test_when_nothing_is_left_the_first_reason_is_told(take: Take, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^dataset: nothing can be used; 'text\.png': it is no PNG, JPEG, WebP or BMP picture\.$"):
        take({"text.png": "no"})
    assert not (tmp_path / "into").exists()


HALF = Image.new("RGBA", (40, 48), (255, 0, 0, 128))
CLEAR = Image.new("RGBA", (40, 48), (255, 0, 0, 0))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (picture(GREEN, kind="BMP"), GREEN),
        (picture(GREEN, kind="WEBP", lossless=True), GREEN),
        (picture((0, 255, 255, 0), kind="JPEG", mode="CMYK", quality=100), RED),
        (encoded(Image.fromarray(np.full((48, 40), 0x8040, np.uint16))), (128, 128, 128)),
        (encoded(Image.new("RGB", (40, 48), BLUE).quantize(4)), BLUE),
        (picture((1,), mode="1"), (255, 255, 255)),
        (picture((7, 255), mode="LA"), (7, 7, 7)),
        (encoded(HALF), (255, 127, 127)),
        (encoded(CLEAR), (255, 255, 255)),
        (encoded(CLEAR.quantize(4)), (255, 255, 255)),
        (picture(RED, transparency=RED), (255, 255, 255)),
    ],
    ids=["BMP", "WebP", "CMYK", "16 bits", "palette", "1 bit", "LA", "RGBA", "clear", "clear palette", "clear colour"],
)
def test_case_08_every_kind_becomes_rgb_on_white(take: Take, data: bytes, expected: tuple[int, ...]) -> None:
    found = take({"a.png": data})
    assert np.abs(np.subtract(pixel(found), expected)).max() <= 1


def test_case_08_a_picture_is_turned_upright_and_forgets_where_it_was_taken(take: Take) -> None:
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    exif.get_ifd(0x8825)[1] = "N"
    found = take({"a.png": encoded(image, exif=exif, icc_profile=b"profile")})
    assert (found.samples[0].width, found.samples[0].height, pixel(found)) == (32, 64, BLUE)
    with Image.open(found.folder / "0001.png") as written_anew:
        assert (written_anew.info, dict(written_anew.getexif())) == ({}, {})


def test_case_08_of_an_animation_the_first_frame_is_taken_and_said(take: Take) -> None:
    frames = [Image.new("RGB", (40, 48), colour) for colour in (RED, BLUE)]
    found = take({f"a.{kind}": encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True) for kind in ("webp", "png")})
    assert (pixel(found, 0), pixel(found, 1)) == (RED, RED)
    assert found.notes == ("Of several frames the first is taken: 2 pictures, such as 'a.png'.",)
