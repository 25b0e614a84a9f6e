"""The captions before a change come back, and adding pictures does not lose them."""

from dataclasses import replace
from pathlib import Path

import pytest

from core.dataset.dataset import Dataset, replace_captions
from core.dataset.undo import carry_over_captions, forget_changes, has_undo, remember_changes, undo_changes
from core.schema.errors import UserError
from tests.dataset.parts import BLUE, GREEN, ImportZip, make_picture


def list_captions(dataset: Dataset) -> list[str]:
    return [sample.caption for sample in dataset.samples]


def test_the_last_change_is_taken_back_and_what_was_edited_since_stays(import_zip: ImportZip) -> None:
    before = import_zip(
        {
            "a.png": make_picture(),
            "a.txt": "mine",
            "b.png": make_picture(GREEN),
            "c.png": make_picture(BLUE),
            "c.txt": "ours",
        }
    )
    after = replace_captions(
        before, {"0001.png": "by a tool", "0002.png": "by a tool", "0003.png": "by a tool"}
    )
    assert remember_changes(before, after) == 3
    edited = replace_captions(after, {"0003.png": "by hand"})
    assert remember_changes(edited, edited) == 0, (
        "a tool that changes nothing leaves the last change to be taken back"
    )
    back, many = undo_changes(edited)
    assert (list_captions(back), many) == (["mine", "", "by hand"], 2)
    assert has_undo(before.folder), "where the disk is full, the captions of before are still there"
    forget_changes(before.folder)
    assert not has_undo(before.folder)
    with pytest.raises(UserError, match="there is no change to undo"):
        undo_changes(back)


def test_captions_are_not_lost_with_more_pictures(import_zip: ImportZip, tmp_path: Path) -> None:
    brought = import_zip({"a.png": make_picture(), "b.png": make_picture(GREEN), "c.png": make_picture(BLUE)})
    former = replace_captions(
        replace(brought, folder=brought.folder.rename(tmp_path / "former")),
        {"0001.png": "mine", "0003.png": "mine, too"},
    )
    more = import_zip(
        {
            "0.png": make_picture((9, 9, 9)),
            "a.png": make_picture(),
            "b.png": make_picture(GREEN),
            "b.txt": "brought now",
            "c.png": make_picture((1, 2, 3)),
        }
    )
    kept = carry_over_captions(former, more)
    assert list_captions(kept) == ["", "mine", "brought now", ""], (
        "another picture of the same name is not the same"
    )
    assert kept.notes[-1] == "Existing captions kept: 1."
