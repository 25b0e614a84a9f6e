"""Verdicts on made-up curves."""

import numpy as np
import pytest

from core.sweep.decide import decide_verdict
from core.transfer.claims import evaluate_claim
from core.transfer.judge import HomeBaseline, Judgement, find_crossing, find_home_strength, judge_pair

STRENGTHS = [0.0, 0.5, 1.0, 1.5, 2.0]
FLOORS = np.full((8, 2), 0.1)
PROMPTS = np.linspace(-0.1, 0.1, 8)[:, None] + np.array([-0.02, 0.02])
"""How the images of 8 prompts x 2 seeds differ, as a share."""
Curves = dict[str, np.ndarray]


def make_curve(*means: float, spread: np.ndarray = PROMPTS) -> np.ndarray:
    """Return a curve around each mean, (strengths, 8, 2)."""
    return np.array([mean * (1 + spread) for mean in means])


def make_measurements(effect: np.ndarray, style: np.ndarray | None = None, prompt: float = 1.0) -> Curves:
    """Return what was measured; at the last strength, the share `prompt` of the prompt is still read."""
    whole = np.ones_like(effect)
    read = whole.copy()
    read[-1] = prompt
    style = np.full_like(effect, np.nan) if style is None else style
    return {
        "effect": effect,
        "style": style,
        "composition": whole,
        "prompt": read,
        "detail": whole,
        "saturation": 0 * whole,
    }


HOME = HomeBaseline(strength=1.0, effect=make_curve(2.0)[0], gain=make_curve(0.5)[0])
NO_STYLE = HomeBaseline(strength=1.0, effect=make_curve(2.0)[0], gain=np.full((8, 2), np.nan))


def judge(curves: Curves, home: HomeBaseline | str = HOME, strengths: list[float] = STRENGTHS) -> Judgement:
    used = {name: curve for name, curve in curves.items() if name != "style"}
    floors = FLOORS[: curves["effect"].shape[1], : curves["effect"].shape[2]]
    return judge_pair(strengths, curves, decide_verdict(strengths, used, floors), home)


def test_at_home_it_is_full_and_needs_what_it_needs() -> None:
    found = judge(make_measurements(make_curve(0, 1, 2, 2.5, 2.8), make_curve(0, 0.25, 0.5, 0.55, 0.6)))
    assert (found.verdict, found.share, found.share_interval, found.strength) == ("full", 1, (1, 1), 1)
    assert found.needs_times == pytest.approx(1.0, abs=1e-3)
    assert found.needs_interval == pytest.approx((1.0, 1.0), abs=1e-3), "the pictures are the home's own"
    assert (found.lacks, found.further) == (None, ())


def test_half_as_strong_needs_twice_the_strength() -> None:
    found = judge(make_measurements(make_curve(0, 0.5, 1, 1.5, 2)), NO_STYLE)
    assert found.verdict == "full"
    assert found.needs_times == pytest.approx(2.0, abs=0.01)


def test_a_range_that_ends_too_early_goes_on_instead_of_saying_none() -> None:
    found = judge(make_measurements(make_curve(0, 0.1, 0.2, 0.3, 0.4)), NO_STYLE)
    assert (found.verdict, found.share) == (None, pytest.approx(0.2))
    assert found.further == (2.8, 4.0)
    assert "the images change 20 % of what they change at home, up to 2" in found.why
    assert "try more strength" in (found.lacks or "")
    end = judge(make_measurements(make_curve(0, 0.3, 0.6)), NO_STYLE, [0.0, 2.5, 5.0])
    assert (end.verdict, end.further) == (None, ()), "5 is the most that is allowed"


@pytest.mark.parametrize(("end", "verdict"), [(0.45, "full"), (0.3, "partial"), (0.1, "none")])
def test_the_share_of_the_style_decides(end: float, verdict: str) -> None:
    style = make_curve(0, end / 4, end / 2, end / 1.5, end)
    found = judge(make_measurements(make_curve(0, 0.5, 1, 1.5, 2.1), style))
    assert (found.verdict, found.share) == (verdict, pytest.approx(end / 0.5))
    assert found.lacks is None


def test_an_interval_that_holds_two_words_says_the_least_and_what_it_lacks() -> None:
    other = PROMPTS[::-1] * 4  # a prompt that shows much at home shows little here
    style = make_curve(0, 0.1, 0.2, 0.3, 0.43, spread=other)
    found = judge(make_measurements(make_curve(0, 0.5, 1, 1.5, 2.1), style))
    assert found.share is not None
    assert found.share > 0.8, "the mean alone would be full"
    low, high = found.share_interval or (0, 0)
    assert low < 0.8 < high
    assert found.verdict == "at least partial"
    assert "more prompts would tell whether fully (8 were used)" in (found.lacks or "")


def test_what_changes_nothing_is_none_once_every_strength_was_tried() -> None:
    curves = make_measurements(make_curve(0, 0.01, 0.02, 0.03, 0.04))
    found = judge(curves)
    assert (found.verdict, found.further) == (None, (2.8, 4.0))
    found = judge(curves, "It has no home.", [0.0, 1.0, 2.0, 4.0, 5.0])
    assert (found.verdict, found.share) == ("none", None)
    assert found.why == "Nothing changes up to 5 (noise floor 0.10 seed units)."


def test_only_what_it_adds_before_it_breaks_counts() -> None:
    style = make_curve(0, 0.01, 0.02, 0.03, 0.5)
    found = judge(make_measurements(make_curve(0, 0.2, 0.4, 0.6, 4), style, prompt=0.5))
    assert (found.verdict, found.share) == ("none", pytest.approx(0.06))
    assert found.why.startswith("Up to 1.5, while everything holds, it adds 6 % ")
    assert found.why.endswith("it breaks by 2, where prompt falls.")
    assert found.further == (1.732,), "it may add more just before it breaks; more strength would not mend it"


def test_between_what_holds_and_what_breaks_a_finer_step_is_tried() -> None:
    curves = make_measurements(make_curve(0, 1, 4), make_curve(0, 0.2, 0.6), prompt=0.5)
    found = judge(curves, strengths=[0.0, 0.5, 1.0])
    assert (found.verdict, found.further) == ("partial", (0.707,)), "it may work fully there"
    near = judge(curves, strengths=[0.0, 0.5, 0.6])
    assert (near.verdict, near.further) == ("partial", ()), "what is closer looks the same"


def test_a_range_that_begins_too_strong_is_tried_further_down() -> None:
    found = judge(make_measurements(make_curve(0, 3, 4, 5, 6)), NO_STYLE)
    assert 0.25 in found.further


def test_negative_strengths_are_judged_like_positive_ones() -> None:
    curves = make_measurements(make_curve(0, 0.5, 1, 1.5, 2))
    turned = {name: curve[::-1] for name, curve in curves.items()}
    home = HomeBaseline(strength=-1.0, effect=NO_STYLE.effect, gain=NO_STYLE.gain)
    found = judge(turned, home, [-2.0, -1.5, -1.0, -0.5, 0.0])
    assert (found.verdict, found.strength) == ("full", -2.0)
    assert found.needs_times == pytest.approx(2.0, abs=0.01)
    weak = {name: curve[::-1] for name, curve in make_measurements(make_curve(0, 0.2, 0.3, 0.4, 0.5)).items()}
    assert judge(weak, home, [-2.0, -1.5, -1.0, -0.5, 0.0]).further == (-4.0, -2.8)


def test_without_a_home_nothing_is_claimed() -> None:
    found = judge(make_measurements(make_curve(0, 1, 2, 3, 4)), "Its home model is not known.")
    assert (found.verdict, found.needs_times, found.share) == (None, None, None)
    assert found.why == found.lacks == "Its home model is not known."


@pytest.mark.parametrize(("prompts", "seeds"), [(3, 2), (8, 1)])
def test_too_few_images_are_refused_a_verdict(prompts: int, seeds: int) -> None:
    curves = make_measurements(make_curve(0, 1, 2, 3, 4, spread=PROMPTS[:prompts, :seeds]))
    found = judge(curves)
    assert found.verdict is None
    assert found.lacks or "2 seeds" in found.why


def find_home(*effect: float, prompt: float = 1.0) -> tuple[float | None, list[float]]:
    curves = make_measurements(make_curve(*effect), prompt=prompt)
    del curves["style"]
    strengths = STRENGTHS[: len(effect)]
    return find_home_strength(strengths, curves, decide_verdict(strengths, curves, FLOORS))


def test_a_home_that_still_rises_is_measured_further() -> None:
    assert find_home(0, 1, 2, 3, 4) == (None, [2.8, 4.0])
    assert find_home(0, 1) == (None, [0.25, 1.0]), "a single strength is no curve"


def test_a_home_that_breaks_has_its_strength_before() -> None:
    assert find_home(0, 1, 2, 3, 4, prompt=0.5) == (1.5, [])
    strength, further = find_home(0, 3, 4, prompt=0.5)
    assert (strength, further) == (0.5, [0.25]), "the first strength tried may be more than it needs"


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
    assert (
        "not measured" in evaluate_claim("It is so", "likeness", [np.full((8, 2), np.nan)], [low], words).why
    )
