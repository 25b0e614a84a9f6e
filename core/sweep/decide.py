"""Decide from curves: what is surely so is claimed, anything else is told as unclear.

The means of other prompts and seeds are drawn (`core.sweep.resample`), and each draw has its knees
(`core.sweep.knees`). A claim needs 95 % of them. Nothing is claimed beyond the strengths that were
tried, and no strength is recommended that was not. How the method was chosen and what it holds:
docs/measuring.md and tests/bench/truth.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.schema import limits
from core.sweep import words
from core.sweep.knees import HELD_RANGES, Knees, calculate_gain, choose_gain, find_knees
from core.sweep.resample import Curve, average_curve, count_prompts, draw_deviations
from core.sweep.verdict import Answer, Interval, Verdict

LEVEL = 0.95
"""Share of the draws that a claim needs, and that an interval holds."""
LOOK_LEVELS = (LEVEL, 0.9706, 0.9779, 0.9818, 0.9842)
"""The level of each look at pictures that are still being made, by how many looks there may be.

So that all together hold `LEVEL` (Pocock, Biometrika 64, 1977).
"""
SETTLED_CONFIDENCE = 0.8
"""A sweet spot of this confidence needs no more prompts."""
MIN_PROMPTS, MIN_SEEDS = 4, 2
"""Fewer prompts give a provisional answer: nobody knows how much prompts differ. Two seeds of a prompt
are the unit of every distance."""
LEVELLING_SHARE = 0.25
"""A curve levels off if its second half surely adds less than this share of its end.

A straight line adds 0.5."""
RISING_SHARE = 0.1
"""A curve still rises if its second half surely adds more than this share of its end..."""
RARE_SHARE = 0.2
"""...and fewer than this share of the draws break."""
OFTEN_SHARE = 0.5
"""Where this share of the draws breaks, and it is not sure, nobody knows how far the gain goes."""
EQUALLY_SURE = 0.02
"""In a sweet spot without an end, strengths whose confidence is this near to the greatest are as good."""
MAX_NEXT_STRENGTHS = 30
"""Greatest number of strengths that the next run is advised to try."""


@dataclass(frozen=True, eq=False)
class _Evidence:
    """The curves over `strengths`, which rise from 0, their means, and draws of these."""

    strengths: list[float]
    sign: float
    """-1 where `strengths` are below 0 and stand here without their sign."""
    curves: Mapping[str, Curve]
    noise_floors: np.ndarray
    means: Mapping[str, np.ndarray]  # (strengths,)
    deviations: Mapping[str, np.ndarray]  # (draws, strengths)
    floor: float
    floor_draws: np.ndarray  # (draws,)
    found: Knees  # of the means, one draw
    drawn: Knees
    level: float

    @property
    def prompts(self) -> int:
        return self.noise_floors.shape[0]

    def draw_means(self) -> dict[str, np.ndarray]:
        return {name: self.means[name] + self.deviations[name] for name in self.means}


def decide_verdict(
    strengths: Sequence[float], curves: Mapping[str, Curve], noise_floors: np.ndarray, level: float = LEVEL
) -> Verdict:
    """Decide a verdict over the strengths from 0 upwards (downwards if all are at or below 0).

    `curves` has `effect`, `style` or `trigger` where they were measured, and the measures of
    `HELD_RANGES`, each (strengths, prompts, seeds); NaN marks what was not measured. `noise_floors`,
    (prompts, seeds), is the effect of what changes nothing visible. `level` is the share of draws that
    a claim needs: more than 0.95 where pictures are looked at several times while they are made.
    """
    sign = -1.0 if max(strengths) <= 0 else 1.0
    order = sorted((i for i, s in enumerate(strengths) if s * sign >= 0), key=lambda i: abs(strengths[i]))
    tried = [abs(strengths[i]) for i in order]
    _, prompts, seeds = curves["effect"].shape
    if seeds < MIN_SEEDS:
        return Verdict(answer="too little", intervals={}, why=words.ONE_SEED)
    if len(tried) < 3:
        suggestion = "0-3.5 (+0.25)" if sign > 0 else "-3.5-0 (+0.25)"
        return Verdict(
            answer="too little",
            intervals={},
            why=f"A curve needs at least two strengths {'above' if sign > 0 else 'below'} 0; "
            f"try a range such as {suggestion}.",
            next=suggestion,
        )
    # A single prompt's measure has no deviation between prompts, and so no interval.
    used = {name: curve[order] for name, curve in curves.items() if count_prompts(curve) >= min(2, prompts)}
    evidence = _gather(tried, sign, used, noise_floors, level)
    return _decide(evidence) if prompts >= MIN_PROMPTS else _describe_curves(evidence)


def _gather(
    tried: list[float], sign: float, curves: Mapping[str, Curve], noise_floors: np.ndarray, level: float
) -> _Evidence:
    """Average the curves, and draw what other prompts and seeds could have given."""
    means = {name: average_curve(curve) for name, curve in curves.items()}
    floor = float(np.mean(average_curve(noise_floors[None])))
    if noise_floors.shape[0] > 1:
        together = {**curves, "noise floor": noise_floors[None]}
        deviations = draw_deviations(together, np.random.default_rng(0), stretch=True)
        floor_draws = np.maximum(0.0, floor + deviations.pop("noise floor")[:, 0])
    else:
        deviations = {name: np.zeros((1, len(tried))) for name in curves}
        floor_draws = np.array([floor])
    draws = {name: means[name] + deviations[name] for name in means}
    return _Evidence(
        strengths=tried,
        sign=sign,
        curves=curves,
        noise_floors=noise_floors,
        means=means,
        deviations=deviations,
        floor=floor,
        floor_draws=floor_draws,
        found=find_knees(tried, {name: mean[None] for name, mean in means.items()}, np.array([floor])),
        drawn=find_knees(tried, draws, floor_draws),
        level=level,
    )


def _decide(e: _Evidence) -> Verdict:
    """Return the verdict of enough prompts and seeds."""
    found, drawn, draws = e.found, e.drawn, e.draw_means()
    most = 1 - (1 - e.level) / 2
    _, reasons = find_sure_loss(e.means, e.deviations, e.level)
    has_spot = np.mean(~np.isnan(drawn.low)) >= most and not np.isnan(found.low[0])
    is_broken = bool(reasons) and not np.isnan(found.breakdown[0])
    onset_is_sure = np.mean(~np.isnan(drawn.onset)) >= most and not np.isnan(found.onset[0])
    onset = _round_up(e, found.onset[0]) if onset_is_sure else None
    breakdown = _round_up(e, found.breakdown[0]) if is_broken else None
    breaking = float(np.mean(~np.isnan(drawn.breakdown)))
    rise = _calculate_rise(e, draws)
    intervals = _bound_knees(e, is_broken)
    spot = has_spot and (
        is_broken
        or (np.mean(~drawn.is_open) >= most and not found.is_open[0] and breaking < OFTEN_SHARE)
        or (found.is_open[0] and np.quantile(rise, e.level) < LEVELLING_SHARE and breaking < OFTEN_SHARE)
    )
    knees = {"onset": onset, "breakdown": breakdown, "intervals": intervals}
    if spot and (verdict := _claim_spot(e, reasons, knees)):
        return verdict
    answer: Answer
    wanted = choose_gain(e.means)
    has_none = bool(np.mean(np.isnan(drawn.low)) >= most)
    gains_nothing = wanted != "effect" and onset is not None and has_none
    if is_broken:
        answer = "no gain" if gains_nothing else "breaks"
    elif np.mean(draws["effect"].max(1) <= e.floor_draws) >= most:
        answer = "no change"
    elif onset is not None and np.quantile(rise, 1 - e.level) > RISING_SHARE and breaking < RARE_SHARE:
        answer = "rising"
    elif gains_nothing:
        answer = "no gain"
    else:
        answer = "unclear"
    goes_on = answer in ("no change", "rising", "unclear")
    further = (
        _extend_range(e)
        if goes_on
        else _format_range(e, breakdown or e.sign * e.strengths[-1], _find_step(e.strengths) / 4)
        if answer == "breaks"
        else None
    )
    return Verdict(
        answer=answer,
        **knees,
        why=words.explain(answer, wanted, knees, reasons, e.sign * e.strengths[-1], e.floor),
        surer=words.suggest(answer, wanted, e.prompts, further),
        next=further,
        is_settled=has_none if answer == "breaks" else answer != "unclear",
    )


def _claim_spot(e: _Evidence, reasons: str, knees: dict[str, Any]) -> Verdict | None:
    """Return the verdict of a sweet spot; `None` if no strength in it was tried."""
    found = e.found
    low, high = found.low[0], e.strengths[-1] if found.is_open[0] else found.high[0]
    inside = [strength for strength in e.strengths if low - 1e-9 <= strength <= high + 1e-9]
    if not inside:
        return None
    sure = _calculate_confidence(e, inside)
    middle = (low + high) / 2
    best = (
        min(strength for strength in inside if sure[strength] >= max(sure.values()) - EQUALLY_SURE)
        if found.is_open[0]
        else min(inside, key=lambda strength: abs(strength - middle))
    )
    ends = (e.sign * inside[0], e.sign * inside[-1])
    wanted = choose_gain(e.means)
    answer: Answer = "changes" if wanted == "effect" else "works"
    return Verdict(
        answer=answer,
        **knees,
        sweet_spot=(min(ends), max(ends)),
        recommended=e.sign * best,
        confidence=round(sure[best], 3),
        why=words.describe_spot(answer, ends, e.sign * best, knees, reasons, is_open=bool(found.is_open[0])),
        surer=words.suggest(answer, wanted, e.prompts, None),
        is_settled=sure[best] >= SETTLED_CONFIDENCE,
    )


def _describe_curves(e: _Evidence) -> Verdict:
    """Return the provisional answer of too few prompts: what the means alone show."""
    found = e.found
    low, high = found.low[0], e.strengths[-1] if found.is_open[0] else found.high[0]
    inside = [e.sign * strength for strength in e.strengths if low - 1e-9 <= strength <= high + 1e-9]
    breakdown = None if np.isnan(found.breakdown[0]) else _round_up(e, found.breakdown[0])
    return Verdict(
        answer="provisional",
        intervals={},  # so few prompts do not tell how much prompts differ
        why=words.describe_means(e.prompts, inside, breakdown),
        surer=f"Use at least {MIN_PROMPTS} prompts and {MIN_SEEDS} seeds for a verdict; 8 or more narrow it.",
    )


def find_sure_loss(
    means: Mapping[str, np.ndarray], deviations: Mapping[str, np.ndarray], level: float
) -> tuple[int | None, str]:
    """Return where something surely does not hold first, as an index of the strengths, and what, as words.

    `None` and no words if nothing breaks. `means` are (strengths,) and `deviations` (draws, strengths).

    A mean is surely out of its range if its bound on the side of the range is, simultaneously over the
    measures of a strength. One such strength after which all is well again is chance; the last one has no
    successor.
    """
    distances = {}  # how far beyond an end of its range a mean is, and how much farther back draws lie
    for name in (name for name in HELD_RANGES if name in means):
        for end, sign, word in zip(HELD_RANGES[name], (-1, 1), ("falls", "rises"), strict=True):
            if np.isfinite(end):
                spread = np.maximum(deviations[name].std(0), 1e-9)
                beyond, back = sign * (means[name] - end) / spread, -sign * deviations[name] / spread
                distances[f"{name} {word}"] = beyond, back
    if not distances:
        return None, ""
    reach = np.quantile(np.max([back for _, back in distances.values()], axis=0), level, axis=0)
    lost = {name: beyond > reach for name, (beyond, _) in distances.items()}
    out = np.any(list(lost.values()), axis=0)
    last = len(out) - 1
    first = next((i for i in range(1, last + 1) if out[i] and (i == last or out[i + 1])), None)
    return first, "" if first is None else " and ".join(name for name, at in lost.items() if at[first])


def _calculate_rise(e: _Evidence, draws: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which share of its last value each draw's gain adds in the second half of the range."""
    gain, least = calculate_gain(draws), np.maximum(e.floor_draws, 1e-9)
    if choose_gain(draws) != "effect":
        least = np.full(len(gain), 1e-3)
    half = e.strengths[-1] / 2
    before = max(i for i, strength in enumerate(e.strengths) if strength <= half)
    share = (half - e.strengths[before]) / (e.strengths[before + 1] - e.strengths[before])
    middle = gain[:, before] * (1 - share) + gain[:, before + 1] * share
    return (gain[:, -1] - middle) / np.maximum(gain[:, -1], least)


def _calculate_confidence(e: _Evidence, inside: Sequence[float]) -> dict[float, float]:
    """Return for each strength the chance that a new set's sweet spot holds it.

    A new set differs from the truth as this one does, so its ends lie as far from this one's as those of two
    draws lie apart. Draws are not stretched. To add both deviations to one curve would be too modest: noise
    alone brings a breakdown nearer.
    """
    rng = np.random.default_rng(1)
    together = {**e.curves, "noise floor": e.noise_floors[None]}
    lows, highs = [], []
    for _ in range(2):
        far = draw_deviations(together, rng, stretch=False)
        floors = np.maximum(0.0, e.floor + far.pop("noise floor")[:, 0])
        knees = find_knees(e.strengths, {name: e.means[name] + far[name] for name in e.means}, floors)
        lows.append(knees.low)
        highs.append(np.where(knees.is_open, np.inf, knees.high))
    found_high = np.inf if e.found.is_open[0] else e.found.high[0]
    low, high = _move_end(e.found.low[0], *lows), _move_end(found_high, *highs)
    return {
        strength: float(np.mean((low <= strength + 1e-9) & (strength <= high + 1e-9))) for strength in inside
    }


def _move_end(found: float, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return an end as far from `found` as two draws' ends lie apart; `one` where that is no distance."""
    known = np.isfinite(found) & np.isfinite(other)
    return np.where(known, found + one - np.where(known, other, 0.0), one)


def _bound_knees(e: _Evidence, is_broken: bool) -> dict[str, Interval]:
    """Return the interval of each knee, outwards to strengths tried; not found is beyond the last one.

    Where breakdown is not sure, its interval has no end: of four measures that stay just inside what
    holds, one is outside in most draws. Nor has that of the sweet spot's end if it is where draws break.
    """
    share = (1 - e.level) / 2
    unsure = set() if is_broken else {"breakdown"}
    if not is_broken and np.mean(~np.isnan(e.drawn.breakdown)) >= OFTEN_SHARE:
        unsure.add("sweet_spot_high")
    high = np.where(e.drawn.is_open, np.nan, e.drawn.high)
    knees = {
        "onset": e.drawn.onset,
        "sweet_spot_low": e.drawn.low,
        "sweet_spot_high": high,
        "breakdown": e.drawn.breakdown,
    }
    intervals: dict[str, Interval] = {}
    for name, places in knees.items():
        beyond = np.where(np.isnan(places), np.inf, places)
        first, last = np.quantile(beyond, [share, 1 - share], method="nearest")
        last = np.inf if name in unsure else last
        near = e.sign * max(strength for strength in e.strengths if strength <= first + 1e-9)
        far = min(
            (e.sign * strength for strength in e.strengths if strength >= last - 1e-9), key=abs, default=None
        )
        intervals[name] = (near, far) if e.sign > 0 else (far, near)
    return intervals


def _round_up(e: _Evidence, strength: float) -> float:
    """Return the first strength tried, from 0, that is not before `strength`."""
    return e.sign * next(tried for tried in e.strengths if tried >= strength - 1e-9)


def _find_step(tried: Sequence[float]) -> float:
    """Return the median distance between neighbouring strengths."""
    return float(np.median(np.diff(tried)))


def _extend_range(e: _Evidence) -> str | None:
    """Return the range to twice the last strength as text; `None` if none beyond can be tried."""
    end = e.strengths[-1]
    return (
        None
        if end >= limits.STRENGTH[1]
        else _format_range(e, e.sign * min(limits.STRENGTH[1], 2 * end), _find_step(e.strengths))
    )


def _format_range(e: _Evidence, end: float, step: float) -> str:
    """Return the range from 0 to `end` as text, with a step whose images are allowed."""
    many = min(MAX_NEXT_STRENGTHS, limits.SWEEP_CELLS // e.noise_floors.size)
    step = max(0.01, round(step, 3), math.ceil(1000 * abs(end) / (many - 1)) / 1000)
    return f"0-{end:g} (+{step:g})" if end > 0 else f"{end:g}-0 (+{step:g})"
