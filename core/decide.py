"""Curves -> onset, sweet spot and breakdown, with intervals; and `None` with the reason for what was not seen.

All thresholds stand here. A mean over pictures (seeds x prompts) is *surely* above or below one when its bootstrap interval
is; onset and breakdown are claimed only so. Nothing is claimed between or beyond the strengths that were tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

MOST = 0.6
"""Share of what the effect (or the style) reaches before breakdown from which a strength belongs to the sweet spot."""
NEARLY = 0.9
"""Share of it that the recommended strength has where no breakdown was seen: the middle would move with the range."""
HOLDS = {"prompt": (0.85, np.inf), "composition": (0.35, np.inf), "detail": (0.4, 2.5), "saturation": (-np.inf, 0.1)}
"""Measure -> least and greatest mean that still holds. Composition: two pictures of different prompts share about a quarter, of one prompt three quarters."""
RISING = 0.1
"""A curve whose last quarter surely adds more than this share of its end is still rising."""
STYLED = 0.02
"""Least gain in likeness to the references (0 to 1) that counts as one."""
INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap."""
RESAMPLES = 400
FEWEST = 4
"""Pictures a strength: the ends of a bootstrap over fewer are the pictures themselves."""
MOST_OFFERED = 40
"""Strengths that the next run has at most."""
LONGEST = 5.0
"""The greatest strength that can be tried."""

Curve = np.ndarray
"""(strengths, pictures)"""
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Where a LoRA works."""

    onset: float | None = None
    """Least strength whose effect is surely above the noise floor, as it stays from there to breakdown."""
    sweet_spot: Range | None = None
    """Strengths at which it has come to most of what it reaches while prompt, composition and detail hold."""
    breakdown: float | None = None
    """Least strength from which one of them surely does not hold."""
    recommended: float | None = None
    """The middle of the sweet spot; where no breakdown was seen, its least strength with nearly all of the effect."""
    confidence: float = 0.0
    """Share of bootstrap resamples whose sweet spot holds the recommended strength."""
    intervals: Mapping[str, Range]
    """`onset`, `sweet_spot_low`, `sweet_spot_high` and `breakdown` over the resamples, where they were found."""
    why: str
    """One sentence."""
    next: str | None = None
    """Strengths to try next, as text; `None` if nothing is missing."""


@dataclass(frozen=True)
class _Knees:
    onset: int | None
    sweet: tuple[int, int] | None
    nearly: int | None
    """Least index of the sweet spot with nearly all of what is reached."""
    breakdown: int | None
    failed: str = ""
    """What does not hold at breakdown, as `prompt surely falls`."""
    holds: bool = False
    """Whether there are strengths from onset on at which everything holds."""


def decide(strengths: Sequence[float], curves: Mapping[str, Curve], floor: float, seeds: int) -> Verdict:
    """Decide over the strengths from 0 upwards (or downwards, where all are below 0).

    `curves` has `effect`, where there are references `style`, and the measures of `HOLDS`; NaN is what was not measured.
    """
    sign = -1.0 if max(strengths) <= 0 else 1.0
    order = sorted((i for i, s in enumerate(strengths) if s * sign >= 0), key=lambda i: abs(strengths[i]))
    tried = [strengths[i] for i in order]
    curves = {name: curve[order] for name, curve in curves.items()}
    pictures = curves["effect"].shape[1]
    if seeds < 2:
        return Verdict(intervals={}, why="One seed only: what another seed would change is not known, so nothing is claimed; take at least two.")
    if pictures < FEWEST:
        return Verdict(intervals={}, why=f"{pictures} pictures a strength are too few for an interval: take {FEWEST} at least, seeds times prompts.")
    if len(tried) < 3:
        side = "above" if sign > 0 else "below"
        return Verdict(intervals={}, why=f"Fewer than two strengths {side} 0: that is no curve; try a range such as 0-3.5 (+0.25).", next="0-3.5 (+0.25)")
    rng = np.random.default_rng(0)
    picks = rng.integers(pictures, size=(RESAMPLES, pictures))
    resampled = {name: np.stack([_means(curve[:, pick]) for pick in picks]) for name, curve in curves.items()}
    low, high = ({name: np.nanpercentile(means, end, axis=0) for name, means in resampled.items()} for end in INTERVAL)
    means = {name: _means(curve) for name, curve in curves.items()}
    found = _knees(means, low, high, floor)
    each = [_knees(one, one, one, floor) for one in ({name: means[i] for name, means in resampled.items()} for i in range(RESAMPLES))]
    intervals = _intervals(tried, each)
    onset, breakdown = (None if i is None else tried[i] for i in (found.onset, found.breakdown))
    said = partial(Verdict, onset=onset, breakdown=breakdown)
    claimed = {name: intervals[name] for name, knee in (("onset", onset), ("breakdown", breakdown)) if knee is not None and name in intervals}
    step, end = float(np.median(np.diff(np.abs(tried)))), tried[-1]
    further = _range(sign * min(LONGEST, 2 * abs(end)), step) if abs(end) < LONGEST else None
    if found.sweet is None and breakdown is not None:
        if found.holds:
            why = f"The pictures change from {onset:g} on, but they do not come nearer to the references before {found.failed} at {breakdown:g}."
            return said(intervals=claimed, why=why)
        early = f" before it styles: something changes from {onset:g} on, but nothing holds" if onset is not None else " before it styles"
        why = f"It breaks at {breakdown:g} ({found.failed}){early}: no strength works."
        return said(intervals=claimed, why=why, next=_range(breakdown, step / 4))
    if found.sweet is None and onset is None:
        why = f"No strength up to {end:g} surely changes the pictures (noise floor {floor:.2f} seed units)"
        return said(intervals=claimed, why=f"{why}{_offer(further)}", next=further)
    if found.sweet is None:
        why = "they do not come nearer to the references" if "style" in curves else "prompt or composition may not hold there, and more seeds would tell"
        return said(intervals=claimed, why=f"The pictures change from {onset:g} on, but {why}.")
    if breakdown is None and found.sweet[1] == len(tried) - 1 and _rising(tried, resampled, floor):
        return said(intervals=claimed, why=f"Still rising at {end:g}{_offer(further)}", next=further)
    first, last = tried[found.sweet[0]], tried[found.sweet[1]]
    recommended = round((first + last) / 2, 3) if breakdown is not None or found.nearly is None else tried[found.nearly]
    inside = [k.sweet is not None and abs(tried[k.sweet[0]]) <= abs(recommended) <= abs(tried[k.sweet[1]]) for k in each]
    unseen = {"breakdown"} if breakdown is None else set()
    if breakdown is not None:
        until = f"; from {breakdown:g} on {found.failed}"
    elif found.sweet[1] == len(tried) - 1:
        until = f"; no breakdown up to {end:g}"
        unseen.add("sweet_spot_high")  # the range ends there, not the sweet spot
    else:
        until = f"; beyond {last:g} it may not hold, more seeds would tell"
    return said(
        sweet_spot=(min(first, last), max(first, last)),
        recommended=recommended,
        confidence=round(float(np.mean(inside)), 3),
        intervals={name: ends for name, ends in intervals.items() if name not in unseen},
        why=f"Works from {first:g} to {last:g}, best near {recommended:g}: it surely changes the pictures from {onset:g} on{until}.",
    )


def _range(end: float, step: float) -> str:
    """From 0 to `end` as text, with a step that is allowed."""
    step = max(0.01, round(step, 3), round(abs(end) / MOST_OFFERED, 3))
    return f"0-{end:g} (+{step:g})" if end > 0 else f"{end:g}-0 (+{step:g})"


def _offer(further: str | None) -> str:
    return ": extend the range." if further else f", and {LONGEST:g} either way is as far as strengths go."


def _knees(means: Mapping[str, Curve], low: Mapping[str, Curve], high: Mapping[str, Curve], floor: float) -> _Knees:
    """Indices of onset, sweet spot and breakdown; means and bounds are (strengths,)."""
    count = len(means["effect"])
    holds, broken, why = np.ones(count, bool), np.zeros(count, bool), [""] * count
    for name, (least, most) in HOLDS.items():
        if name in means:
            holds &= ~((means[name] < least) | (means[name] > most))  # true where it was not measured
            falls, rises = high[name] < least, low[name] > most
            told = [f"{name} surely falls" if falls[i] else f"{name} surely rises" if rises[i] else "" for i in range(count)]
            why = [" and ".join(filter(None, pair)) for pair in zip(why, told, strict=True)]
            broken |= falls | rises
    # One strength beyond which all is well again is chance; at the end of the range there is no telling.
    breakdown = next((i for i in range(1, count) if broken[i] and (i + 1 == count or broken[i + 1])), None)
    end = count if breakdown is None else breakdown
    there = (low["effect"] > floor)[:end]
    onset = next((i for i in range(1, end) if there[i:].all()), None)
    gain = means["style"] - means["style"][0] if "style" in means else means["effect"]
    candidates = [i for i in range(onset or count, end) if holds[i]] if onset is not None else []
    reach = max((gain[i] for i in candidates), default=0.0)
    if not candidates or ("style" in means and reach < STYLED):
        return _Knees(onset, None, None, breakdown, why[breakdown] if breakdown is not None else "", bool(candidates))
    works = [i in candidates and gain[i] >= MOST * reach for i in range(count)]
    first = works.index(True)
    last = next((i for i in range(first, count) if not works[i]), count) - 1
    nearly = next((i for i in range(first, last + 1) if gain[i] >= NEARLY * reach), last)
    return _Knees(onset, (first, last), nearly, breakdown, why[breakdown] if breakdown is not None else "")


def _rising(tried: Sequence[float], resampled: Mapping[str, np.ndarray], floor: float) -> bool:
    """Whether the last quarter of the range surely still adds to the effect (or the style)."""
    gain = resampled["style"] - resampled["style"][:, :1] if "style" in resampled else resampled["effect"]
    before = int(np.argmin(np.abs(np.abs(tried[:-1]) - 0.75 * abs(tried[-1]))))
    added = (gain[:, -1] - gain[:, before]) / np.maximum(gain[:, -1], floor if "style" not in resampled else STYLED)
    return bool(np.percentile(added, INTERVAL[0]) > RISING)


def _intervals(tried: Sequence[float], each: Sequence[_Knees]) -> dict[str, Range]:
    places = {
        "onset": [k.onset for k in each],
        "sweet_spot_low": [k.sweet and k.sweet[0] for k in each],
        "sweet_spot_high": [k.sweet and k.sweet[1] for k in each],
        "breakdown": [k.breakdown for k in each],
    }
    found = {name: [tried[i] for i in indices if i is not None] for name, indices in places.items()}
    # Where most resamples do not find it, an interval over the rest would say too much.
    ends = {name: np.percentile(values, INTERVAL, method="nearest") for name, values in found.items() if 2 * len(values) >= len(each)}
    return {name: (float(min(low, high)), float(max(low, high))) for name, (low, high) in ends.items()}


def _means(curve: Curve) -> Curve:
    """Mean over the pictures that were measured, (strengths,); NaN where none was."""
    measured = ~np.isnan(curve)
    many = measured.sum(1)
    return np.where(many > 0, np.where(measured, curve, 0).sum(1) / np.maximum(many, 1), np.nan)
