"""Decisions on made-up curves: what is there is found, what was not measured is not named."""

import numpy as np
import pytest

from core.sweep import plan
from core.sweep.decide import decide_verdict

STRENGTHS = [i * 0.5 for i in range(9)]  # 0 to 4
PICTURE_COUNT = 16


def make_curves(
    effect: list[float], prompt: list[float] | None = None, noise: float = 0.05, **others: list[float]
) -> dict[str, np.ndarray]:
    """Return curves with these means at `STRENGTHS`, each (strengths, pictures).

    The small differences between pictures are the same at each strength.
    """
    rng = np.random.default_rng(1)
    spread = rng.normal(0, noise, PICTURE_COUNT)
    named = {
        "effect": effect,
        "prompt": prompt or [1.0] * len(effect),
        "composition": [0.9] * len(effect),
        **others,
    }
    return {name: np.array(values, float)[:, None] + spread[None] for name, values in named.items()}


PLATEAU = [0, 0.1, 0.5, 1.5, 2.0, 2.1, 2.1, 2.2, 2.3]


def test_a_plateau_that_breaks_has_all_three() -> None:
    found = decide_verdict(
        STRENGTHS, make_curves(PLATEAU, [1, 1, 1, 1, 1, 1, 0.9, 0.4, 0.1]), 0.3, seed_count=4
    )
    assert (found.onset, found.sweet_spot, found.breakdown, found.recommended) == (1.0, (1.5, 3.0), 3.5, 2.25)
    assert found.confidence > 0.9
    assert (
        found.why == "Works from 1.5 to 3, best around 2.25. Visible from 1; "
        "from 3.5 on, the prompt score drops significantly."
    )
    assert found.intervals["breakdown"] == (3.5, 3.5)


def test_a_plateau_without_a_breakdown() -> None:
    found = decide_verdict(STRENGTHS, make_curves(PLATEAU), 0.3, seed_count=4)
    assert (found.onset, found.sweet_spot, found.breakdown) == (1.0, (1.5, 4.0), None)
    assert "no breakdown up to 4" in found.why
    shorter = decide_verdict(
        STRENGTHS[:-1], {name: curve[:-1] for name, curve in make_curves(PLATEAU).items()}, 0.3, seed_count=4
    )
    assert (found.recommended, shorter.recommended) == (2.5, 2.0), (
        "a step at most, whereas the middle moves with the range"
    )
    assert "breakdown" not in found.intervals


def test_a_curve_still_rising_has_no_sweet_spot_and_a_next_run() -> None:
    found = decide_verdict(STRENGTHS, make_curves([0.5 * i for i in range(9)]), 0.3, seed_count=4)
    assert (found.sweet_spot, found.recommended, found.breakdown) == (None, None, None)
    assert found.why == "No sweet spot yet: the effect is still growing at 4. Extend the range."
    assert found.next == "0-5 (+0.5)"
    assert set(found.intervals) == {"onset"}, "no interval for what is not claimed"


def test_a_flat_curve_has_nothing() -> None:
    found = decide_verdict(STRENGTHS, make_curves([0.0] + [0.05] * 8), 0.3, seed_count=4)
    assert (found.onset, found.sweet_spot, found.breakdown) == (None, None, None)
    assert found.why.startswith("No clear effect up to 4 (noise floor 0.30 seed units)")


def test_one_seed_has_nothing() -> None:
    found = decide_verdict(STRENGTHS, make_curves(PLATEAU), 0.3, seed_count=1)
    assert (found.onset, found.sweet_spot, found.breakdown) == (None, None, None)
    assert found.why.startswith("Needs at least 2 seeds")


def test_what_breaks_before_it_styles_has_a_breakdown_and_no_sweet_spot() -> None:
    found = decide_verdict(
        STRENGTHS,
        make_curves([0, 0.1, 0.1, 0.2, 9, 9, 9, 9, 9], [1, 1, 1, 1, 0.2, 0, 0, 0, 0]),
        0.3,
        seed_count=4,
    )
    assert (found.onset, found.sweet_spot, found.breakdown) == (None, None, 2.0)
    assert (
        found.why
        == "Breaks at 2 (the prompt score drops significantly) before the style appears. No strength works."
    )
    assert found.next == "0-2 (+0.125)"


@pytest.mark.parametrize(
    ("measure", "held", "fallen", "said"),
    [
        ("composition", 0.9, 0.1, "drops"),
        ("saturation", 0.01, 0.4, "rises"),
        ("detail", 1.0, 0.1, "drops"),
        ("detail", 1.0, 5.0, "rises"),
    ],
)
def test_each_measure_can_break(measure: str, held: float, fallen: float, said: str) -> None:
    found = decide_verdict(
        STRENGTHS, make_curves(PLATEAU, noise=0.01, **{measure: [held] * 6 + [fallen] * 3}), 0.3, seed_count=4
    )
    assert found.breakdown == 3.0
    assert f"from 3 on, the {measure} score {said} significantly" in found.why
    assert found.sweet_spot == (1.5, 2.5)


def test_one_bad_strength_is_no_breakdown() -> None:
    found = decide_verdict(STRENGTHS, make_curves(PLATEAU, [1, 1, 1, 1, 0.5, 1, 1, 1, 1]), 0.3, seed_count=4)
    assert found.breakdown is None


def test_references_decide_instead_of_the_effect() -> None:
    near = [0.2, 0.2, 0.2, 0.2, 0.25, 0.5, 0.6, 0.6, 0.6]
    found = decide_verdict(STRENGTHS, make_curves(PLATEAU, noise=0.01, style=near), 0.3, seed_count=4)
    assert found.sweet_spot == (2.5, 4.0)
    away = decide_verdict(
        STRENGTHS,
        make_curves(PLATEAU, noise=0.01, style=[0.5, 0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.2]),
        0.3,
        seed_count=4,
    )
    assert away.sweet_spot is None
    assert "do not get closer to the references" in away.why


def test_few_pictures_that_disagree_are_not_sure() -> None:
    """Four pictures with the same means but a large spread give no certain onset.

    There is none while the interval reaches the floor.
    """
    effect = np.array([[0, 0, 0, 0], [0, 0, 0, 2.0], [0, 0, 0, 2.4], [1, 2, 2, 3]])
    found = decide_verdict([0, 1, 2, 3], {"effect": effect, "prompt": np.ones((4, 4))}, 0.3, seed_count=2)
    assert found.onset == 3


def test_what_was_not_measured_is_left_out() -> None:
    unread = make_curves(PLATEAU)
    unread["prompt"][:, :4] = np.nan
    assert decide_verdict(STRENGTHS, unread, 0.3, seed_count=4).sweet_spot == (1.5, 4.0)
    del unread["prompt"]
    assert decide_verdict(STRENGTHS, unread, 0.3, seed_count=4).sweet_spot == (1.5, 4.0)


def test_strengths_below_zero_are_read_downwards() -> None:
    mirrored = [-s for s in reversed(STRENGTHS)]
    turned = {
        name: curve[::-1] for name, curve in make_curves(PLATEAU, [1, 1, 1, 1, 1, 1, 0.9, 0.4, 0.1]).items()
    }
    found = decide_verdict(mirrored, turned, 0.3, seed_count=4)
    assert (found.onset, found.sweet_spot, found.breakdown, found.recommended) == (
        -1.0,
        (-3.0, -1.5),
        -3.5,
        -2.25,
    )


@pytest.mark.parametrize("strengths", [[0, 1, 4], [0, 1, 2, 5]])
def test_a_coarse_range_that_still_rises_is_said_to(strengths: list[float]) -> None:
    effect = np.repeat(np.array(strengths, float)[:, None], 8, 1)
    found = decide_verdict(strengths, {"effect": effect, "prompt": np.ones_like(effect)}, 0.3, seed_count=4)
    assert found.sweet_spot is None
    assert found.why.startswith(f"No sweet spot yet: the effect is still growing at {strengths[-1]}")


def test_what_holds_but_comes_no_nearer_is_not_called_broken() -> None:
    composition = [0.9] * 5 + [0.1] * 4
    found = decide_verdict(
        STRENGTHS,
        make_curves(PLATEAU, noise=0.01, composition=composition, style=[0.2] * 9),
        0.3,
        seed_count=4,
    )
    assert (found.sweet_spot, found.breakdown) == (None, 2.5)
    assert (
        found.why == "The images change from 1 on, but do not get closer to the references "
        "before the composition score drops significantly at 2.5."
    )


def test_an_end_that_was_not_seen_has_no_interval() -> None:
    assert (
        "sweet_spot_high" not in decide_verdict(STRENGTHS, make_curves(PLATEAU), 0.3, seed_count=4).intervals
    )


def test_what_may_not_hold_is_neither_breakdown_nor_proof() -> None:
    """Half of the pictures fall apart from 2 on: the mean fails, but not for certain."""
    held = make_curves(PLATEAU, noise=0.01)
    held["composition"][4:, :9] = 0.0
    held["composition"][4:, 9:] = 0.75
    found = decide_verdict(STRENGTHS, held, 0.3, seed_count=4)
    assert (found.sweet_spot, found.breakdown) == ((1.5, 1.5), None)
    assert "beyond 1.5 it is unclear, and more seeds would help" in found.why


def test_three_pictures_a_strength_are_too_few() -> None:
    few = {name: curve[:, :3] for name, curve in make_curves(PLATEAU).items()}
    found = decide_verdict(STRENGTHS, few, 0.3, seed_count=3)
    assert found.sweet_spot is None
    assert found.why.startswith("3 images per strength are too few")


def test_what_is_offered_next_is_allowed() -> None:
    fine = [i * 0.05 for i in range(61)]
    effect = np.repeat(np.array(fine)[:, None], 8, 1)
    found = decide_verdict(fine, {"effect": effect}, 0.3, seed_count=4)
    assert found.next is not None
    assert len(plan.parse_strengths(found.next)) <= 64
    down = decide_verdict([-s for s in reversed(STRENGTHS)], make_curves([0.0] * 9), 0.3, seed_count=4)
    assert down.next == "-5-0 (+0.5)"
    assert min(plan.parse_strengths(down.next)) == -5
