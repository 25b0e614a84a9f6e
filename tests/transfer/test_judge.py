"""Verdicts on made-up curves."""

import numpy as np
import pytest

from core.transfer.judge import HomeBaseline, evaluate_claim, find_crossing, judge_pair

STRENGTHS = [0.0, 0.5, 1.0, 1.5, 2.0]
SPREAD = np.linspace(-0.1, 0.1, 6)


def make_curve(*means: float) -> np.ndarray:
    """Return a curve of six images per strength around each mean, (strengths, images)."""
    return np.array([mean * (1 + SPREAD) for mean in means])


def make_measurements(
    effect: np.ndarray, style: np.ndarray | None = None, prompt: float = 1.0
) -> dict[str, np.ndarray]:
    whole = np.ones_like(effect)
    style = np.full_like(effect, np.nan) if style is None else style
    return {
        "effect": effect,
        "style": style,
        "composition": whole,
        "prompt": prompt * whole,
        "detail": whole,
        "saturation": 0 * whole,
    }


HOME = HomeBaseline(strength=1.0, effect=make_curve(2.0)[0], gain=make_curve(0.5)[0])
NO_STYLE = HomeBaseline(strength=1.0, effect=make_curve(2.0)[0], gain=np.full(6, np.nan))


def test_at_home_it_is_full_and_needs_what_it_needs() -> None:
    found = judge_pair(
        STRENGTHS,
        make_measurements(make_curve(0, 1, 2, 2.5, 2.8), make_curve(0, 0.25, 0.5, 0.55, 0.6)),
        0.1,
        3,
        HOME,
    )
    assert (found.verdict, found.needs_times) == ("full", 1.0)
    assert found.needs_interval == (1.0, 1.0), "the pictures are the home's own"


def test_half_as_strong_needs_twice_the_strength() -> None:
    found = judge_pair(STRENGTHS, make_measurements(make_curve(0, 0.5, 1, 1.5, 2)), 0.1, 3, NO_STYLE)
    assert found.verdict == "full"
    assert found.needs_times == pytest.approx(2.0)


@pytest.mark.parametrize(("end", "verdict"), [(0.45, "full"), (0.3, "partial"), (0.1, "none")])
def test_the_share_of_the_style_decides(end: float, verdict: str) -> None:
    found = judge_pair(
        STRENGTHS,
        make_measurements(make_curve(0, 0.5, 1, 1.5, 1.9), make_curve(0, end / 4, end / 2, end / 1.5, end)),
        0.1,
        3,
        HOME,
    )
    assert found.verdict == verdict
    assert found.share == pytest.approx(end / 0.5)
    assert found.needs_times is None, "2.0 was not reached"
    assert "not reached up to 2" in found.why


def test_what_changes_nothing_is_none() -> None:
    found = judge_pair(STRENGTHS, make_measurements(make_curve(0, 0.01, 0.02, 0.03, 0.04)), 0.1, 3, HOME)
    assert (found.verdict, found.share) == ("none", None)
    assert found.why == "No strength up to 2 changes the images significantly (noise floor 0.10 seed units)."


def test_what_breaks_first_is_none() -> None:
    found = judge_pair(STRENGTHS, make_measurements(make_curve(0, 1, 2, 3, 4), prompt=0.5), 0.1, 3, HOME)
    assert found.verdict == "none"
    assert "do not hold" in found.why


def test_without_a_home_nothing_is_claimed() -> None:
    found = judge_pair(STRENGTHS, make_measurements(make_curve(0, 1, 2, 3, 4)), 0.1, 3, None)
    assert (found.verdict, found.needs_times, found.share) == (None, None, None)
    assert "not known" in found.why


def test_one_seed_is_refused_a_verdict() -> None:
    assert judge_pair(STRENGTHS, make_measurements(make_curve(0, 1, 2, 3, 4)), 0.1, 1, HOME).verdict is None


def test_a_crossing_lies_between_what_was_tried() -> None:
    assert find_crossing([0, 1, 2], np.array([0.0, 1.0, 3.0]), 2.0) == 1.5
    assert find_crossing([0, 1, 2], np.array([0.0, 1.0, 3.0]), 3.1) is None
    assert find_crossing([0, 1, 2], np.array([0.0, 1.0, 0.5]), 1.0) == 1.0


def test_a_claim_is_agreed_with_opposed_or_left_open() -> None:
    high, low = make_curve(0.9)[0], make_curve(0.6)[0]
    words = ("here", "there")
    assert "agree" in evaluate_claim("It is so", "likeness", [high], [low], words).why
    assert "opposite" in evaluate_claim("It is so", "likeness", [low], [high], words).why
    assert "are inconclusive" in evaluate_claim("It is so", "likeness", [high], [high[::-1]], words).why
    assert evaluate_claim("It is so", "likeness", [], [], words).difference is None
    assert "not measured" in evaluate_claim("It is so", "likeness", [np.full(6, np.nan)], [low], words).why
