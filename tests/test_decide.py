"""Decisions on curves written out: what is there is found, what was not seen is not named."""

import numpy as np
import pytest

from core import grid
from core.decide import decide

STRENGTHS = [i * 0.5 for i in range(9)]  # 0 to 4
PICTURES = 16


def curves(effect: list[float], prompt: list[float] | None = None, noise: float = 0.05, **others: list[float]) -> dict[str, np.ndarray]:
    """Means at `STRENGTHS`, with the same small differences between pictures at each strength."""
    rng = np.random.default_rng(1)
    spread = rng.normal(0, noise, PICTURES)
    named = {"effect": effect, "prompt": prompt or [1.0] * len(effect), "composition": [0.9] * len(effect), **others}
    return {name: np.array(values, float)[:, None] + spread[None] for name, values in named.items()}


PLATEAU = [0, 0.1, 0.5, 1.5, 2.0, 2.1, 2.1, 2.2, 2.3]


def test_a_plateau_that_breaks_has_all_three() -> None:
    found = decide(STRENGTHS, curves(PLATEAU, [1, 1, 1, 1, 1, 1, 0.9, 0.4, 0.1]), 0.3, seeds=4)
    assert (found.onset, found.sweet_spot, found.breakdown, found.recommended) == (1.0, (1.5, 3.0), 3.5, 2.25)
    assert found.confidence > 0.9
    assert found.why == "Works from 1.5 to 3, best near 2.25: it surely changes the pictures from 1 on; from 3.5 on prompt surely falls."
    assert found.intervals["breakdown"] == (3.5, 3.5)


def test_a_plateau_without_a_breakdown() -> None:
    found = decide(STRENGTHS, curves(PLATEAU), 0.3, seeds=4)
    assert (found.onset, found.sweet_spot, found.breakdown) == (1.0, (1.5, 4.0), None)
    assert "no breakdown up to 4" in found.why
    shorter = decide(STRENGTHS[:-1], {name: curve[:-1] for name, curve in curves(PLATEAU).items()}, 0.3, seeds=4)
    assert (found.recommended, shorter.recommended) == (2.5, 2.0), "a step at most, whereas the middle moves with the range"
    assert "breakdown" not in found.intervals


def test_a_curve_still_rising_has_no_sweet_spot_and_a_next_run() -> None:
    found = decide(STRENGTHS, curves([0.5 * i for i in range(9)]), 0.3, seeds=4)
    assert (found.sweet_spot, found.recommended, found.breakdown) == (None, None, None)
    assert found.why == "Still rising at 4: extend the range."
    assert found.next == "0-5 (+0.5)"
    assert set(found.intervals) == {"onset"}, "no interval for what is not claimed"


def test_a_flat_curve_has_nothing() -> None:
    found = decide(STRENGTHS, curves([0.0] + [0.05] * 8), 0.3, seeds=4)
    assert (found.onset, found.sweet_spot, found.breakdown) == (None, None, None)
    assert found.why.startswith("No strength up to 4 surely changes the pictures (noise floor 0.30 seed units)")


def test_one_seed_has_nothing() -> None:
    found = decide(STRENGTHS, curves(PLATEAU), 0.3, seeds=1)
    assert (found.onset, found.sweet_spot, found.breakdown) == (None, None, None)
    assert found.why.startswith("One seed only")


def test_what_breaks_before_it_styles_has_a_breakdown_and_no_sweet_spot() -> None:
    found = decide(STRENGTHS, curves([0, 0.1, 0.1, 0.2, 9, 9, 9, 9, 9], [1, 1, 1, 1, 0.2, 0, 0, 0, 0]), 0.3, seeds=4)
    assert (found.onset, found.sweet_spot, found.breakdown) == (None, None, 2.0)
    assert found.why == "It breaks at 2 (prompt surely falls) before it styles: no strength works."
    assert found.next == "0-2 (+0.125)"


@pytest.mark.parametrize(
    ("measure", "held", "fallen", "said"),
    [("composition", 0.9, 0.1, "falls"), ("saturation", 0.01, 0.4, "rises"), ("detail", 1.0, 0.1, "falls"), ("detail", 1.0, 5.0, "rises")],
)
def test_each_measure_can_break(measure: str, held: float, fallen: float, said: str) -> None:
    found = decide(STRENGTHS, curves(PLATEAU, noise=0.01, **{measure: [held] * 6 + [fallen] * 3}), 0.3, seeds=4)
    assert found.breakdown == 3.0
    assert f"from 3 on {measure} surely {said}" in found.why
    assert found.sweet_spot == (1.5, 2.5)


def test_one_bad_strength_is_no_breakdown() -> None:
    found = decide(STRENGTHS, curves(PLATEAU, [1, 1, 1, 1, 0.5, 1, 1, 1, 1]), 0.3, seeds=4)
    assert found.breakdown is None


def test_references_decide_instead_of_the_effect() -> None:
    near = [0.2, 0.2, 0.2, 0.2, 0.25, 0.5, 0.6, 0.6, 0.6]
    found = decide(STRENGTHS, curves(PLATEAU, noise=0.01, style=near), 0.3, seeds=4)
    assert found.sweet_spot == (2.5, 4.0)
    away = decide(STRENGTHS, curves(PLATEAU, noise=0.01, style=[0.5, 0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.2]), 0.3, seeds=4)
    assert away.sweet_spot is None
    assert "do not come nearer to the references" in away.why


def test_few_pictures_that_disagree_are_not_sure() -> None:
    """The same means over four pictures that differ much: no onset where the interval reaches the floor."""
    effect = np.array([[0, 0, 0, 0], [0, 0, 0, 2.0], [0, 0, 0, 2.4], [1, 2, 2, 3]])
    found = decide([0, 1, 2, 3], {"effect": effect, "prompt": np.ones((4, 4))}, 0.3, seeds=2)
    assert found.onset == 3


def test_what_was_not_measured_is_left_out() -> None:
    unread = curves(PLATEAU)
    unread["prompt"][:, :4] = np.nan
    assert decide(STRENGTHS, unread, 0.3, seeds=4).sweet_spot == (1.5, 4.0)
    del unread["prompt"]
    assert decide(STRENGTHS, unread, 0.3, seeds=4).sweet_spot == (1.5, 4.0)


def test_strengths_below_zero_are_read_downwards() -> None:
    mirrored = [-s for s in reversed(STRENGTHS)]
    turned = {name: curve[::-1] for name, curve in curves(PLATEAU, [1, 1, 1, 1, 1, 1, 0.9, 0.4, 0.1]).items()}
    found = decide(mirrored, turned, 0.3, seeds=4)
    assert (found.onset, found.sweet_spot, found.breakdown, found.recommended) == (-1.0, (-3.0, -1.5), -3.5, -2.25)


@pytest.mark.parametrize("strengths", [[0, 1, 4], [0, 1, 2, 5]])
def test_a_coarse_range_that_still_rises_is_said_to(strengths: list[float]) -> None:
    effect = np.repeat(np.array(strengths, float)[:, None], 8, 1)
    found = decide(strengths, {"effect": effect, "prompt": np.ones_like(effect)}, 0.3, seeds=4)
    assert found.sweet_spot is None
    assert found.why.startswith(f"Still rising at {strengths[-1]}")


def test_what_holds_but_comes_no_nearer_is_not_called_broken() -> None:
    composition = [0.9] * 5 + [0.1] * 4
    found = decide(STRENGTHS, curves(PLATEAU, noise=0.01, composition=composition, style=[0.2] * 9), 0.3, seeds=4)
    assert (found.sweet_spot, found.breakdown) == (None, 2.5)
    assert found.why == "The pictures change from 1 on, but they do not come nearer to the references before composition surely falls at 2.5."


def test_an_end_that_was_not_seen_has_no_interval() -> None:
    assert "sweet_spot_high" not in decide(STRENGTHS, curves(PLATEAU), 0.3, seeds=4).intervals


def test_what_may_not_hold_is_neither_breakdown_nor_proof() -> None:
    """Half of the pictures fall apart from 2 on: the mean fails, not surely."""
    held = curves(PLATEAU, noise=0.01)
    held["composition"][4:, :9] = 0.0
    held["composition"][4:, 9:] = 0.75
    found = decide(STRENGTHS, held, 0.3, seeds=4)
    assert (found.sweet_spot, found.breakdown) == ((1.5, 1.5), None)
    assert "beyond 1.5 it may not hold, more seeds would tell" in found.why


def test_three_pictures_a_strength_are_too_few() -> None:
    few = {name: curve[:, :3] for name, curve in curves(PLATEAU).items()}
    found = decide(STRENGTHS, few, 0.3, seeds=3)
    assert found.sweet_spot is None
    assert found.why.startswith("3 pictures a strength are too few")


def test_what_is_offered_next_is_allowed() -> None:
    fine = [i * 0.05 for i in range(61)]
    effect = np.repeat(np.array(fine)[:, None], 8, 1)
    found = decide(fine, {"effect": effect}, 0.3, seeds=4)
    assert found.next is not None
    assert len(grid.strengths(found.next)) <= 64
    down = decide([-s for s in reversed(STRENGTHS)], curves([0.0] * 9), 0.3, seeds=4)
    assert down.next == "-5-0 (+0.5)"
    assert min(grid.strengths(down.next)) == -5
