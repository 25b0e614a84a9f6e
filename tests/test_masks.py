"""Boxes and masks on arrays small enough to be written out."""

import numpy as np

from core.masks import bounds, chosen, faded, filled, grown, overlap, region


def drawn(mask: np.ndarray) -> list[str]:
    return ["".join("#" if v == 255 else "." if v == 0 else "+" for v in row) for row in mask]


def test_a_box_is_filled() -> None:
    assert drawn(filled((2, 1, 5, 4), (10, 6))) == ["..........", "..###.....", "..###.....", "..###.....", "..........", ".........."]


def test_a_box_that_sticks_out_is_cut() -> None:
    assert drawn(filled((-3, -1, 2, 2), (5, 4))) == ["##...", "##...", ".....", "....."]
    assert bounds(filled((7, 7, 9, 9), (5, 5))) is None


def test_a_box_grows_by_half_on_each_side_and_shrinks_back() -> None:
    box = (4, 4, 6, 6)
    assert drawn(filled(grown(box, 4), (10, 10))) == [".........."] * 2 + ["..######.."] * 6 + [".........."] * 2
    assert grown(grown(box, 5), -5) == grown(box, 0) == box
    assert bounds(filled(grown(box, -8), (10, 10))) is None, "eroded away"


def test_a_faded_mask_ends_somewhere() -> None:
    soft = faded(filled((8, 8, 16, 16), (24, 24)), 2)
    assert soft[12, 12] > 220
    assert soft[0].max() == 0
    assert 0 < soft[12, 7] < 255
    assert np.array_equal(soft, soft[::-1, ::-1]), "it fades to all sides alike"
    assert drawn(faded(filled((1, 1, 3, 3), (4, 4)), 0)) == drawn(filled((1, 1, 3, 3), (4, 4)))


def test_boxes_are_chosen_by_share_and_number() -> None:
    small, large, middle = (0, 0, 1, 1), (5, 0, 9, 4), (1, 5, 4, 8)
    assert chosen([large, small, middle], (10, 10)) == [small, middle, large], "from left to right"
    assert chosen([large, small, middle], (10, 10), least=0.05) == [middle, large]
    assert chosen([large, small, middle], (10, 10), most=0.1) == [small, middle]
    assert chosen([large, small, middle], (10, 10), largest=2) == [middle, large]


def test_the_region_is_square_where_the_picture_allows() -> None:
    assert region((4, 4, 6, 6), 1, (10, 10)) == (3, 3, 7, 7)
    assert region((0, 0, 2, 2), 1, (10, 10)) == (0, 0, 4, 4), "moved inside"
    assert region((4, 1, 6, 9), 0, (10, 10)) == (1, 1, 9, 9), "widened to a square"
    assert region((1, 1, 3, 19), 1, (4, 20)) == (0, 0, 4, 20), "as square as the picture is"


def test_overlap_is_intersection_over_union() -> None:
    assert overlap((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert overlap((0, 0, 4, 4), (2, 0, 6, 4)) == 8 / 24
    assert overlap((0, 0, 2, 2), (2, 2, 4, 4)) == 0
