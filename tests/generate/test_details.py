"""Faces are detected, redrawn and pasted back with nothing else changed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.generate.pipeline import generate
from core.generate.request import PictureForm, build_cells
from core.generate.stages import details
from core.generate.stages.details import _split_prompts, find_detail_regions
from core.generate.stages.detector import AnimeFace, Detector
from core.generate.stages.masks import overlap
from core.models import tools
from core.nano.draw import draw_with_face
from core.nano.pictures import FIRST_HELD_OUT, make_scene
from core.nano.world import SIZES
from core.schema.errors import UserError
from core.schema.events import Picture
from core.schema.records import read_form
from core.schema.types import Cell, Detail, Request
from core.system import paths

DETAIL = Detail(detector="nano face", padding=8)
SHARED_FIELDS = ("model", "negative", "width", "height", "steps", "cfg", "sampler", "seed")
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
    return Detector(tools.fetch_tool("detector", "nano face"))


def test_faces_of_drawings_are_found_and_no_others(nano_face: Detector) -> None:
    """A short form of tests/bench/recipe.py, whose bars are 98 % and none."""
    faces = hits = false = 0
    for i in range(90):
        drawn = draw_with_face(make_scene(FIRST_HELD_OUT + i, SIZES[i % 3]))
        found = nano_face.find(drawn.picture, 0.3)
        if drawn.face is None:
            false += len(found)
            continue
        faces += 1
        left, top, right, bottom = (round(edge) for edge in drawn.face)
        inside = (
            max(0, left),
            max(0, top),
            min(drawn.picture.width, right),
            min(drawn.picture.height, bottom),
        )
        hits += any(overlap(f.box, inside) >= 0.5 for f in found)
    assert hits >= 0.97 * faces, f"{hits} of {faces}"
    assert false == 0


def test_a_box_is_in_the_pictures_own_pixels(nano_face: Detector) -> None:
    drawn = draw_with_face(make_scene(FIRST_HELD_OUT, (128, 128)), scale=2)
    small = draw_with_face(make_scene(FIRST_HELD_OUT, (128, 128)))
    (large,), (normal,) = nano_face.find(drawn.picture, 0.3), nano_face.find(small.picture, 0.3)
    assert overlap(large.box, tuple(2 * edge for edge in normal.box)) > 0.85  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"not a model", b""])
def test_a_file_that_is_no_detector_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "face.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"detector: face\.onnx cannot be opened"):
        Detector(tmp_path / "face.onnx")


def test_a_model_of_another_layout_is_refused() -> None:
    with pytest.raises(UserError, match="does not have YOLOv8's layout"):
        Detector(paths.CODE / "core/nano/weights/tagger/model.onnx")


def test_only_the_face_changes_and_it_does() -> None:
    made = {}
    for detail in (None, DETAIL):
        *_, picture = generate([Cell(label="", request=replace(REQUEST, detail=detail))])
        assert isinstance(picture, Picture)
        made[detail] = picture
    before, after = (np.asarray(made[detail].image, int) for detail in (None, DETAIL))
    assert made[DETAIL].before is not None
    assert np.array_equal(np.asarray(made[DETAIL].before, int), before), (
        "the picture before is the one without details"
    )
    ((place,), _) = find_detail_regions(
        [made[None].image], [replace(REQUEST, detail=DETAIL)], native_size=128
    )
    changed = np.abs(after - before).max(-1) > 0
    assert changed.any()
    assert not changed[place.mask == 0].any(), "a pixel outside the mask changed"


@pytest.mark.parametrize("detail_strength", [None, 0.0])
def test_a_lora_of_the_details_prompt_changes_the_face_alone(detail_strength: float | None) -> None:
    """In ADetailer, people give faces a LoRA of their own every day."""

    def make(prompt: str, face: str) -> Picture:
        detail = {**vars(DETAIL), "prompt": face, "lora_strength": detail_strength}
        fields = {**vars(REQUEST), "prompt": prompt, "detail": detail, "preset": "nano"}
        named = {name: fields[name] for name in (*SHARED_FIELDS, "prompt", "detail", "preset")}
        cells = build_cells(read_form(PictureForm, named))
        *_, picture = generate(cells)
        assert isinstance(picture, Picture)
        return picture

    plain, tagged = make("1girl, portrait", "1girl"), make("1girl, portrait", "1girl <lora:nano-airbrush:2>")
    assert plain.before == tagged.before, "the LoRA changed more than the details"
    assert plain.image != tagged.image
    both = make("1girl, portrait <lora:nano-airbrush:-1>", "1girl <lora:nano-airbrush:2>")
    ((place,), _) = find_detail_regions([both.before], [both.cell.request], 128)  # type: ignore[list-item]
    assert [use.strength for use in place.request.loras] == [0.0, 2.0], "the details' own strength counts"


def test_no_face_is_a_note() -> None:
    request = replace(REQUEST, prompt="abstract, gradient, no humans", detail=DETAIL)
    *_, picture = generate([Cell(label="", request=request)])
    assert isinstance(picture, Picture)
    assert picture.notes == ("detail: nano face found nothing in this image; it is unchanged.",)


def test_each_place_has_its_prompt() -> None:
    assert _split_prompts(DETAIL, "whole", 2) == ["whole", "whole"]
    assert _split_prompts(replace(DETAIL, prompt="a face"), "whole", 2) == ["a face", "a face"]
    assert _split_prompts(replace(DETAIL, prompt="a [SEP] [SKIP] [SEP] [PROMPT], c"), "whole", 4) == [
        "a",
        None,
        "whole, c",
        "whole, c",
    ]


def test_places_are_denoised_at_the_models_own_area() -> None:
    picture = Image.new("RGB", (256, 192), "white")
    picture.paste(draw_with_face(make_scene(FIRST_HELD_OUT, (128, 128))).picture, (20, 20))
    (found, _) = find_detail_regions(
        [picture], [replace(REQUEST, detail=replace(DETAIL, prompt="face"))], native_size=128
    )
    for place in found:
        assert (place.request.width, place.request.height) == (128, 128)
        assert (place.request.prompt, place.request.steps) == ("face", 3)
        left, top, right, bottom = place.crop
        assert right - left == bottom - top


def test_cells_with_and_without_details_do_not_share() -> None:
    """In either order each cell has the details of its own request."""
    with_it, without = replace(REQUEST, detail=DETAIL), REQUEST
    for order in ([with_it, without], [without, with_it]):
        events = generate([Cell(label="", request=request) for request in order])
        made = {e.index: e for e in events if isinstance(e, Picture)}
        assert [made[i].before is None for i in range(2)] == [request.detail is None for request in order]


def test_where_no_detector_can_be_downloaded_another_one_steps_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> Path:
        raise UserError("detector", "Hugging Face is unreachable.")

    monkeypatch.setattr(tools, "fetch_tool", refuse)
    found, note = details.find_detector(Detail().detector)
    assert isinstance(found, AnimeFace)
    assert note == (
        f"detail: the detector {Detail().detector!r} is not available; animeface, which finds fewer "
        "faces, was used instead."
    )
    assert found.find(Image.new("RGB", (64, 64), "white"), 0.3) == []


def test_without_the_extra_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, which has no wheel of animeface, details end with a sentence, not a traceback."""

    def refuse(*_: str) -> Path:
        raise UserError("detector", "Hugging Face is unreachable.")

    monkeypatch.setattr(tools, "fetch_tool", refuse)
    monkeypatch.setattr(details, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="Hugging Face is unreachable"):
        details.find_detector(Detail().detector)
    with pytest.raises(UserError, match="'animeface' is not installed; `pip install animeface` installs it"):
        details.find_detector("animeface")
