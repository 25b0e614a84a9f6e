"""Undo for captions: keeps the captions from before a tool's last change, beside the dataset."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core.dataset.dataset import Dataset, replace_captions
from core.schema.errors import UserError
from core.system.atomic_files import replace_file
from core.system.tensor_files import calculate_sha256

CHANGES_FILE = "changes.json"


def remember_changes(before: Dataset, after: Dataset) -> int:
    """Keep the captions that `after` changes, for `undo_changes`; return how many they are.

    Only the last change is kept; a change of nothing leaves the one before.
    """
    was = {sample.file: sample.caption for sample in before.samples}
    pairs = {
        each.file: (was[each.file], each.caption) for each in after.samples if each.caption != was[each.file]
    }
    if pairs:
        with replace_file(after.folder / CHANGES_FILE) as unfinished:
            unfinished.write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    return len(pairs)


def has_undo(folder: Path) -> bool:
    """Whether there is a change to undo."""
    return (folder / CHANGES_FILE).exists()


def undo_changes(dataset: Dataset) -> tuple[Dataset, int]:
    """Return the dataset with the captions from before the last change, and how many were restored.

    A caption that was edited since stays as it is. Call `forget_changes` once the result is saved.
    Raises `UserError` if there is no change to undo.
    """
    file = dataset.folder / CHANGES_FILE
    try:
        pairs: Mapping[str, tuple[str, str]] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("captions", "there is no change to undo.") from error
    back = {
        each.file: pairs[each.file][0]
        for each in dataset.samples
        if each.file in pairs and each.caption == pairs[each.file][1]
    }
    return replace_captions(dataset, back), len(back)


def forget_changes(folder: Path) -> None:
    """Remove the remembered change, so that there is nothing to undo."""
    (folder / CHANGES_FILE).unlink(missing_ok=True)


def carry_over_captions(former: Dataset, dataset: Dataset) -> Dataset:
    """Return `dataset` with the captions that its pictures had in `former`, if they had one.

    For a dataset that is imported once more with further pictures. A picture is the same if its
    name and its file's pixels are. A note says how many captions were kept in place of others.
    """
    had = {
        (each.name, each.regularisation, calculate_sha256(former.folder / each.file)): each.caption
        for each in former.samples
        if each.caption
    }
    kept = {}
    for each in dataset.samples:
        caption = had.get((each.name, each.regularisation, calculate_sha256(dataset.folder / each.file)))
        if caption and caption != each.caption:
            kept[each.file] = caption
    if not kept:
        return dataset
    note = f"Existing captions kept: {len(kept)}."
    return replace(replace_captions(dataset, kept), notes=(*dataset.notes, note))
