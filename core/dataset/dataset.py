"""A training set: pictures with their names, captions and repeats, in a folder of their own.

The folder holds the pictures as PNG under generated names, and `dataset.json`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from core.dataset.caption_variation import CaptionVariation
from core.schema import limits
from core.schema.bounds import FORBIDDEN_CHARACTERS
from core.schema.errors import UserError
from core.system.atomic_files import replace_file
from core.system.tensor_files import calculate_sha256

MANIFEST = "dataset.json"
MAX_NAME_LENGTH = 120  # characters shown


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture of a dataset."""

    file: str
    """File name in the dataset's folder."""
    name: str
    """What the person called the file, fit to be shown; never a path that is opened."""
    caption: str = ""
    """Tags or sentences; each line is an alternative. Empty for no caption."""
    width: int
    """Pixels."""
    height: int
    repeats: int = 1
    """How often an epoch shows the picture."""
    regularisation: bool = False
    """Whether the picture shows what training must leave as it is."""
    wording: CaptionVariation | None = None
    """How the caption varies; `None` to use the training settings."""
    flip: bool | None = None
    """Whether training mirrors the picture half of the time; `None` to use its settings."""
    group: str
    """The folder that the picture came in; kohya's metadata names it."""


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """A file that was imported and left out, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pictures and captions to train on. The records may change, the picture files do not."""

    folder: Path
    samples: tuple[Sample, ...]
    skipped: tuple[SkippedFile, ...] = ()
    notes: tuple[str, ...] = ()
    """What the person should know about how the dataset was read."""
    settings: Mapping[str, int] = field(default_factory=dict)
    """Training settings that the dataset itself gives, by `TrainingSettings` field: resolution,
    batch, bucket sides."""

    def fingerprint(self) -> str:
        """Return the sha256 of all that a training sees of the dataset, in order.

        Names do not count.
        """
        digest = hashlib.sha256(json.dumps(dict(self.settings), sort_keys=True).encode())
        for sample in self.samples:
            seen = {
                name: value for name, value in asdict(sample).items() if name not in ("file", "name", "group")
            }
            digest.update(json.dumps(seen, sort_keys=True).encode())
            digest.update(bytes.fromhex(calculate_sha256(self.folder / sample.file)))
        return digest.hexdigest()


def save_dataset(dataset: Dataset) -> None:
    """Write `dataset.json` atomically: the file is always complete, the old one or the new one."""
    told = {name: value for name, value in asdict(dataset).items() if name != "folder"}
    with replace_file(dataset.folder / MANIFEST) as unfinished:
        unfinished.write_text(json.dumps(told, ensure_ascii=False, indent=1), encoding="utf-8")


def load_dataset(folder: Path) -> Dataset:
    """Load the dataset that was saved in a folder. Raises `UserError` if there is none."""
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        samples = tuple(
            Sample(**{**row, "wording": row["wording"] and CaptionVariation(**row["wording"])})
            for row in told["samples"]
        )
        skipped = tuple(SkippedFile(**row) for row in told["skipped"])
        return Dataset(
            folder=folder,
            samples=samples,
            skipped=skipped,
            notes=tuple(told["notes"]),
            settings=told["settings"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "dataset", f"{folder.name} contains no readable {MANIFEST} ({type(error).__name__})."
        ) from error


def replace_captions(dataset: Dataset, captions: Mapping[str, str]) -> Dataset:
    """Return the dataset with new captions for some of its files.

    Raises `UserError` for a file that is not in the dataset and for a caption that is too long.
    """
    if unknown := captions.keys() - {sample.file for sample in dataset.samples}:
        raise UserError(
            "captions",
            f"{min(unknown)[:40]!r} is not one of the {len(dataset.samples)} images. Use their file names.",
        )
    tidy = {file: clean_caption(caption) for file, caption in captions.items()}
    return replace(
        dataset,
        samples=tuple(
            replace(sample, caption=tidy.get(sample.file, sample.caption)) for sample in dataset.samples
        ),
    )


def clean_caption(caption: str) -> str:
    """Return a caption without control characters, empty lines and spaces around lines.

    Raises `UserError` if the caption is too long.
    """
    if len(caption) > limits.CAPTION_LENGTH:
        raise UserError(
            "caption", f"{len(caption):,} characters are too many; the limit is {limits.CAPTION_LENGTH:,}."
        )
    return "\n".join(
        stripped for line in FORBIDDEN_CHARACTERS.sub("", caption).splitlines() if (stripped := line.strip())
    )


def clean_name(name: str) -> str:
    """Return a file name fit to be shown: one line, no control characters, only the end if long."""
    plain = " ".join(FORBIDDEN_CHARACTERS.sub("", name).split())
    return plain if len(plain) <= MAX_NAME_LENGTH else "…" + plain[-MAX_NAME_LENGTH:]


def merge_datasets(dataset: Dataset, other: Dataset) -> Dataset:
    """Return both datasets as one, in the first one's folder.

    Moves the pictures of `other` there and numbers them after the first one's.
    """
    moved = []
    for number, sample in enumerate(other.samples, len(dataset.samples) + 1):
        file = f"{number:04}.png"
        (other.folder / sample.file).replace(dataset.folder / file)
        moved.append(replace(sample, file=file))
    told = {name: getattr(dataset, name) + getattr(other, name) for name in ("skipped", "notes")}
    return replace(dataset, samples=(*dataset.samples, *moved), **told)
