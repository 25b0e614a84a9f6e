"""Faces: found, made anew, pasted back with nothing else changed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core import details, paths, tools
from core.details import _prompts, places
from core.detect import AnimeFace, Detector
from core.events import Picture
from core.generate import generate
from core.masks import overlap
from core.nano.draw import drawing
from core.nano.pictures import HELD_OUT, scene
from core.nano.world import SIZES
from core.types import Cell, Detail, Request, UserError

DETAIL = Detail(detector="nano face", padding=8)
REQUEST = Request(
    model="nano",
    prompt="1girl, blue hair, portrait, white background",
    negative="low quality",
    width=128,
    height=128,
    steps=8,
    cfg=5.0,
    sampler="Euler a",
    seed=7,
)


@pytest.fixture(scope="module")
def nano_face() -> Detector:
    return Detector(tools.file("detector", "nano face"))


def test_faces_of_drawings_are_found_and_no_others(nano_face: Detector) -> None:
    """A short form of tests/bench/nano.py, whose bars are 98 % and none."""
    faces = hits = false = 0
    for i in range(90):
        drawn = drawing(scene(HELD_OUT + i, SIZES[i % 3]))
        found = nano_face.find(drawn.picture, 0.3)
        if drawn.face is None:
            false += len(found)
            continue
        faces += 1
        left, top, right, bottom = (round(edge) for edge in drawn.face)
        inside = (max(0, left), max(0, top), min(drawn.picture.width, right), min(drawn.picture.height, bottom))
        hits += any(overlap(f.box, inside) >= 0.5 for f in found)
    assert hits >= 0.97 * faces, f"{hits} of {faces}"
    assert false == 0


def test_a_box_is_in_the_pictures_own_pixels(nano_face: Detector) -> None:
    drawn = drawing(scene(HELD_OUT, (128, 128)), scale=2)
    small = drawing(scene(HELD_OUT, (128, 128)))
    (large,), (normal,) = nano_face.find(drawn.picture, 0.3), nano_face.find(small.picture, 0.3)
    assert overlap(large.box, tuple(2 * edge for edge in normal.box)) > 0.85  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"not a model", b""])
def test_a_file_that_is_no_detector_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "face.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"detector: face\.onnx cannot be opened"):
        Detector(tmp_path / "face.onnx")


def test_a_model_of_another_layout_is_refused() -> None:
    with pytest.raises(UserError, match="is not laid out as YOLOv8's"):
        Detector(paths.CODE / "core/nano/weights/tagger/model.onnx")


def test_only_the_face_changes_and_it_does() -> None:
    made = {}
    for detail in (None, DETAIL):
        *_, picture = generate([Cell(label="", request=replace(REQUEST, detail=detail))])
        assert isinstance(picture, Picture)
        made[detail] = picture
    before, after = (np.asarray(made[detail].image, int) for detail in (None, DETAIL))
    assert made[DETAIL].before is not None
    assert np.array_equal(np.asarray(made[DETAIL].before, int), before), "the picture before is the one without details"
    ((place,), _) = places([made[None].image], [replace(REQUEST, detail=DETAIL)], native=128)
    changed = np.abs(after - before).max(-1) > 0
    assert changed.any()
    assert not changed[place.mask == 0].any(), "a pixel outside the mask changed"


def test_no_face_is_a_note() -> None:
    request = replace(REQUEST, prompt="abstract, gradient, no humans", detail=DETAIL)
    *_, picture = generate([Cell(label="", request=request)])
    assert isinstance(picture, Picture)
    assert picture.notes == ("detail: nano face found nothing in this picture; it stays as it was.",)


def test_each_place_has_its_prompt() -> None:
    assert _prompts(DETAIL, "whole", 2) == ["whole", "whole"]
    assert _prompts(replace(DETAIL, prompt="a face"), "whole", 2) == ["a face", "a face"]
    assert _prompts(replace(DETAIL, prompt="a [SEP] [SKIP] [SEP] [PROMPT], c"), "whole", 4) == ["a", None, "whole, c", "whole, c"]


def test_places_are_denoised_at_the_models_own_area() -> None:
    picture = Image.new("RGB", (256, 192), "white")
    picture.paste(drawing(scene(HELD_OUT, (128, 128))).picture, (20, 20))
    (found, _) = places([picture], [replace(REQUEST, detail=replace(DETAIL, prompt="face"))], native=128)
    for place in found:
        assert (place.request.width, place.request.height) == (128, 128)
        assert (place.request.prompt, place.request.steps) == ("face", 3)
        left, top, right, bottom = place.region
        assert right - left == bottom - top


def test_cells_with_and_without_details_do_not_share() -> None:
    """In either order each cell gets what it asked for."""
    with_it, without = replace(REQUEST, detail=DETAIL), REQUEST
    for order in ([with_it, without], [without, with_it]):
        events = generate([Cell(label="", request=request) for request in order])
        made = {e.index: e for e in events if isinstance(e, Picture)}
        assert [made[i].before is None for i in range(2)] == [request.detail is None for request in order]


def test_where_no_detector_can_be_downloaded_another_one_steps_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> Path:
        raise UserError("detector: the Hub cannot be reached.")

    monkeypatch.setattr(tools, "file", refuse)
    found, note = details.finder(Detail().detector)
    assert isinstance(found, AnimeFace)
    assert note == f"detail: the detector {Detail().detector!r} cannot be had; animeface, which finds fewer faces, took its place."
    assert found.find(Image.new("RGB", (64, 64), "white"), 0.3) == []


def test_without_the_extra_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, where animeface has no wheel, a picture's details end with a sentence instead of a traceback."""

    def refuse(*_: str) -> Path:
        raise UserError("detector: the Hub cannot be reached.")

    monkeypatch.setattr(tools, "file", refuse)
    monkeypatch.setattr(details, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        details.finder(Detail().detector)
    with pytest.raises(UserError, match="'animeface' is not installed; `pip install animeface` brings it"):
        details.finder("animeface")
