"""Which file is a picture, which its caption, and what their folders say: `N_class` as kohya's trainer has it, or nothing."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from core import limits
from core.data.dataset import Skipped, shown
from core.data.files import Box, Entry
from core.data.words import Wording
from core.types import UserError

CAPTIONS = (".txt", ".caption")
"""Endings of caption files: what people write, and kohya's own default. The first that is there counts."""
CONFIG = ".toml"
MASK = re.compile(r"(.+)-(?:masklabel|condlabel)")
"""The stem of OneTrainer's masks and conditioning pictures, which lie as PNG beside the picture that they are of."""
NAMED = re.compile(r"([0-9]{1,6})_(.+)")


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """A picture's file and its captions': those that there are, the one that counts first."""

    picture: Entry
    captions: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Pictures of one folder, and what is the same for all of them, as in `Sample`."""

    pictures: tuple[Pictured, ...]
    group: str
    repeats: int = 1
    class_tokens: str = ""
    """The caption of pictures without a caption file."""
    regularisation: bool = False
    wording: Wording | None = None
    flip: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A box, sorted out. The last three are as in `Dataset`."""

    subsets: tuple[Subset, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, int] = field(default_factory=dict)


def folders(box: Box) -> Layout:
    """Pictures as they lie. If some lie in folders named `N_class`, all must: kohya's trainer leaves others out without an error.

    Raises `UserError` for such a folder, for N_class folders in two places, and for repeats that are not allowed.
    """
    pictures = {PurePosixPath(folder): found for folder, entries in box.folders().items() if (found := pictured(entries, CAPTIONS))}
    named = {folder: match for folder in pictures if (match := NAMED.fullmatch(folder.name))}
    if not named:
        plain = [Subset(pictures=found, group=shown(folder.name) or "dataset") for folder, found in pictures.items()]
        return Layout(subsets=tuple(plain), skipped=left_out(box.entries, plain, ""), notes=masks(box.entries, plain))
    first, *others = sorted({folder.parent for folder in named})
    if others:
        places = f"{shown(str(first))!r} and in {shown(str(others[0]))!r}"
        raise UserError(f"dataset: folders named N_class lie in {places}; it takes one place, and regularisation pictures by themselves.")
    if odd := sorted(folder for folder in pictures if folder not in named and folder not in (first, *first.parents)):
        name = shown(odd[0].name)
        raise UserError(f"dataset: the folder {name!r} lies among folders named N_class; it takes a name such as {f'1_{name}'!r}.")
    subsets = []
    for folder, match in named.items():
        repeats = checked_repeats(int(match[1]), f"the folder {shown(match[0])!r}")
        subsets.append(Subset(pictures=pictures[folder], group=shown(match[0]), repeats=repeats, class_tokens=shown(match[2])))
    skipped = left_out(box.entries, subsets, "it lies beside the folders named N_class, not in one")
    return Layout(subsets=tuple(subsets), skipped=skipped, notes=masks(box.entries, subsets))


def pictured(entries: Sequence[Entry], endings: tuple[str, ...]) -> tuple[Pictured, ...]:
    """The pictures of a folder, told by what is in them, each with its captions."""
    files = {(entry.stem, entry.suffix.lower()): entry for entry in entries}
    others = (*CAPTIONS, *endings, CONFIG)
    pictures = [entry for entry in entries if entry.suffix.lower() not in others and not is_mask(entry) and entry.is_picture]
    return tuple(Pictured(picture=entry, captions=tuple(files[entry.stem, end] for end in endings if (entry.stem, end) in files)) for entry in pictures)


def is_mask(entry: Entry) -> bool:
    """Whether OneTrainer would take it for a mask or a conditioning picture, and never train it as a picture."""
    return entry.suffix.lower() == ".png" and MASK.fullmatch(PurePosixPath(entry.stem).name) is not None


def masks(entries: Iterable[Entry], subsets: Iterable[Subset]) -> tuple[str, ...]:
    """What is told of the masks of pictures that are trained: how many there are, in one line; nothing where there are none."""
    trained = {one.picture.stem for subset in subsets for one in subset.pictures}
    names = sorted(shown(entry.name) for entry in entries if is_mask(entry) and _masked(entry) in trained)
    if not names:
        return ()
    many = f"{names[0]!r}" if len(names) == 1 else f"{len(names)} files, such as {names[0]!r}"
    return (f"Masks of OneTrainer are left out and not trained as pictures: {many}.",)


def _masked(entry: Entry) -> str:
    """The stem of the picture that a mask is of."""
    return entry.stem.rpartition("-")[0]


def left_out(entries: Iterable[Entry], subsets: Iterable[Subset], elsewhere: str) -> tuple[Skipped, ...]:
    """The files that are neither a picture of a subset nor its caption or mask; `elsewhere` is why pictures are not."""
    subsets = tuple(subsets)
    used = {file for subset in subsets for one in subset.pictures for file in (one.picture, *one.captions)}
    trained = {one.picture.stem for subset in subsets for one in subset.pictures}
    reasons = {
        **dict.fromkeys(CAPTIONS, "no picture takes its caption from it"),
        CONFIG: "it is no dataset of kohya's trainer",
        ".zip": "an archive inside an archive is not opened",
    }
    found = []
    for entry in entries:
        if is_mask(entry):
            if _masked(entry) not in trained:
                found.append(Skipped(name=shown(entry.name), reason="it is a mask of no picture that is trained"))
        elif entry not in used:
            reason = reasons.get(entry.suffix.lower()) or (elsewhere if entry.is_picture else "it is no PNG, JPEG, WebP or BMP picture")
            found.append(Skipped(name=shown(entry.name), reason=reason))
    return tuple(found)


def checked_repeats(count: int, where: str) -> int:
    """`count`, if a picture may be seen so often in an epoch; else raises `UserError`."""
    low, high = limits.REPEATS
    if not low <= count <= high:
        raise UserError(f"repeats: {where} asks for {count:,}; it takes {low} to {high:,}.")
    return count
