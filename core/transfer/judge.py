"""Judge a LoRA on a base model against its result at home: full, partial or none.

Also the strength that it needs there, and two claims. All thresholds stand here or in
`core.sweep.decide`. Every figure comes with the interval of a bootstrap over pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.sweep.decide import (
    HELD_RANGES,
    INTERVAL_PERCENTILES,
    MIN_PICTURES,
    MIN_STYLE_GAIN,
    RESAMPLES,
    Range,
    Verdict,
    decide_verdict,
)

FULL_SHARE, PARTIAL_SHARE = 0.8, 0.33
"""Least shares, for full and for partial, of what a LoRA adds at home.

The share is of the style, or of the effect where no style is known, at a strength where the picture
holds.
"""
REACH_TOLERANCE = 1e-3
"""Share of a change that may be missing when it counts as reached.

The same pictures are not equal to the last digit.
"""
VERDICT_RULE = (
    "full: at a strength where prompt, composition, detail and colours hold, "
    f"it adds at least {100 * FULL_SHARE:.0f} % of the style that it adds at home "
    "(of the effect, where no style is known); "
    f"partial: at least {100 * PARTIAL_SHARE:.0f} %; "
    "none: less, or no significant change of the images."
)

Curves = Mapping[str, np.ndarray]
"""Measure -> (strengths, items); NaN where there is no value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HomeBaseline:
    """What a LoRA does at home, with which its pairs are compared."""

    strength: float
    effect: np.ndarray
    """The effect at that strength, (items,)."""
    gain: np.ndarray
    """The gain in style at that strength, (items,); NaN where no style is known."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The judgement of a LoRA on a base model."""

    verdict: str | None
    """`full`, `partial` or `none`; `None` where the LoRA's home is not known."""
    share: float | None = None
    """Share of what the LoRA adds at home."""
    share_interval: Range | None = None
    needs_times: float | None = None
    """The strength that changes as much as at home, divided by the strength at home."""
    needs_interval: Range | None = None
    sweep: Verdict
    why: str
    """The reason for the verdict, one sentence."""


def judge_pair(
    strengths: Sequence[float], curves: Curves, noise_floor: float, seed_count: int, home: HomeBaseline | None
) -> Judgement:
    """Judge a pair; `strengths` rise and contain 0."""
    zero = list(strengths).index(0.0)
    tried, curves = list(strengths[zero:]), {name: curve[zero:] for name, curve in curves.items()}
    items = curves["effect"].shape[1]
    used = {
        name: curve
        for name, curve in curves.items()
        if name in ("effect", *HELD_RANGES) and not np.isnan(curve).all()
    }
    sweep = decide_verdict(tried, used, noise_floor, seed_count)
    if items < MIN_PICTURES or seed_count < 2:
        return Judgement(verdict=None, sweep=sweep, why=sweep.why)
    picks = np.random.default_rng(0).integers(items, size=(RESAMPLES, items))
    effect = curves["effect"]
    sure = np.percentile(effect[:, picks].mean(-1), INTERVAL_PERCENTILES[0], axis=1) > noise_floor
    sure[0] = False
    usable = np.flatnonzero(sure & _check_held(used))
    if home is None:
        why = "Its home model is not known or not in the table, so there is nothing to compare with."
        return Judgement(verdict=None, sweep=sweep, why=why)
    times, times_interval, needs = _find_needed_strength(tried, effect, home, picks)
    if not sure.any():
        why = (
            f"No strength up to {tried[-1]:g} changes the images significantly "
            f"(noise floor {noise_floor:.2f} seed units)."
        )
        return Judgement(verdict="none", sweep=sweep, why=why)
    if not len(usable):
        first = tried[int(np.argmax(sure))]
        why = (
            f"From {first:g} on it changes the images significantly, "
            "but prompt, composition, detail or colours do not hold there."
        )
        return Judgement(
            verdict="none", needs_times=times, needs_interval=times_interval, sweep=sweep, why=why
        )
    what, added, at_home = "style", curves["style"] - curves["style"][:1], home.gain
    if np.isnan(at_home).any() or float(at_home.mean()) < MIN_STYLE_GAIN or np.isnan(added).any():
        what, added, at_home = "effect", effect, home.effect
    best = int(usable[np.argmax(added[usable].mean(1))])
    share = float(added[best].mean() / at_home.mean())
    each = added[best][picks].mean(1) / np.maximum(at_home[picks].mean(1), 1e-9)
    low, high = (float(end) for end in np.percentile(each, INTERVAL_PERCENTILES))
    verdict = "full" if share >= FULL_SHARE else "partial" if share >= PARTIAL_SHARE else "none"
    adds = f"At {tried[best]:g} it adds {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
    why = f"{adds} of the {what} that it adds at home at {home.strength:g}; {needs}."
    return Judgement(
        verdict=verdict,
        share=share,
        share_interval=(low, high),
        needs_times=times,
        needs_interval=times_interval,
        sweep=sweep,
        why=why,
    )


def _check_held(curves: Curves) -> np.ndarray:
    """Return for each strength whether all measures of `HELD_RANGES` that were taken hold there."""
    holds = np.ones(len(curves["effect"]), bool)
    for name, (least, most) in HELD_RANGES.items():
        if name in curves:
            mean = np.nanmean(curves[name], axis=1)
            holds &= (least <= mean) & (mean <= most)
    return holds


def _find_needed_strength(
    strengths: Sequence[float], effect: np.ndarray, home: HomeBaseline, picks: np.ndarray
) -> tuple[float | None, Range | None, str]:
    """Return the strength that makes the home's change, divided by the home's.

    Also returns its interval, and both as words.
    """
    found = find_crossing(strengths, effect.mean(1), float(home.effect.mean()))
    if found is None:
        return None, None, f"the same amount of change as at home is not reached up to {strengths[-1]:g}"
    each = [
        find_crossing(strengths, effect[:, pick].mean(1), float(home.effect[pick].mean())) for pick in picks
    ]
    reached = [one / home.strength for one in each if one is not None]
    times = found / home.strength
    if 2 * len(reached) < len(each):
        return times, None, f"it needs about x{times:.2g} that strength"
    low, high = (float(end) for end in np.percentile(reached, INTERVAL_PERCENTILES))
    return times, (low, high), f"it needs x{times:.2g} ({low:.2g} to {high:.2g}) that strength"


def find_crossing(strengths: Sequence[float], values: np.ndarray, target: float) -> float | None:
    """Return the least strength at which a curve reaches `target`, or `None` if it does not.

    Between the strengths that were tried, the curve is taken as straight.
    """
    for i in range(1, len(strengths)):
        if values[i] >= target * (1 - REACH_TOLERANCE):
            rise = values[i] - values[i - 1]
            share = 1.0 if rise <= 0 else (target - values[i - 1]) / rise
            return float(strengths[i - 1] + min(max(share, 0.0), 1.0) * (strengths[i] - strengths[i - 1]))
    return None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim about LoRAs, and what these pictures say about it."""

    says: str
    difference: float | None
    interval: Range | None
    why: str
    """The answer with its figures, one sentence."""


def evaluate_claim(
    says: str, measure: str, ones: Sequence[np.ndarray], others: Sequence[np.ndarray], labels: tuple[str, str]
) -> Claim:
    """Test the claim that `ones` are greater than `others`, pairs of LoRAs on the same base.

    `ones[i]` and `others[i]` are a measure of the same items, (items,). `labels` name the two
    sides.
    """
    if not ones:
        return Claim(
            says=says,
            difference=None,
            interval=None,
            why=f"{says}: not tested; the table has no two LoRAs of the same training images.",
        )
    mine, its = np.stack(ones), np.stack(others)  # (comparisons, items)
    if np.isnan(mine).any() or np.isnan(its).any():
        return Claim(
            says=says, difference=None, interval=None, why=f"{says}: not measured, because {measure} was not."
        )
    picks = np.random.default_rng(0).integers(mine.shape[1], size=(RESAMPLES, mine.shape[1]))
    apart = (mine - its).mean(0)
    low, high = (float(end) for end in np.percentile(apart[picks].mean(1), INTERVAL_PERCENTILES))
    answer = (
        "these images agree"
        if low > 0
        else "these images show the opposite"
        if high < 0
        else "these images are inconclusive"
    )
    figures = (
        f"{measure} {mine.mean():.2f} {labels[0]} against {its.mean():.2f} {labels[1]}, "
        f"{len(ones)} comparisons"
    )
    return Claim(
        says=says,
        difference=float(apart.mean()),
        interval=(low, high),
        why=f"{says}: {answer} ({figures}; difference {apart.mean():+.3f}, {low:+.3f} to {high:+.3f}).",
    )
