"""Sorts files into pictures and captions, and reads what their folders say.

A folder's name is `N_class` as in kohya's trainer, or means nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from core.dataset.caption_variation import CaptionVariation
from core.dataset.dataset import SkippedFile, clean_name
from core.dataset.files import Entry, FileTree
from core.schema import limits
from core.schema.errors import UserError

CAPTION_SUFFIXES = (".txt", ".caption")
"""Suffixes of caption files: the usual one and kohya's default. The first that exists counts."""
CONFIG_SUFFIX = ".toml"
MASK_STEM = re.compile(r"(.+)-(?:masklabel|condlabel)")
"""The stem of OneTrainer's masks and conditioning pictures, PNG files beside their picture."""
REPEATS_FOLDER = re.compile(r"([0-9]{1,6})_(.+)")


@dataclass(frozen=True, kw_only=True)
class CaptionedPicture:
    """A picture's file and its caption files, the one that counts first."""

    picture: Entry
    captions: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Pictures of one folder, and what they have in common, as in `Sample`."""

    pictures: tuple[CaptionedPicture, ...]
    group: str
    repeats: int = 1
    class_tokens: str = ""
    """The caption of pictures without a caption file."""
    regularisation: bool = False
    wording: CaptionVariation | None = None
    flip: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A file tree sorted into subsets. `skipped`, `notes` and `settings` are as in `Dataset`."""

    subsets: tuple[Subset, ...]
    skipped: tuple[SkippedFile, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, int] = field(default_factory=dict)


def read_folder_layout(tree: FileTree) -> Layout:
    """Sort pictures by their folders.

    If some lie in folders named `N_class`, all must: kohya's trainer leaves others out without an
    error. Raises `UserError` for such a folder, for N_class folders in two places, and for repeats
    that are not allowed.
    """
    pictures = {
        PurePosixPath(folder): found
        for folder, entries in tree.group_by_folder().items()
        if (found := pair_with_captions(entries, CAPTION_SUFFIXES))
    }
    named = {folder: match for folder in pictures if (match := REPEATS_FOLDER.fullmatch(folder.name))}
    if not named:
        plain = [
            Subset(pictures=found, group=clean_name(folder.name) or "dataset")
            for folder, found in pictures.items()
        ]
        return Layout(
            subsets=tuple(plain),
            skipped=list_skipped(tree.entries, plain, ""),
            notes=describe_masks(tree.entries, plain),
        )
    first, *others = sorted({folder.parent for folder in named})
    if others:
        places = f"{clean_name(str(first))!r} and in {clean_name(str(others[0]))!r}"
        raise UserError(
            "dataset",
            f"folders named N_class are in {places}. "
            "Put them in one place, and add regularisation images separately.",
        )
    if odd := sorted(
        folder for folder in pictures if folder not in named and folder not in (first, *first.parents)
    ):
        name = clean_name(odd[0].name)
        raise UserError(
            "dataset",
            f"the folder {name!r} is next to folders named N_class. Give it a name such as {f'1_{name}'!r}.",
        )
    subsets = []
    for folder, match in named.items():
        repeats = check_repeats(int(match[1]), f"the folder {clean_name(match[0])!r}")
        subsets.append(
            Subset(
                pictures=pictures[folder],
                group=clean_name(match[0]),
                repeats=repeats,
                class_tokens=clean_name(match[2]),
            )
        )
    skipped = list_skipped(tree.entries, subsets, "it is next to the folders named N_class, not inside one")
    return Layout(subsets=tuple(subsets), skipped=skipped, notes=describe_masks(tree.entries, subsets))


def pair_with_captions(
    entries: Sequence[Entry], caption_suffixes: tuple[str, ...]
) -> tuple[CaptionedPicture, ...]:
    """Return the pictures of a folder, recognised by their content, each with its captions."""
    files = {(entry.stem, entry.suffix.lower()): entry for entry in entries}
    others = (*CAPTION_SUFFIXES, *caption_suffixes, CONFIG_SUFFIX)
    pictures = [
        entry
        for entry in entries
        if entry.suffix.lower() not in others and not is_mask(entry) and entry.is_picture
    ]
    return tuple(
        CaptionedPicture(
            picture=entry,
            captions=tuple(files[entry.stem, end] for end in caption_suffixes if (entry.stem, end) in files),
        )
        for entry in pictures
    )


def is_mask(entry: Entry) -> bool:
    """Whether OneTrainer would take the file as a mask or conditioning picture and not train it."""
    return entry.suffix.lower() == ".png" and MASK_STEM.fullmatch(PurePosixPath(entry.stem).name) is not None


def describe_masks(entries: Iterable[Entry], subsets: Iterable[Subset]) -> tuple[str, ...]:
    """Return a note with how many masks belong to training pictures; empty if there are none."""
    trained = {one.picture.stem for subset in subsets for one in subset.pictures}
    names = sorted(
        clean_name(entry.name) for entry in entries if is_mask(entry) and _picture_stem(entry) in trained
    )
    if not names:
        return ()
    many = f"{names[0]!r}" if len(names) == 1 else f"{len(names)} files, such as {names[0]!r}"
    return (f"OneTrainer masks are skipped and not trained as images: {many}.",)


def _picture_stem(entry: Entry) -> str:
    """Return the stem of the picture that a mask belongs to."""
    return entry.stem.rpartition("-")[0]


def list_skipped(
    entries: Iterable[Entry], subsets: Iterable[Subset], picture_reason: str
) -> tuple[SkippedFile, ...]:
    """List the files that are neither a picture of a subset nor its caption or mask.

    `picture_reason` is the reason given for pictures among them.
    """
    subsets = tuple(subsets)
    used = {file for subset in subsets for one in subset.pictures for file in (one.picture, *one.captions)}
    trained = {one.picture.stem for subset in subsets for one in subset.pictures}
    reasons = {
        **dict.fromkeys(CAPTION_SUFFIXES, "no image uses it as its caption"),
        CONFIG_SUFFIX: "it is not a dataset of kohya's trainer",
        ".zip": "an archive inside an archive is not opened",
    }
    found = []
    for entry in entries:
        if is_mask(entry):
            if _picture_stem(entry) not in trained:
                found.append(
                    SkippedFile(
                        name=clean_name(entry.name), reason="it is a mask, but not of a training image"
                    )
                )
        elif entry not in used:
            reason = reasons.get(entry.suffix.lower()) or (
                picture_reason if entry.is_picture else "it is not a PNG, JPEG, WebP or BMP image"
            )
            found.append(SkippedFile(name=clean_name(entry.name), reason=reason))
    return tuple(found)


def check_repeats(count: int, where: str) -> int:
    """Return `count`, how often an epoch shows a picture. Raises `UserError` if out of range."""
    low, high = limits.REPEATS
    if not low <= count <= high:
        raise UserError("repeats", f"{where} asks for {count:,}; the range is {low} to {high:,}.")
    return count
