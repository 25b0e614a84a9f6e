"""Decide from curves: onset, sweet spot and breakdown, with intervals.

What was not observed is `None`, and the verdict says why. All thresholds stand here. A mean over
pictures (seeds x prompts) is *surely* above or below a threshold when its bootstrap interval is;
onset and breakdown are claimed only then. Nothing is claimed between or beyond the strengths that
were tried.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SWEET_SPOT_SHARE = 0.6
"""A strength in the sweet spot has at least this share of the greatest gain before breakdown.

The gain is in effect, or in style where there are references.
"""
RECOMMENDED_SHARE = 0.9
"""Without a breakdown, the recommended strength has at least this share of the greatest gain.

The middle of the sweet spot would move with the range there.
"""
HELD_RANGES = {
    "prompt": (0.85, np.inf),
    "composition": (0.35, np.inf),
    "detail": (0.4, 2.5),
    "saturation": (-np.inf, 0.1),
}
"""Measure -> least and greatest mean that still holds.

Composition: two pictures of different prompts share about a quarter, of one prompt three quarters.
"""
RISING_SHARE = 0.1
"""A curve still rises if its last quarter surely adds more than this share of its end."""
MIN_STYLE_GAIN = 0.02
"""Least gain in likeness to the references (0 to 1) that counts as a gain."""
INTERVAL_PERCENTILES = (2.5, 97.5)
"""Percentiles of the bootstrap that bound an interval."""
RESAMPLES = 400
MIN_PICTURES = 4
"""Least pictures per strength: fewer make the ends of a bootstrap the pictures themselves."""
MAX_NEXT_STRENGTHS = 40
"""Greatest number of strengths that the next run is advised to try."""
MAX_STRENGTH = 5.0
"""Greatest strength that can be tried."""

Curve = np.ndarray
"""A measure, (strengths, pictures)."""
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Where a LoRA works."""

    onset: float | None = None
    """Least strength from which, up to breakdown, the effect is surely above the noise floor."""
    sweet_spot: Range | None = None
    """Strengths with most of the reachable effect at which prompt, composition and detail hold."""
    breakdown: float | None = None
    """Least strength from which prompt, composition, detail or saturation surely does not hold."""
    recommended: float | None = None
    """The middle of the sweet spot.

    Where no breakdown was seen, the least strength in it that has nearly all of the effect.
    """
    confidence: float = 0.0
    """Share of bootstrap resamples whose sweet spot contains the recommended strength."""
    intervals: Mapping[str, Range]
    """Intervals of `onset`, `sweet_spot_low`, `sweet_spot_high` and `breakdown` over the resamples.

    Only those that were found.
    """
    why: str
    """The reason for the verdict, one sentence."""
    next: str | None = None
    """Strengths to try next, as text; `None` if nothing is missing."""


@dataclass(frozen=True)
class _Knees:
    onset: int | None
    sweet_spot: tuple[int, int] | None
    recommended: int | None
    """Least index in the sweet spot with nearly all of the greatest gain."""
    breakdown: int | None
    reason: str = ""
    """What does not hold at breakdown, such as `prompt score drops significantly`."""
    has_candidates: bool = False
    """Whether everything holds at some strength from onset on."""


def decide_verdict(
    strengths: Sequence[float], curves: Mapping[str, Curve], noise_floor: float, seed_count: int
) -> Verdict:
    """Decide a verdict over the strengths from 0 upwards (downwards if all are at or below 0).

    `curves` has `effect`, `style` where there are references, and the measures of `HELD_RANGES`;
    NaN marks what was not measured.
    """
    sign = -1.0 if max(strengths) <= 0 else 1.0
    order = sorted((i for i, s in enumerate(strengths) if s * sign >= 0), key=lambda i: abs(strengths[i]))
    tried = [strengths[i] for i in order]
    curves = {name: curve[order] for name, curve in curves.items()}
    pictures = curves["effect"].shape[1]
    if too_little := _reject_too_little_data(tried, sign, pictures, seed_count):
        return too_little
    rng = np.random.default_rng(0)
    picks = rng.integers(pictures, size=(RESAMPLES, pictures))
    resampled = {name: np.stack([_means(curve[:, pick]) for pick in picks]) for name, curve in curves.items()}
    low, high = (
        {name: np.nanpercentile(means, end, axis=0) for name, means in resampled.items()}
        for end in INTERVAL_PERCENTILES
    )
    means = {name: _means(curve) for name, curve in curves.items()}
    found = _find_knees(means, low, high, noise_floor)
    each = [
        _find_knees(one, one, one, noise_floor)
        for one in ({name: means[i] for name, means in resampled.items()} for i in range(RESAMPLES))
    ]
    intervals = _bootstrap_intervals(tried, each)
    if found.sweet_spot is None:
        why, further = _explain_no_sweet_spot(tried, found, noise_floor, "style" in curves)
    elif (
        found.breakdown is None
        and found.sweet_spot[1] == len(tried) - 1
        and _is_rising(tried, resampled, noise_floor)
    ):
        further = _extend_range(tried)
        why = f"No sweet spot yet: the effect is still growing at {tried[-1]:g}{_suggest_extension(further)}"
    else:
        return _describe_sweet_spot(tried, found, each, intervals)
    onset, breakdown = (None if i is None else tried[i] for i in (found.onset, found.breakdown))
    claimed = {
        name: intervals[name]
        for name, knee in (("onset", onset), ("breakdown", breakdown))
        if knee is not None and name in intervals
    }
    return Verdict(onset=onset, breakdown=breakdown, intervals=claimed, why=why, next=further)


def _reject_too_little_data(
    tried: Sequence[float], sign: float, pictures: int, seed_count: int
) -> Verdict | None:
    """Return the verdict that there is too little to decide from, or `None` if there is enough."""
    if seed_count < 2:
        return Verdict(intervals={}, why="Needs at least 2 seeds to tell the LoRA's effect from chance.")
    if pictures < MIN_PICTURES:
        return Verdict(
            intervals={},
            why=f"{pictures} images per strength are too few for an interval: "
            f"use at least {MIN_PICTURES} (seeds x prompts).",
        )
    if len(tried) < 3:
        side = "above" if sign > 0 else "below"
        suggestion = _format_range(math.copysign(3.5, sign), 0.25)
        return Verdict(
            intervals={},
            why=f"A curve needs at least two strengths {side} 0; try a range such as {suggestion}.",
            next=suggestion,
        )
    return None


def _explain_no_sweet_spot(
    tried: Sequence[float], found: _Knees, noise_floor: float, has_style: bool
) -> tuple[str, str | None]:
    """Return why there is no sweet spot, and the strengths to try next, if any."""
    onset, breakdown = (None if i is None else tried[i] for i in (found.onset, found.breakdown))
    if breakdown is not None:
        if found.has_candidates:
            why = (
                f"The images change from {onset:g} on, but do not get closer to the references "
                f"before the {found.reason} at {breakdown:g}."
            )
            return why, None
        early = (
            f" before the style appears: the images change from {onset:g} on, but nothing holds"
            if onset is not None
            else " before the style appears"
        )
        why = f"Breaks at {breakdown:g} (the {found.reason}){early}. No strength works."
        return why, _format_range(breakdown, _find_step(tried) / 4)
    if onset is None:
        why = (
            f"No clear effect up to {tried[-1]:g} (noise floor {noise_floor:.2f} seed units): "
            "the LoRA may be undertrained"
        )
        further = _extend_range(tried)
        return f"{why}{_suggest_extension(further)}", further
    why = (
        "do not get closer to the references"
        if has_style
        else "prompt or composition may not hold there, and more seeds would help"
    )
    return f"The images change from {onset:g} on, but {why}.", None


def _describe_sweet_spot(
    tried: Sequence[float], found: _Knees, each: Sequence[_Knees], intervals: Mapping[str, Range]
) -> Verdict:
    """Return the verdict for a sweet spot; `each` has the knees of the resamples."""
    assert found.sweet_spot
    onset, breakdown = (None if i is None else tried[i] for i in (found.onset, found.breakdown))
    first, last = tried[found.sweet_spot[0]], tried[found.sweet_spot[1]]
    recommended = (
        round((first + last) / 2, 3)
        if breakdown is not None or found.recommended is None
        else tried[found.recommended]
    )
    inside = [
        k.sweet_spot is not None
        and abs(tried[k.sweet_spot[0]]) <= abs(recommended) <= abs(tried[k.sweet_spot[1]])
        for k in each
    ]
    unseen = {"breakdown"} if breakdown is None else set()
    if breakdown is not None:
        until = f"; from {breakdown:g} on, the {found.reason}"
    elif found.sweet_spot[1] == len(tried) - 1:
        until = f"; no breakdown up to {tried[-1]:g}"
        unseen.add("sweet_spot_high")  # the range ends there, not the sweet spot
    else:
        until = f"; beyond {last:g} it is unclear, and more seeds would help"
    return Verdict(
        onset=onset,
        breakdown=breakdown,
        sweet_spot=(min(first, last), max(first, last)),
        recommended=recommended,
        confidence=round(float(np.mean(inside)), 3),
        intervals={name: ends for name, ends in intervals.items() if name not in unseen},
        why=f"Works from {first:g} to {last:g}, best around {recommended:g}. Visible from {onset:g}{until}.",
    )


def _find_step(tried: Sequence[float]) -> float:
    """Return the median distance between neighbouring strengths."""
    return float(np.median(np.diff(np.abs(tried))))


def _extend_range(tried: Sequence[float]) -> str | None:
    """Return the range to twice the last strength as text; `None` if none beyond can be tried."""
    end = tried[-1]
    if abs(end) >= MAX_STRENGTH:
        return None
    return _format_range(math.copysign(min(MAX_STRENGTH, 2 * abs(end)), end), _find_step(tried))


def _format_range(end: float, step: float) -> str:
    """Return the range from 0 to `end` as text, with a step that is allowed."""
    step = max(0.01, round(step, 3), round(abs(end) / MAX_NEXT_STRENGTHS, 3))
    return f"0-{end:g} (+{step:g})" if end > 0 else f"{end:g}-0 (+{step:g})"


def _suggest_extension(extension: str | None) -> str:
    return (
        ". Extend the range."
        if extension
        else f", and strengths go no further than {MAX_STRENGTH:g} either way."
    )


def _find_knees(
    means: Mapping[str, Curve], low: Mapping[str, Curve], high: Mapping[str, Curve], noise_floor: float
) -> _Knees:
    """Return the indices of onset, sweet spot and breakdown; means and bounds are (strengths,)."""
    count = len(means["effect"])
    holds, broken, why = np.ones(count, bool), np.zeros(count, bool), [""] * count
    for name, (least, most) in HELD_RANGES.items():
        if name in means:
            holds &= ~((means[name] < least) | (means[name] > most))  # NaN (not measured) holds
            falls, rises = high[name] < least, low[name] > most
            told = [
                f"{name} score drops significantly"
                if falls[i]
                else f"{name} score rises significantly"
                if rises[i]
                else ""
                for i in range(count)
            ]
            why = [" and ".join(filter(None, pair)) for pair in zip(why, told, strict=True)]
            broken |= falls | rises
    # One broken strength after which all is well again is chance; the last one has no successor.
    breakdown = next((i for i in range(1, count) if broken[i] and (i + 1 == count or broken[i + 1])), None)
    end = count if breakdown is None else breakdown
    there = (low["effect"] > noise_floor)[:end]
    onset = next((i for i in range(1, end) if there[i:].all()), None)
    gain = means["style"] - means["style"][0] if "style" in means else means["effect"]
    candidates = [i for i in range(onset or count, end) if holds[i]] if onset is not None else []
    reach = max((gain[i] for i in candidates), default=0.0)
    if not candidates or ("style" in means and reach < MIN_STYLE_GAIN):
        return _Knees(
            onset, None, None, breakdown, why[breakdown] if breakdown is not None else "", bool(candidates)
        )
    works = [i in candidates and gain[i] >= SWEET_SPOT_SHARE * reach for i in range(count)]
    first = works.index(True)
    last = next((i for i in range(first, count) if not works[i]), count) - 1
    nearly = next((i for i in range(first, last + 1) if gain[i] >= RECOMMENDED_SHARE * reach), last)
    return _Knees(onset, (first, last), nearly, breakdown, why[breakdown] if breakdown is not None else "")


def _is_rising(tried: Sequence[float], resampled: Mapping[str, np.ndarray], noise_floor: float) -> bool:
    """Whether the last quarter of the range surely still adds to the effect (or the style)."""
    gain = resampled["style"] - resampled["style"][:, :1] if "style" in resampled else resampled["effect"]
    before = int(np.argmin(np.abs(np.abs(tried[:-1]) - 0.75 * abs(tried[-1]))))
    added = (gain[:, -1] - gain[:, before]) / np.maximum(
        gain[:, -1], noise_floor if "style" not in resampled else MIN_STYLE_GAIN
    )
    return bool(np.percentile(added, INTERVAL_PERCENTILES[0]) > RISING_SHARE)


def _bootstrap_intervals(tried: Sequence[float], each: Sequence[_Knees]) -> dict[str, Range]:
    places = {
        "onset": [k.onset for k in each],
        "sweet_spot_low": [k.sweet_spot and k.sweet_spot[0] for k in each],
        "sweet_spot_high": [k.sweet_spot and k.sweet_spot[1] for k in each],
        "breakdown": [k.breakdown for k in each],
    }
    found = {name: [tried[i] for i in indices if i is not None] for name, indices in places.items()}
    # Where most resamples find no value, an interval over the rest would claim too much.
    ends = {
        name: np.percentile(values, INTERVAL_PERCENTILES, method="nearest")
        for name, values in found.items()
        if 2 * len(values) >= len(each)
    }
    return {name: (float(min(low, high)), float(max(low, high))) for name, (low, high) in ends.items()}


def _means(curve: Curve) -> Curve:
    """Return the mean over the pictures that were measured, (strengths,); NaN where none was."""
    measured = ~np.isnan(curve)
    many = measured.sum(1)
    return np.where(many > 0, np.where(measured, curve, 0).sum(1) / np.maximum(many, 1), np.nan)
