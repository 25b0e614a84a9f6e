"""Boxes and masks on arrays small enough to be written out."""

import numpy as np

from core.generate.stages.masks import (
    blur_mask,
    box_mask,
    crop_region,
    dilate_box,
    mask_bounds,
    overlap,
    select_boxes,
)


def render_mask(mask: np.ndarray) -> list[str]:
    return ["".join("#" if v == 255 else "." if v == 0 else "+" for v in row) for row in mask]


def test_a_box_is_filled() -> None:
    assert render_mask(box_mask((2, 1, 5, 4), (10, 6))) == [
        "..........",
        "..###.....",
        "..###.....",
        "..###.....",
        "..........",
        "..........",
    ]


def test_a_box_that_sticks_out_is_cut() -> None:
    assert render_mask(box_mask((-3, -1, 2, 2), (5, 4))) == ["##...", "##...", ".....", "....."]
    assert mask_bounds(box_mask((7, 7, 9, 9), (5, 5))) is None


def test_a_box_grows_by_half_on_each_side_and_shrinks_back() -> None:
    box = (4, 4, 6, 6)
    assert (
        render_mask(box_mask(dilate_box(box, 4), (10, 10)))
        == [".........."] * 2 + ["..######.."] * 6 + [".........."] * 2
    )
    assert dilate_box(dilate_box(box, 5), -5) == dilate_box(box, 0) == box
    assert mask_bounds(box_mask(dilate_box(box, -8), (10, 10))) is None, "eroded away"


def test_a_faded_mask_ends_somewhere() -> None:
    soft = blur_mask(box_mask((8, 8, 16, 16), (24, 24)), 2)
    assert soft[12, 12] > 220
    assert soft[0].max() == 0
    assert 0 < soft[12, 7] < 255
    assert np.array_equal(soft, soft[::-1, ::-1]), "it fades to all sides alike"
    assert render_mask(blur_mask(box_mask((1, 1, 3, 3), (4, 4)), 0)) == render_mask(
        box_mask((1, 1, 3, 3), (4, 4))
    )


def test_boxes_are_chosen_by_share_and_number() -> None:
    small, large, middle = (0, 0, 1, 1), (5, 0, 9, 4), (1, 5, 4, 8)
    assert select_boxes([large, small, middle], (10, 10)) == [small, middle, large], "from left to right"
    assert select_boxes([large, small, middle], (10, 10), least=0.05) == [middle, large]
    assert select_boxes([large, small, middle], (10, 10), most=0.1) == [small, middle]
    assert select_boxes([large, small, middle], (10, 10), largest=2) == [middle, large]


def test_the_region_is_square_where_the_picture_allows() -> None:
    assert crop_region((4, 4, 6, 6), 1, (10, 10)) == (3, 3, 7, 7)
    assert crop_region((0, 0, 2, 2), 1, (10, 10)) == (0, 0, 4, 4), "moved inside"
    assert crop_region((4, 1, 6, 9), 0, (10, 10)) == (1, 1, 9, 9), "widened to a square"
    assert crop_region((1, 1, 3, 19), 1, (4, 20)) == (0, 0, 4, 20), "as square as the picture is"


def test_overlap_is_intersection_over_union() -> None:
    assert overlap((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert overlap((0, 0, 4, 4), (2, 0, 6, 4)) == 8 / 24
    assert overlap((0, 0, 2, 2), (2, 2, 4, 4)) == 0
