"""Captions that a person had before a tool changed them: kept beside the dataset, so that its last change can be taken back."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core.atomic import replacing
from core.data.dataset import Dataset, with_captions
from core.digest import content
from core.types import UserError

CHANGES = "changes.json"


def remember_changes(before: Dataset, after: Dataset) -> int:
    """Keep what `after` changes of the captions of `before`, for `undo_changes`; returns how many captions it changes.

    The last change alone is kept, and one that changes nothing is none.
    """
    was = {sample.file: sample.caption for sample in before.samples}
    pairs = {each.file: (was[each.file], each.caption) for each in after.samples if each.caption != was[each.file]}
    if pairs:
        with replacing(after.folder / CHANGES) as unfinished:
            unfinished.write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    return len(pairs)


def has_undo(folder: Path) -> bool:
    """Whether there is a change that can be taken back."""
    return (folder / CHANGES).exists()


def undo_changes(dataset: Dataset) -> tuple[Dataset, int]:
    """The dataset with the captions from before the last change, and how many came back; what was edited since stays as it is.

    Raises `UserError` if there is none. `forget_changes` once it is saved.
    """
    file = dataset.folder / CHANGES
    try:
        pairs: Mapping[str, tuple[str, str]] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("captions: there is no change to take back.") from error
    back = {each.file: pairs[each.file][0] for each in dataset.samples if each.file in pairs and each.caption == pairs[each.file][1]}
    return with_captions(dataset, back), len(back)


def forget_changes(folder: Path) -> None:
    """There is no change any more that could be taken back."""
    (folder / CHANGES).unlink(missing_ok=True)


def carry_over(former: Dataset, dataset: Dataset) -> Dataset:
    """The dataset with the captions that its pictures had in `former`, where they had one: more pictures were brought beside them.

    A picture is the same by its name and its pixels' file. A note says how many captions were kept in place of others.
    """
    had = {(each.name, each.regularisation, content(former.folder / each.file)): each.caption for each in former.samples if each.caption}
    kept = {}
    for each in dataset.samples:
        caption = had.get((each.name, each.regularisation, content(dataset.folder / each.file)))
        if caption and caption != each.caption:
            kept[each.file] = caption
    if not kept:
        return dataset
    note = f"Captions that were here before are kept: {len(kept)}."
    return replace(with_captions(dataset, kept), notes=(*dataset.notes, note))
