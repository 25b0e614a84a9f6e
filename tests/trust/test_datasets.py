"""A dataset full of odd pictures and captions: the rest imports, each of the odd is named, words stay words, and missing captions are said aloud."""

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

from core import record
from core.data.dataset import load, save
from core.data.intake import imported
from core.data.tagging import advice
from core.plan import checked
from core.train import runs
from core.types import UserError
from tabs import pictures
from tests.data.parts import BLUE, GREEN, PNG, RED, encoded, picture, pixel, reasons, zipped

PAYLOADS = {
    "yaml": "x\nlicense: mit\n---\n!!python/object/apply:os.system [id]",
    "html": "<script>alert(1)</script> <img src=x onerror=alert(1)>",
    "markdown": "![](http://evil/x.png) [x](javascript:alert(1)) | a | b |",
    "toml": "[[datasets]]\nimage_dir = '/etc'",
}


@cache
def bomb(side: int) -> bytes:
    """A whole black picture of side x side pixels, of a bit each."""
    head, rows = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), zlib.compress(bytes((side // 8 + 1) * side), 1)
    chunks = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in ((b"IHDR", head), (b"IDAT", rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def held_on_its_side() -> bytes:
    """A photograph, left half blue, taken in a place that its EXIF tells."""
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825).update({1: "N", 2: (35.0, 41.0, 22.0), 3: "E", 4: (139.0, 41.0, 30.0)})
    return encoded(image, "JPEG", exif=exif, quality=100)


def test_case_08_the_odd_are_named_and_the_rest_imports(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 48), colour) for colour in (GREEN, BLUE)]
    brought = {
        "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        "bomb12.png": bomb(12_000),
        "bomb20.png": bomb(20_000),
        "cmyk.jpg": picture((0, 255, 255, 0), kind="JPEG", mode="CMYK", quality=100),
        "deep.png": encoded(Image.fromarray(np.full((48, 40), 0x8040, np.uint16))),
        "dot.png": picture(size=(1, 1)),
        "good.png": PNG,
        "page.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "text.png": b"not a picture at all",
        "turned.jpg": held_on_its_side(),
    }
    with Image.open(io.BytesIO(brought["turned.jpg"])) as photograph:
        assert photograph.getexif().get_ifd(0x8825), "there was nothing to forget"
    with pytest.warns(Image.DecompressionBombWarning):
        found = imported([zipped(tmp_path, brought)], tmp_path / "into")
    assert reasons(found) == {
        "bomb12.png": "it has 12000 x 12000 pixels; up to 64 megapixels are read",
        "bomb20.png": "it has more than 64 megapixels",
        "dot.png": "it has 1 x 1 pixels; its sides must have 32 at least",
        "page.svg": "it is no PNG, JPEG, WebP or BMP picture",
        "text.png": "it is no PNG, JPEG, WebP or BMP picture",
    }
    assert found.notes == ("Of several frames the first is taken: 'animated.webp'.",)
    assert [sample.name for sample in found.samples] == ["animated.webp", "cmyk.jpg", "deep.png", "good.png", "turned.jpg"]
    wanted = [GREEN, RED, (128, 128, 128), RED, BLUE]
    assert all(np.abs(np.subtract(pixel(found, i), colour)).max() <= 2 for i, colour in enumerate(wanted))
    assert (found.samples[-1].width, found.samples[-1].height) == (32, 64)
    for sample in found.samples:
        with Image.open(found.folder / sample.file) as image:
            assert (image.info, dict(image.getexif())) == ({}, {}), "where it was taken is still told"


@pytest.mark.parametrize("name", ["bomb12.png", "bomb20.png", "page.svg", "text.png"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_case_08_no_other_door_opens_them(tmp_path: Path, name: str) -> None:
    """A picture of the wanted style, and one whose settings are read."""
    file = tmp_path / name
    file.write_bytes(bomb(int(name[4:6]) * 1000) if "bomb" in name else b"<svg/>")
    with pytest.raises(UserError, match=r"^references: "):
        checked(file)
    with pytest.raises(UserError, match=rf"^{name}: "):
        record.read_picture(file)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_case_09_words_stay_words(tmp_path: Path, payload: str) -> None:
    text = PAYLOADS[payload]
    found = imported([zipped(tmp_path, {f"{text[:9]!r}.png".replace("/", ""): PNG, "a.png": PNG, "a.txt": text})], tmp_path / "into")
    caption = next(sample.caption for sample in found.samples if sample.name == "a.png")
    assert caption == text
    save(found)
    assert load(found.folder) == found
    run, _ = runs.settled(found, "nano-quick", trigger="soft")
    assert run.fingerprint == found.fingerprint()
    shown = pictures.describe(found) + pictures.advise(found, "soft")
    for live in ("<script", "<img", "![](", "[x](", "\n---\n"):
        assert live not in shown.replace("\\<", "").replace("\\!", "").replace("\\[", "")


def test_case_09_missing_captions_are_counted_aloud(tmp_path: Path) -> None:
    captions = {"b.txt": "", "c.txt": b"\xef\xbb\xbf1girl", "d.caption": "1boy", "e.txt": "\ufeff絵".encode("utf-16-le"), "f.txt": "x" * 100_000}
    found = imported([zipped(tmp_path, {**{f"{name}.png": PNG for name in "abcdef"}, **captions})], tmp_path / "into")
    assert [sample.caption for sample in found.samples] == ["", "", "1girl", "1boy", "絵", ""]
    assert "**6 pictures**, 3 with a caption" in pictures.describe(found)
    assert ".caption file" in pictures.describe(found)
    assert "100,000 bytes" in reasons(found)["f.txt"]
    assert advice(found, "soft")[0] == "3 of 6 pictures have no caption: all that they show goes into the trigger."
    _, said = runs.settled(found, "nano-quick", trigger="soft")
    assert any("3 of 6 pictures have none" in line for line in said)


def test_case_09_without_captions_or_a_trigger_nothing_is_trained(client: Client, tmp_path: Path) -> None:
    data = handle_file(zipped(tmp_path, {f"{name}.png": PNG for name in "abc"}))
    with pytest.raises(AppError, match="trigger: it is empty and no picture has a caption; write a trigger word, or captions"):
        client.predict(dataset=data, recipe="nano-quick", api_name="/train_start")
    found = imported([zipped(tmp_path, {"a.png": PNG})], tmp_path / "into")
    run, _ = runs.settled(found, "nano-quick", trigger="soft")
    assert run.trigger == "soft", "a trigger is enough"
