"""Strengths are placed where a LoRA acts, whatever its size, and go on in the same ratio."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.generate.probe import search_strengths
from core.sweep.strengths import (
    FIRST_STRENGTHS,
    SEARCHED_CHANGES,
    explain_no_strengths,
    extend_strengths,
    place_strengths,
)


def probe_line(slope: float, limit: float = 5.0) -> dict[float, float]:
    """Return what a probe finds of a LoRA whose change is in proportion to its strength."""
    return dict(search_strengths(lambda strength: slope * abs(strength), limit, SEARCHED_CHANGES))


def test_a_first_pass_goes_from_nothing_to_all_is_lost() -> None:
    found = place_strengths(probe_line(0.5))
    assert len(found) == FIRST_STRENGTHS
    assert found[0] == 0
    assert 0.027 <= 0.5 * found[1] < 0.031
    assert 0.9 <= 0.5 * found[-1] < 1
    ratios = [b / a for a, b in pairwise(found[1:])]
    assert max(ratios) / min(ratios) < 1.15, "two digits are enough for a person"


@given(st.floats(0.007, 500))
def test_any_slope_has_strengths_that_differ_and_are_allowed(slope: float) -> None:
    found = place_strengths(probe_line(slope))
    assert found == sorted(set(found))
    assert 3 <= len(found) <= FIRST_STRENGTHS
    assert found[0] == 0
    assert found[-1] <= 5
    assert found == [round(strength, 3) for strength in found]


def test_where_the_limit_comes_first_it_is_the_last() -> None:
    assert place_strengths(probe_line(0.05))[-1] == 5
    few = place_strengths(probe_line(0.0065))
    assert few == [0, 4.5, 5], "strengths closer than a tenth would show the same"


def test_strengths_below_0_mirror_those_above() -> None:
    above, below = place_strengths(probe_line(0.5)), place_strengths(probe_line(0.5, -5.0))
    assert below == [-strength for strength in reversed(above)]


def test_what_shows_nothing_and_what_breaks_all_is_said_with_its_figure() -> None:
    assert explain_no_strengths(probe_line(0.5)) is None
    weak = explain_no_strengths(probe_line(0.0059))
    assert weak is not None
    assert weak.startswith("No change: even at 5, the greatest strength that is allowed, what")
    assert "changes by 2.9 %. Below 3 %, nothing shows" in weak
    assert "even at -5" in (explain_no_strengths(probe_line(0.001, -5.0)) or "")
    assert "Too strong: even at 0.001" in (explain_no_strengths(probe_line(1000)) or "")


@pytest.mark.parametrize(
    ("strengths", "limit", "expected"),
    [
        ([0, 0.5, 0.7, 1], 5, [1.414, 2]),
        ([0, 1, 2, 4], 5, [5]),
        ([0, 2, 5], 5, []),
        ([0, 0.98, 1], 5, [1.1, 1.2, 1.3, 1.5, 1.6, 1.8, 2]),
        ([0, 1], 5, [2]),
        ([-1, -0.7, -0.5, 0], -5, [-1.4, -2]),
        ([-1, 0, 2, 4], 5, [5]),
    ],
)
def test_an_extension_goes_on_in_the_same_ratio(
    strengths: list[float], limit: float, expected: list[float]
) -> None:
    assert extend_strengths(strengths, limit) == expected
