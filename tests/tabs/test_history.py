"""The history of the Generate tab: a person's pictures again, and nobody else's."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from core.generate import outputs
from core.generate.outputs import Outputs
from core.prompts import png_metadata
from tabs.generate import gallery, history
from tabs.server import page_files

INFOTEXT = "1girl\nSteps: 5, Sampler: Euler a, CFG scale: 4, Seed: {seed}, Size: 64x64"
HOSTILE_PLACES = (
    "../../etc/passwd",
    "/etc/passwd",
    -1,
    2,
    10**30,
    True,
    1.0,
    None,
    [0],
    {"path": "/etc/passwd"},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The outputs of a person at home, and a page's files."""
    monkeypatch.setattr(outputs, "find_outputs", lambda: Outputs(folder=tmp_path / "outputs"))
    monkeypatch.setattr(page_files, "FILES_FOLDER", tmp_path / "files")
    return tmp_path / "outputs"


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Space, which has no outputs, and the folder of its pages' files."""
    monkeypatch.setattr(outputs, "find_outputs", lambda: None)
    monkeypatch.setattr(page_files, "FILES_FOLDER", tmp_path / "files")
    return tmp_path / "files"


def make_picture(file: Path, seed: int) -> Path:
    png_metadata.save_png(Image.new("RGB", (64, 64)), file, INFOTEXT.format(seed=seed))
    os.utime(file, (seed, seed))
    return file


def choose(shown: list[str], place: Any) -> dict[str, Any]:
    return history._choose_picture(shown, SimpleNamespace(index=place))  # type: ignore[arg-type]


def test_pages_go_back_to_the_first_picture(folder: Path) -> None:
    made = [make_picture(folder / f"{seed}.png", seed) for seed in range(1, 31)]
    (folder / "30.png").write_text("torn")
    first = history._show_page([], 0)
    assert first["history_shown"] == [str(file) for file in reversed(made[6:29])]
    assert "Images 1 to 24 of 30, newest first. Not an image: 30.png." in first["history_line"]
    assert (first["history_newer"]["interactive"], first["history_older"]["interactive"]) == (False, True)
    second = history._show_page([], history.PAGE_SIZE)
    assert second["history_shown"] == [str(file) for file in reversed(made[:6])]
    assert (second["history_newer"]["interactive"], second["history_older"]["interactive"]) == (True, False)
    assert history._show_page([], 10**9) == second, "the last page, after a person has deleted others"
    assert all(Image.open(file).size == (64, 64) for file in second["history_grid"]["value"])


def test_the_chosen_picture_is_shown_with_its_settings_and_goes_for_good(folder: Path) -> None:
    kept, gone = (make_picture(folder / name, seed) for seed, name in enumerate(("a.png", "b.png"), 1))
    shown = history._show_page([], 0)["history_shown"]
    chosen = choose(shown, 0)
    assert chosen["history_settings"]["value"] == INFOTEXT.format(seed=2)
    copy = Path(chosen["history_image"])
    assert png_metadata.get_infotext(copy) == INFOTEXT.format(seed=2), "its download has its settings"
    after = history._delete_picture(chosen["history_chosen"], [], 0)
    assert after["history_shown"] == [str(kept)]
    assert not gone.exists()
    assert not copy.exists(), "what the page was shown of it is deleted, too"
    with pytest.raises(gr.Error, match=r"b\.png is not there any more"):
        choose(shown, 0)


@pytest.mark.parametrize("place", HOSTILE_PLACES, ids=str)
def test_a_place_that_the_page_does_not_have_opens_nothing(place: Any, folder: Path) -> None:
    shown = [str(make_picture(folder / f"{seed}.png", seed)) for seed in (1, 2)]
    with pytest.raises(gr.Error, match="choose one again"):
        choose(shown, place)


@pytest.mark.parametrize(
    "value", [None, "/etc/passwd", [], {}, {"image": "/etc/passwd"}, {"image": {}}], ids=str
)
def test_the_gallery_opens_only_what_it_was_given(value: Any, tmp_path: Path) -> None:
    """A preview of the next job may stand where a picture of the last one stood: it has no settings yet."""
    made = [str(make_picture(tmp_path / f"{seed}.png", seed)) for seed in (1, 2)]

    def choose_in_gallery(value: Any) -> dict[str, Any]:
        return gallery._choose_picture(made, SimpleNamespace(index=0, value=value))  # type: ignore[arg-type]

    chosen = choose_in_gallery({"image": {"path": made[1]}})
    assert (chosen["chosen"], chosen["last_seed"]) == (1, 2)
    assert (chosen["settings"]["value"], chosen["picture"]) == (INFOTEXT.format(seed=2), made[1])
    for other in (value, {"image": {"path": value}}, {"image": {"path": str(tmp_path / "preview.png")}}):
        assert choose_in_gallery(other) == {"chosen": None}


def test_on_a_space_a_session_has_its_own_pictures(space: Path, tmp_path: Path) -> None:
    """Each visitor's files lie in the same place; only their own session's list leads to them."""
    mine, theirs = (make_picture(space / (name * 32) / "00-1.png", 1) for name in "ab")
    assert history._show_page([], 0)["history_shown"] == []
    session = history._remember_pictures([str(mine)], [])
    assert history._remember_pictures([str(mine)], session) == session, "each once"
    page = history._show_page(session, 0)
    assert page["history_shown"] == [str(mine)]
    assert str(tmp_path) not in page["history_line"], "no visitor reads where the Space keeps files"
    after = history._delete_picture(str(mine), session, 0)
    assert (after["session_images"], after["history_shown"]) == ([], [])
    assert not mine.exists()
    assert theirs.exists()
