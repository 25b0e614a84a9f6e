"""A training set: pictures with what they are called and how often they are seen, in a folder of its own.

The folder holds the pictures as PNG under generated names, and `dataset.json`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from core import limits
from core.atomic import replacing
from core.checks import FORBIDDEN
from core.data.words import Wording
from core.digest import content
from core.types import UserError

RECORDS = "dataset.json"
LONGEST_NAME = 120  # characters that are shown


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture."""

    file: str
    """Its name in the dataset's folder."""
    name: str
    """What the person called it, fit to be shown; never a path that is opened."""
    caption: str = ""
    """Tags or sentences; lines are alternatives. Empty for none."""
    width: int
    """Pixels."""
    height: int
    repeats: int = 1
    """How often it is seen in an epoch."""
    regularisation: bool = False
    """Whether it shows what is to stay as it is."""
    wording: Wording | None = None
    """How its caption varies; `None` for as the recipe says."""
    flip: bool | None = None
    """Whether it is seen mirrored half of the time; `None` for as the recipe says."""
    group: str
    """The folder that it came in, which kohya's metadata name."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that was brought and left out."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What is trained on. Its records may be varied; its pictures stay as they are."""

    folder: Path
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    """What the person should know of how it was read."""
    settings: Mapping[str, int] = field(default_factory=dict)
    """What it says itself of its training, by the names of the recipes' fields: resolution, batch, sides of buckets."""

    def fingerprint(self) -> str:
        """The sha256 of all that a training sees of it, in order: names do not count."""
        digest = hashlib.sha256(json.dumps(dict(self.settings), sort_keys=True).encode())
        for sample in self.samples:
            seen = {name: value for name, value in asdict(sample).items() if name not in ("file", "name", "group")}
            digest.update(json.dumps(seen, sort_keys=True).encode())
            digest.update(bytes.fromhex(content(self.folder / sample.file)))
        return digest.hexdigest()


def save(dataset: Dataset) -> None:
    """Write `dataset.json`, which is whole at any time: the old one, then the new one."""
    told = {name: value for name, value in asdict(dataset).items() if name != "folder"}
    with replacing(dataset.folder / RECORDS) as unfinished:
        unfinished.write_text(json.dumps(told, ensure_ascii=False, indent=1), encoding="utf-8")


def load(folder: Path) -> Dataset:
    """The dataset that was saved there. Raises `UserError` if there is none."""
    try:
        told = json.loads((folder / RECORDS).read_text(encoding="utf-8"))
        samples = tuple(Sample(**{**row, "wording": row["wording"] and Wording(**row["wording"])}) for row in told["samples"])
        skipped = tuple(Skipped(**row) for row in told["skipped"])
        return Dataset(folder=folder, samples=samples, skipped=skipped, notes=tuple(told["notes"]), settings=told["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"dataset: {folder.name} holds no {RECORDS} that can be read ({type(error).__name__}).") from error


def with_captions(dataset: Dataset, captions: Mapping[str, str]) -> Dataset:
    """The dataset with other captions for some of its files. Raises `UserError` for a file that it does not have, and as `tidied`."""
    if unknown := captions.keys() - {sample.file for sample in dataset.samples}:
        raise UserError(f"captions: {min(unknown)[:40]!r} is not one of the {len(dataset.samples)} pictures; it takes their file names.")
    tidy = {file: tidied(caption) for file, caption in captions.items()}
    return replace(dataset, samples=tuple(replace(sample, caption=tidy.get(sample.file, sample.caption)) for sample in dataset.samples))


def tidied(caption: str) -> str:
    """A caption without control characters, empty lines and spaces around lines. Raises `UserError` for one that is too long."""
    if len(caption) > limits.CAPTION:
        raise UserError(f"caption: {len(caption):,} characters are too many; it takes up to {limits.CAPTION:,}.")
    return "\n".join(stripped for line in FORBIDDEN.sub("", caption).splitlines() if (stripped := line.strip()))


def shown(name: str) -> str:
    """A file's name as it may be shown: on one line, without control characters, its end rather than its beginning."""
    plain = " ".join(FORBIDDEN.sub("", name).split())
    return plain if len(plain) <= LONGEST_NAME else "…" + plain[-LONGEST_NAME:]


def joined(dataset: Dataset, more: Dataset) -> Dataset:
    """Both in the first one's folder; the second's pictures are moved there, behind the first's."""
    moved = []
    for number, sample in enumerate(more.samples, len(dataset.samples) + 1):
        file = f"{number:04}.png"
        (more.folder / sample.file).replace(dataset.folder / file)
        moved.append(replace(sample, file=file))
    told = {name: getattr(dataset, name) + getattr(more, name) for name in ("skipped", "notes")}
    return replace(dataset, samples=(*dataset.samples, *moved), **told)
