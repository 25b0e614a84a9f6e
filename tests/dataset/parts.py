"""Small pictures, and zips of them as people and attackers pack them."""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from core.dataset.dataset import Dataset

ImportZip = Callable[..., Dataset]
"""The fixture `import_zip`."""

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def make_picture(
    colour: tuple[int, ...] = RED,
    size: tuple[int, int] = (40, 48),
    kind: str = "PNG",
    mode: str = "RGB",
    **options: object,
) -> bytes:
    """Return an image file of one colour."""
    return encode_image(Image.new(mode, size, colour), kind, **options)


def encode_image(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


PNG = make_picture()


class RawName(zipfile.ZipInfo):
    """A zip member whose name is written as it is, without the flag for UTF-8."""

    raw: bytes

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.raw, self.flag_bits & ~0x800


def write_zip(
    folder: Path,
    files: Mapping[str, bytes | str] | list[tuple[str | bytes | zipfile.ZipInfo, bytes | str]],
    name: str = "set.zip",
) -> Path:
    """Write a zip in `folder`; names given as bytes are written as they are."""
    archive = folder / name
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for member, data in files.items() if isinstance(files, Mapping) else files:
            if isinstance(member, bytes):
                raw = RawName("x")
                raw.raw = member
                member = raw
            out.writestr(member, data)
    return archive


def list_names(dataset: Dataset) -> list[str]:
    return [sample.name for sample in dataset.samples]


def list_reasons(dataset: Dataset) -> dict[str, str]:
    """Return the name of each file that was left out -> the reason."""
    return {file.name: file.reason for file in dataset.skipped}


def read_pixel(dataset: Dataset, index: int = 0) -> tuple[int, ...]:
    """Return the first pixel of a picture as it was written."""
    with Image.open(dataset.folder / dataset.samples[index].file) as image:
        assert (image.format, image.mode, image.size) == (
            "PNG",
            "RGB",
            (dataset.samples[index].width, dataset.samples[index].height),
        )
        return image.getpixel((0, 0))  # type: ignore[return-value]
