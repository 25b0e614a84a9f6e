"""Captions from before a change: they come back, and more pictures do not take them away."""

from dataclasses import replace
from pathlib import Path

import pytest

from core.data.dataset import Dataset, with_captions
from core.data.undo import carry_over, forget_changes, has_undo, remember_changes, undo_changes
from core.types import UserError
from tests.data.parts import BLUE, GREEN, Take, picture


def texts(dataset: Dataset) -> list[str]:
    return [sample.caption for sample in dataset.samples]


def test_the_last_change_is_taken_back_and_what_was_edited_since_stays(take: Take) -> None:
    before = take({"a.png": picture(), "a.txt": "mine", "b.png": picture(GREEN), "c.png": picture(BLUE), "c.txt": "ours"})
    after = with_captions(before, {"0001.png": "by a tool", "0002.png": "by a tool", "0003.png": "by a tool"})
    assert remember_changes(before, after) == 3
    edited = with_captions(after, {"0003.png": "by hand"})
    assert remember_changes(edited, edited) == 0, "a tool that changes nothing leaves the last change to be taken back"
    back, many = undo_changes(edited)
    assert (texts(back), many) == (["mine", "", "by hand"], 2)
    assert has_undo(before.folder), "where the disk is full, the captions of before are still there"
    forget_changes(before.folder)
    assert not has_undo(before.folder)
    with pytest.raises(UserError, match="there is no change to take back"):
        undo_changes(back)


def test_captions_are_not_lost_with_more_pictures(take: Take, tmp_path: Path) -> None:
    brought = take({"a.png": picture(), "b.png": picture(GREEN), "c.png": picture(BLUE)})
    former = with_captions(replace(brought, folder=brought.folder.rename(tmp_path / "former")), {"0001.png": "mine", "0003.png": "mine, too"})
    more = take({"0.png": picture((9, 9, 9)), "a.png": picture(), "b.png": picture(GREEN), "b.txt": "brought now", "c.png": picture((1, 2, 3))})
    kept = carry_over(former, more)
    assert texts(kept) == ["", "mine", "brought now", ""], "another picture of the same name is not the same"
    assert kept.notes[-1] == "Captions that were here before are kept: 1."
