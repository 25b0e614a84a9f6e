"""What a LoRA is: planted changes are told as they are, and chance is told as nothing."""

import numpy as np
import pytest

from core.models.measured_strengths import find_strength
from core.sweep.character import describe_character, find_words, format_character
from core.sweep.report import build_sweep_report
from core.sweep.study import SweepStudy
from tabs.sweep.results import format_answer
from tests.sweep.conftest import EXAMPLE

WIDTH = 100


def draw_shifts(rng: np.random.Generator, prompts: int, seeds: int, common: float, own: float) -> np.ndarray:
    """Return shifts, (prompts, seeds, width): noise, and a common one whose length differs by prompt."""
    stronger = np.exp(0.3 * rng.standard_normal((prompts, 1, 1)))
    shifts = own * rng.standard_normal((prompts, seeds, WIDTH)) / np.sqrt(WIDTH)
    shifts[..., :1] += common * stronger
    return shifts


def draw_scores(rng: np.random.Generator, prompts: int, seeds: int, tags: int) -> np.ndarray:
    """Return probabilities (prompts, seeds, tags) that depend on the prompt more than on the seed."""
    logit = 3 * rng.standard_normal((prompts, 1, tags)) + rng.standard_normal((prompts, seeds, tags))
    return 1 / (1 + np.exp(-logit))


def test_one_that_always_moves_the_same_way_is_consistent() -> None:
    found = describe_character(2.0, draw_shifts(np.random.default_rng(0), 8, 2, common=1.5, own=0.1))
    assert found.action == pytest.approx(1.5, rel=0.3)
    assert found.consistency > 0.98
    low, high = found.intervals["consistency"]
    assert 0.9 < low <= found.consistency <= high <= 1


def test_one_that_moves_anywhere_is_not() -> None:
    found = describe_character(2.0, draw_shifts(np.random.default_rng(0), 8, 4, common=0, own=1.5))
    assert found.action == pytest.approx(1.5, rel=0.1)
    low, high = found.intervals["consistency"]
    assert low < 0 < high
    assert -0.1 < low < found.consistency < high < 0.1


def test_one_that_does_nothing_has_no_direction() -> None:
    found = describe_character(2.0, np.zeros((4, 2, WIDTH)))
    assert (found.action, found.consistency) == (0, 0)
    assert found.intervals == {"action": (0, 0), "consistency": (0, 0)}


@pytest.mark.parametrize(("prompts", "seeds"), [(4, 4), (8, 2)])
def test_intervals_hold_what_endless_prompts_would_say(prompts: int, seeds: int) -> None:
    """A narrower interval would say of two LoRAs that they differ where only their prompts did."""
    rng = np.random.default_rng(1)
    many = describe_character(2.0, draw_shifts(rng, 2000, 2, common=1, own=1))
    held = {"action": 0, "consistency": 0}
    for _ in range(150):
        found = describe_character(2.0, draw_shifts(rng, prompts, seeds, common=1, own=1))
        for name, (low, high) in found.intervals.items():
            held[name] += low <= getattr(many, name) <= high
    assert min(held.values()) >= 0.92 * 150, held


def test_what_rises_and_falls_is_named_with_an_interval() -> None:
    rng = np.random.default_rng(2)
    at_zero = draw_scores(rng, 8, 2, tags=50)
    at_zero[..., :2] = (0.1, 0.9)
    at_strength = np.clip(at_zero + 0.02 * rng.standard_normal(at_zero.shape), 0, 1)
    at_strength[..., :2] = np.clip((0.7, 0.4) + 0.1 * rng.standard_normal((8, 2, 2)), 0, 1)
    rising, falling = find_words([f"tag {i}" for i in range(50)], at_zero, at_strength)
    assert (rising.tag, falling.tag) == ("tag 0", "tag 1")
    assert 0 < rising.low < 0.6 < rising.high < 1
    assert -1 < falling.low < -0.5 < falling.high < 0


@pytest.mark.parametrize(("prompts", "seeds"), [(4, 2), (8, 2)])
def test_chance_is_no_direction(prompts: int, seeds: int) -> None:
    """Of 60 tags, each with an interval of its own, three would rise or fall by chance in every sweep."""
    rng, claimed = np.random.default_rng(3), 0
    for _ in range(200):
        scores = [draw_scores(rng, prompts, seeds, tags=60) for _ in range(2)]
        claimed += bool(find_words([f"tag {i}" for i in range(60)], *scores))
    assert claimed <= 0.05 * 200


def test_a_tag_that_nobody_reads_is_not_named() -> None:
    at_zero, at_strength = np.full((8, 2, 1), 0.01), np.full((8, 2, 1), 0.3)
    assert find_words(["hat"], at_zero, at_strength) == ()
    assert find_words(["hat"], at_zero, at_strength + 0.3) != ()


def test_few_prompts_give_numbers_without_claims() -> None:
    rng = np.random.default_rng(4)
    scores = np.zeros((3, 2, 1)), np.ones((3, 2, 1))
    found = describe_character(2.0, draw_shifts(rng, 3, 2, common=1, own=1), ["hat"], *scores)
    assert found.action > 0
    assert (found.intervals, found.words) == ({}, None)
    assert found.why == "Intervals and words need at least 4 prompts."


def test_the_example_is_described_where_it_is_used(study: SweepStudy) -> None:
    """The report, the page and the library say the same of it, at a strength that was tried."""
    report, kept = build_sweep_report(study), find_strength(EXAMPLE, "nano")
    character = report["character"]
    assert character["strength"] in study.strengths
    assert abs(character["strength"] - report["recommended"]) <= 0.25
    assert 1 < character["action"] < 10, "it changes more than another seed does"
    assert 0.2 < character["consistency"] < 1, "it paints in one manner, whatever it paints"
    assert kept
    assert (kept.action, kept.consistency) == (character["action"], character["consistency"])
    assert f"Consistency {character['consistency']:.2g}" in format_answer(report)
    assert study.gauge is not None
    girl = study.gauge.tags.index("1girl")
    assert study.columns[0.0].tag_scores[:, girl].min() > 0.5, "names belong to scores"


def test_without_a_recommended_strength_nothing_is_said(study: SweepStudy) -> None:
    unfinished = SweepStudy(study.plan)
    report = build_sweep_report(unfinished)
    assert report["character"] is None
    assert report["unmeasured"]["character"].startswith("No strength is recommended")
    assert "What it is" not in format_answer(report)


def test_the_sentence_names_numbers_words_and_what_is_missing() -> None:
    word = {"tag": "airbrush", "change": 0.62, "low": 0.4, "high": 0.8}
    found = {
        "strength": 2.5,
        "action": 1.42,
        "consistency": 0.61,
        "intervals": {},
        "words": [word],
        "why": None,
    }
    found["intervals"] = {"action": [1.2, 1.7], "consistency": [0.5, 0.7]}
    text = format_character(found)
    assert "At 2.5 it changes how an image is painted 1.4 (1.2 to 1.7) times as much" in text
    assert "Consistency 0.61 (0.5 to 0.7)" in text
    assert text.endswith("Moves towards airbrush +0.62 (0.40 to 0.80).")
    assert format_character({**found, "words": []}).endswith("No tag surely rises or falls.")
    assert format_character({**found, "words": None, "why": "Why."}).endswith("no common one. Why.")
