"""Verdicts on made-up curves: what is surely so is said, and nothing else is."""

import numpy as np
import pytest

from core.schema import limits
from core.sweep import plan
from core.sweep.decide import decide_verdict
from core.sweep.resample import average_curve, draw_deviations
from core.sweep.verdict import Verdict
from core.sweep.words import format_headline, format_interval

STRENGTHS = [i * 0.5 for i in range(9)]  # 0 to 4
PROMPTS, SEEDS = 8, 2
PLATEAU = [0, 0.1, 0.5, 1.5, 2.0, 2.1, 2.1, 2.15, 2.2]
FALLING_PROMPT = [1, 1, 1, 1, 1, 1, 0.9, 0.3, 0.1]


def make_curves(
    effect: list[float], prompt: list[float] | None = None, noise: float = 0.05, **others: list[float]
) -> dict[str, np.ndarray]:
    """Return curves with these means at `STRENGTHS`, each (strengths, prompts, seeds).

    Prompts differ from each other more than seeds do, and by the same at each strength.
    """
    rng = np.random.default_rng(1)
    spread = rng.normal(0, noise, (PROMPTS, 1)) + rng.normal(0, noise / 4, (PROMPTS, SEEDS))
    spread -= spread.mean()
    same = np.zeros((PROMPTS, SEEDS))
    named = {
        "effect": effect,
        "prompt": prompt or [1.0] * len(effect),
        "composition": [0.9] * len(effect),
        **others,
    }
    return {
        name: np.array(values, float)[:, None, None] + (same if name == "prompt" else spread)
        for name, values in named.items()
    }


def decide(curves: dict[str, np.ndarray], floor: float = 0.3, strengths: list[float] = STRENGTHS) -> Verdict:
    return decide_verdict(strengths, curves, np.full(curves["effect"].shape[1:], floor))


def test_a_plateau_that_breaks_has_all_three() -> None:
    found = decide(make_curves(PLATEAU, FALLING_PROMPT))
    assert (found.answer, found.onset, found.breakdown) == ("changes", 1.0, 3.5)
    assert (found.sweet_spot, found.recommended) == ((1.5, 3.0), 2.0), "the strength tried next to the middle"
    assert found.confidence > 0.9
    assert found.why == (
        "Changes the images from 1.5 to 3 while everything holds; the middle is 2; visible from 1; "
        "breaks at 3.5, where prompt falls."
    )
    assert found.intervals["breakdown"] == (3.0, 3.5), "outwards to strengths that were tried"
    assert found.is_settled


def test_change_alone_is_not_called_quality() -> None:
    """A LoRA of random matrices changes images, too."""
    found = decide(make_curves(PLATEAU, FALLING_PROMPT))
    assert "Works" not in found.why
    assert found.surer is not None
    assert "reference images" in found.surer
    style = [0.2, 0.2, 0.25, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]
    held = decide(make_curves(PLATEAU, FALLING_PROMPT, noise=0.01, style=style))
    assert held.answer == "works"
    assert held.why.startswith("Works from 1.5 to 3, best at 2;")
    assert held.surer is None


def test_a_line_is_rising_and_has_no_best_strength() -> None:
    """A LoRA that only brightens has no sweet spot at the end of the range that was tried."""
    found = decide(make_curves([0.5 * i for i in range(9)]))
    assert (found.answer, found.sweet_spot, found.recommended) == ("rising", None, None)
    assert (
        found.why == "The images change from 0.5 on, and still change more and more at 4; nothing breaks yet."
    )
    assert found.next == "0-5 (+0.5)"
    assert found.intervals["breakdown"] == (4.0, None), "not before 4 is an answer"


@pytest.mark.parametrize("strengths", [[0, 1, 4], [0, 1, 2, 5]])
def test_a_coarse_range_that_still_rises_is_said_to(strengths: list[float]) -> None:
    effect = np.tile(np.array(strengths, float)[:, None, None], (1, PROMPTS, SEEDS))
    assert decide({"effect": effect}, strengths=strengths).answer == "rising"


def test_a_plateau_without_a_breakdown_needs_only_a_little() -> None:
    found = decide(make_curves(PLATEAU))
    assert (found.sweet_spot, found.breakdown, found.recommended) == ((1.5, 4.0), None, 1.5)
    assert "nothing breaks up to 4, and more strength adds little" in found.why
    assert found.intervals["sweet_spot_high"] == (4.0, None)


def test_a_flat_curve_has_nothing() -> None:
    found = decide(make_curves([0.0] + [0.05] * 8))
    assert (found.answer, found.onset, found.sweet_spot, found.breakdown) == ("no change", None, None, None)
    assert found.why == "Nothing changes up to 4 (noise floor 0.30 seed units)."


def test_one_seed_has_nothing() -> None:
    curves = {name: curve[:, :, :1] for name, curve in make_curves(PLATEAU).items()}
    found = decide(curves)
    assert found.answer == "too little"
    assert found.why.startswith("Needs at least 2 seeds")


@pytest.mark.parametrize("prompts", [1, 3])
def test_few_prompts_get_a_provisional_answer(prompts: int) -> None:
    """Any 4 of 12 prompts put one LoRA's breakdown anywhere from 1.5 to 4: fewer tell next to nothing."""
    curves = {name: curve[:, :prompts] for name, curve in make_curves(PLATEAU, FALLING_PROMPT).items()}
    found = decide(curves)
    assert (found.answer, found.sweet_spot, found.recommended) == ("provisional", None, None)
    assert found.why.startswith("Provisional: ")
    assert "most of the change from 1.5 to 3" in found.why
    assert not found.is_settled


def test_what_breaks_before_it_changes_has_a_breakdown_and_no_sweet_spot() -> None:
    found = decide(make_curves([0, 0.1, 0.1, 0.2, 9, 9, 9, 9, 9], [1, 1, 1, 1, 0.2, 0, 0, 0, 0]))
    assert (found.answer, found.sweet_spot, found.breakdown) == ("breaks", None, 2.0)
    assert found.why.startswith("Breaks at 2, where prompt falls, before a sweet spot is sure")
    assert found.next == "0-2 (+0.125)"


@pytest.mark.parametrize(
    ("measure", "held", "lost", "said"),
    [
        ("composition", 0.9, 0.1, "falls"),
        ("saturation", 0.01, 0.4, "rises"),
        ("detail", 1.0, 0.1, "falls"),
        ("detail", 1.0, 5.0, "rises"),
    ],
)
def test_each_measure_can_break(measure: str, held: float, lost: float, said: str) -> None:
    found = decide(make_curves(PLATEAU, noise=0.01, **{measure: [held] * 6 + [lost] * 3}))
    assert found.breakdown == 3.0
    assert f"breaks at 3, where {measure} {said}" in found.why
    assert found.sweet_spot == (1.5, 2.5)


def test_one_bad_strength_is_no_breakdown() -> None:
    found = decide(make_curves(PLATEAU, [1, 1, 1, 1, 0.5, 1, 1, 1, 1]))
    assert found.breakdown is None


def test_what_may_not_hold_is_neither_breakdown_nor_proof() -> None:
    """Half of the prompts fall apart from 2 on: the mean fails, but not for certain."""
    held = make_curves(PLATEAU, noise=0.01)
    held["composition"][4:, :5] = 0.0
    held["composition"][4:, 5:] = 0.75
    found = decide(held)
    assert (found.answer, found.sweet_spot, found.breakdown) == ("unclear", None, None)
    assert found.surer is not None
    assert "more than 8 prompts" in found.surer
    assert not found.is_settled, "more prompts tell"


def test_what_comes_no_nearer_has_no_gain() -> None:
    away = decide(make_curves(PLATEAU, noise=0.01, style=[0.5, 0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.2]))
    assert (away.answer, away.sweet_spot) == ("no gain", None)
    assert "do not get closer to what is wanted" in away.why
    composition = [0.9] * 5 + [0.1] * 4
    lost = decide(make_curves(PLATEAU, noise=0.01, composition=composition, style=[0.2] * 9))
    assert (lost.answer, lost.sweet_spot, lost.breakdown) == ("no gain", None, 2.5)


def test_the_tags_of_the_trigger_decide_where_there_are_no_references() -> None:
    """A content LoRA shows its tags long before its effect is greatest."""
    tags = [0.0, 0.5, 0.9, 0.95, 0.95, 0.95, 0.95, 0.95, 0.95]
    found = decide(make_curves(PLATEAU, FALLING_PROMPT, noise=0.01, trigger=tags))
    assert (found.answer, found.sweet_spot) == ("works", (1.0, 3.0))
    style = [0.2, 0.2, 0.2, 0.2, 0.2, 0.5, 0.6, 0.6, 0.6]
    nearer = decide(make_curves(PLATEAU, FALLING_PROMPT, noise=0.01, trigger=tags, style=style))
    assert nearer.sweet_spot == (2.5, 3.0)


def test_what_was_not_measured_is_left_out() -> None:
    unread = make_curves(PLATEAU)
    unread["prompt"][:, :2] = np.nan
    assert decide(unread).sweet_spot == (1.5, 4.0)
    del unread["prompt"]
    assert decide(unread).sweet_spot == (1.5, 4.0)


def test_strengths_below_zero_are_read_downwards() -> None:
    mirrored = [-s for s in reversed(STRENGTHS)]
    turned = {name: curve[::-1] for name, curve in make_curves(PLATEAU, FALLING_PROMPT).items()}
    found = decide(turned, strengths=mirrored)
    assert (found.onset, found.sweet_spot, found.breakdown, found.recommended) == (
        -1.0,
        (-3.0, -1.5),
        -3.5,
        -2.0,
    )
    assert found.intervals["breakdown"] == (-3.5, -3.0)


def test_prompts_that_differ_widen_the_interval_and_seeds_do_not() -> None:
    """Sixteen images of two prompts are not sixteen opinions."""
    far = np.linspace(-1, 1, 8)
    prompts, seeds = (np.broadcast_to(each, (1, 8, 8)) for each in (far[None, :, None], far[None, None]))
    drawn = {
        name: draw_deviations({name: curve}, np.random.default_rng(0), stretch=False)[name].std()
        for name, curve in (("prompts", prompts), ("seeds", seeds))
    }
    assert drawn["prompts"] > 2 * drawn["seeds"]


def test_a_mean_is_of_prompts_not_of_pictures() -> None:
    """A prompt with one seed that was read counts as much as one with eight."""
    curve = np.array([[[1.0, np.nan, np.nan], [3.0, 3.0, 3.0]]])
    assert average_curve(curve) == pytest.approx([2.0])


def test_no_strength_is_recommended_that_was_not_made() -> None:
    """All of the range lies between two strengths: the next run is named instead."""
    effect = [0, 0, 0, 0, 2.0, 2.0, 2.0, 2.0, 2.0]
    found = decide(make_curves(effect, [1, 1, 1, 1, 0.2, 0, 0, 0, 0], noise=0.01))
    assert found.recommended is None
    assert found.next is not None


def test_what_is_offered_next_is_allowed() -> None:
    fine = [i * 0.05 for i in range(61)]
    effect = np.tile(np.array(fine)[:, None, None], (1, PROMPTS, SEEDS))
    found = decide({"effect": effect}, strengths=fine)
    assert found.next is not None
    assert len(plan.parse_strengths(found.next)) <= 64
    down = decide(make_curves([0.0] * 9), strengths=[-s for s in reversed(STRENGTHS)])
    assert down.next == "-5-0 (+0.5)"
    assert min(plan.parse_strengths(down.next)) == -5


def test_the_headline_has_three_numbers() -> None:
    report = {"answer": "works", "sweet_spot": [2, 4], "recommended": 3, "breakdown": 4.75}
    assert format_headline(report) == "Works 2 to 4 · best 3 · breaks at 4.75"
    assert format_headline({**report, "answer": "changes", "breakdown": None}) == (
        "Changes 2 to 4 · middle 3 · no breakdown seen"
    )
    assert format_headline({**report, "sweet_spot": [3, 3]}).startswith("Works 3 · ")
    assert [format_interval(ends) for ends in ((1, 2), (2, 2), (3, None), (None, -3))] == [
        "1 to 2",
        "2",
        "3 or more",
        "-3 or less",
    ]


def test_no_gain_is_said_where_no_draw_gains() -> None:
    """It ends a sweep: a mean just below the least gain is no reason."""
    curves = make_curves(PLATEAU, noise=0.01, style=[0.2] * 3 + [0.209] * 6)
    spread = np.linspace(-0.02, 0.02, PROMPTS)[:, None]
    curves["style"] = curves["style"] + spread * np.arange(9)[:, None, None] / 8
    found = decide(curves)
    assert found.answer == "unclear"
    assert not found.is_settled


def test_what_breaks_may_have_a_sweet_spot_that_more_prompts_show() -> None:
    """Half of the prompts lose their composition early: the rest may have a range."""
    curves = make_curves(PLATEAU, noise=0.01)
    curves["composition"][3:, :5] = 0.0
    curves["prompt"][7:] = 0.0
    found = decide(curves)
    assert (found.answer, found.sweet_spot, found.is_settled) == ("breaks", None, False)
    lost_first = [1.0, 1.0, 1.0, 0.2] + [0.0] * 5
    hopeless = decide(make_curves([0, 0.1, 0.1, 0.2, 9, 9, 9, 9, 9], lost_first, noise=0.01))
    assert (hopeless.answer, hopeless.is_settled) == ("breaks", True), "nothing is there to be found"


def test_a_range_without_an_end_is_not_claimed_where_most_draws_break() -> None:
    curves = make_curves(PLATEAU, noise=0.01)
    curves["composition"][8] = np.linspace(0, 0.65, PROMPTS)[:, None]
    found = decide(curves)
    assert found.sweet_spot is None, found.why
    assert found.breakdown is None


def test_advice_can_be_followed() -> None:
    """A button that plans more images than are allowed only gives an error."""
    many = [0.057 * i for i in range(41)]
    line = {name: np.repeat(curve[:1], 41, 0) for name, curve in make_curves(PLATEAU, noise=0.01).items()}
    line["effect"] = line["effect"] + 0.5 * np.array(many)[:, None, None]
    line = {name: np.tile(curve, (1, 2, 1)) for name, curve in line.items()}
    found = decide(line, strengths=many)
    assert found.answer == "rising"
    assert found.next
    assert len(plan.parse_strengths(found.next)) * 16 * SEEDS <= limits.SWEEP_CELLS
    unsure = {name: np.tile(curve, (1, 2, 1)) for name, curve in make_curves(PLATEAU, noise=0.01).items()}
    unsure["composition"][4:, :10] = 0.0
    assert "seeds" in str(decide(unsure).surer), "16 prompts are all that a sweep takes"
