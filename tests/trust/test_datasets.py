"""A dataset full of odd pictures and captions.

The rest imports, each odd one is named, words stay words, and missing captions are reported.
"""

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from core.dataset.dataset import load_dataset, save_dataset
from core.dataset.intake import import_dataset
from core.dataset.tagging import advise_captions
from core.prompts import png_metadata
from core.schema.errors import UserError
from core.sweep.plan import check_reference
from core.train import runs
from tabs.train import pictures
from tests.dataset.parts import (
    BLUE,
    GREEN,
    PNG,
    RED,
    encode_image,
    list_reasons,
    make_picture,
    read_pixel,
    write_zip,
)

PAYLOADS = {
    "yaml": "x\nlicense: mit\n---\n!!python/object/apply:os.system [id]",
    "html": "<script>alert(1)</script> <img src=x onerror=alert(1)>",
    "markdown": "![](http://evil/x.png) [x](javascript:alert(1)) | a | b |",
    "toml": "[[datasets]]\nimage_dir = '/etc'",
}


@cache
def make_bomb(side: int) -> bytes:
    """Return a valid black PNG of side x side pixels, one bit per pixel."""
    head, rows = (
        struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0),
        zlib.compress(bytes((side // 8 + 1) * side), 1),
    )
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", rows))
    ]
    return (
        b"\x89PNG\r\n\x1a\n"
        + b"".join(chunks)
        + struct.pack(">I", 0)
        + b"IEND"
        + struct.pack(">I", zlib.crc32(b"IEND"))
    )


def make_rotated_photo() -> bytes:
    """Return a rotated JPEG, its left half blue, with the place it was taken in its EXIF."""
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825).update({1: "N", 2: (35.0, 41.0, 22.0), 3: "E", 4: (139.0, 41.0, 30.0)})
    return encode_image(image, "JPEG", exif=exif, quality=100)


def test_case_08_the_odd_are_named_and_the_rest_imports(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 48), colour) for colour in (GREEN, BLUE)]
    brought = {
        "animated.webp": encode_image(
            frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True
        ),
        "bomb12.png": make_bomb(12_000),
        "bomb20.png": make_bomb(20_000),
        "cmyk.jpg": make_picture((0, 255, 255, 0), kind="JPEG", mode="CMYK", quality=100),
        "deep.png": encode_image(Image.fromarray(np.full((48, 40), 0x8040, np.uint16))),
        "dot.png": make_picture(size=(1, 1)),
        "good.png": PNG,
        "page.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "text.png": b"not a picture at all",
        "turned.jpg": make_rotated_photo(),
    }
    with Image.open(io.BytesIO(brought["turned.jpg"])) as photograph:
        assert photograph.getexif().get_ifd(0x8825), "there was nothing to forget"
    with pytest.warns(Image.DecompressionBombWarning):
        found = import_dataset([write_zip(tmp_path, brought)], tmp_path / "into")
    assert list_reasons(found) == {
        "bomb12.png": "it has 12000 x 12000 pixels; the limit is 64 megapixels",
        "bomb20.png": "it has more than 64 megapixels",
        "dot.png": "it has 1 x 1 pixels; each side must have at least 32",
        "page.svg": "it is not a PNG, JPEG, WebP or BMP image",
        "text.png": "it is not a PNG, JPEG, WebP or BMP image",
    }
    assert found.notes == ("Only the first of several frames is used: 'animated.webp'.",)
    assert [sample.name for sample in found.samples] == [
        "animated.webp",
        "cmyk.jpg",
        "deep.png",
        "good.png",
        "turned.jpg",
    ]
    wanted = [GREEN, RED, (128, 128, 128), RED, BLUE]
    assert all(
        np.abs(np.subtract(read_pixel(found, i), colour)).max() <= 2 for i, colour in enumerate(wanted)
    )
    assert (found.samples[-1].width, found.samples[-1].height) == (32, 64)
    for sample in found.samples:
        with Image.open(found.folder / sample.file) as image:
            assert (image.info, dict(image.getexif())) == ({}, {}), "where it was taken is still told"


@pytest.mark.parametrize("name", ["bomb12.png", "bomb20.png", "page.svg", "text.png"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_case_08_no_other_door_opens_them(tmp_path: Path, name: str) -> None:
    """Neither a style reference nor a picture whose settings are read may be such a file."""
    file = tmp_path / name
    file.write_bytes(make_bomb(int(name[4:6]) * 1000) if "bomb" in name else b"<svg/>")
    with pytest.raises(UserError, match=r"^references: "):
        check_reference(file)
    with pytest.raises(UserError, match=rf"^{name}: "):
        png_metadata.read_infotext(file)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_case_09_words_stay_words(tmp_path: Path, payload: str) -> None:
    text = PAYLOADS[payload]
    found = import_dataset(
        [write_zip(tmp_path, {f"{text[:9]!r}.png".replace("/", ""): PNG, "a.png": PNG, "a.txt": text})],
        tmp_path / "into",
    )
    caption = next(sample.caption for sample in found.samples if sample.name == "a.png")
    assert caption == text
    save_dataset(found)
    assert load_dataset(found.folder) == found
    run, _ = runs.plan_run(found, "nano-quick", trigger="soft")
    assert run.fingerprint == found.fingerprint()
    shown = pictures.describe_dataset(found) + pictures.describe_captions(found, "soft")
    for live in ("<script", "<img", "![](", "[x](", "\n---\n"):
        assert live not in shown.replace("\\<", "").replace("\\!", "").replace("\\[", "")


def test_case_09_missing_captions_are_counted_aloud(tmp_path: Path) -> None:
    captions = {
        "b.txt": "",
        "c.txt": b"\xef\xbb\xbf1girl",
        "d.caption": "1boy",
        "e.txt": "\ufeff絵".encode("utf-16-le"),
        "f.txt": "x" * 100_000,
    }
    found = import_dataset(
        [write_zip(tmp_path, {**{f"{name}.png": PNG for name in "abcdef"}, **captions})], tmp_path / "into"
    )
    assert [sample.caption for sample in found.samples] == ["", "", "1girl", "1boy", "絵", ""]
    assert "**6 images**, 3 with a caption" in pictures.describe_dataset(found)
    assert ".caption file" in pictures.describe_dataset(found)
    assert "100,000 bytes" in list_reasons(found)["f.txt"]
    assert (
        advise_captions(found, "soft")[0]
        == "3 of 6 images have no caption: everything in them goes into the trigger word."
    )
    _, said = runs.plan_run(found, "nano-quick", trigger="soft")
    assert any("3 of 6 images have no caption" in line for line in said)


def test_case_09_without_captions_or_a_trigger_nothing_is_trained(client: Client, tmp_path: Path) -> None:
    data = handle_file(write_zip(tmp_path, {f"{name}.png": PNG for name in "abc"}))
    with pytest.raises(
        AppError, match="trigger: it is empty and no image has a caption; write a trigger word, or captions"
    ):
        client.predict(dataset=data, recipe="nano-quick", api_name="/train_start")
    found = import_dataset([write_zip(tmp_path, {"a.png": PNG})], tmp_path / "into")
    run, _ = runs.plan_run(found, "nano-quick", trigger="soft")
    assert run.trigger == "soft", "a trigger is enough"
