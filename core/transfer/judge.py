"""How a LoRA does on a base model beside how it does at home: full, partial or none, the strength that it needs, and two claims.

All thresholds stand here or in `core.decide`. Every figure comes with the interval of a bootstrap over pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.decide import FEWEST, HOLDS, INTERVAL, RESAMPLES, STYLED, Range, Verdict, decide

FULL, PARTIAL = 0.8, 0.33
"""Least share of what a LoRA adds at home (in style; in effect where no style is known) at a strength where the picture holds."""
REACHED = 1e-3
"""Share of a change that may be missing where it counts as reached: the same pictures are not the same to the last digit."""
RULE = (
    f"full: at a strength where prompt, composition, detail and colours hold, it adds at least {100 * FULL:.0f} % of the style that it adds at home "
    f"(of the effect, where no style is known); partial: at least {100 * PARTIAL:.0f} %; none: less, or no sure change of the pictures."
)

Curves = Mapping[str, np.ndarray]
"""Measure -> (strengths, items); NaN where there is none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Home:
    """What a pair is held against."""

    strength: float
    effect: np.ndarray
    """At that strength, (items,)."""
    gain: np.ndarray
    """What the style gains there, (items,); NaN where no style is known."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A LoRA on a base model."""

    verdict: str | None
    """`full`, `partial` or `none`; `None` where its home is not known."""
    share: float | None
    """Of what it adds at home."""
    share_interval: Range | None
    needs_times: float | None
    """The strength that makes as much of a change as at home, over the strength at home."""
    needs_interval: Range | None
    sweep: Verdict
    why: str
    """One sentence."""


def judged(strengths: Sequence[float], curves: Curves, floor: float, seeds: int, home: Home | None) -> Judged:
    """Decide on a pair; strengths rise from 0 or below."""
    zero = list(strengths).index(0.0)
    tried, curves = list(strengths[zero:]), {name: curve[zero:] for name, curve in curves.items()}
    items = curves["effect"].shape[1]
    used = {name: curve for name, curve in curves.items() if name in ("effect", *HOLDS) and not np.isnan(curve).all()}
    sweep = decide(tried, used, floor, seeds)
    if items < FEWEST or seeds < 2:
        return Judged(verdict=None, share=None, share_interval=None, needs_times=None, needs_interval=None, sweep=sweep, why=sweep.why)
    picks = np.random.default_rng(0).integers(items, size=(RESAMPLES, items))
    effect = curves["effect"]
    sure = np.percentile(effect[:, picks].mean(-1), INTERVAL[0], axis=1) > floor
    sure[0] = False
    holds = np.ones(len(tried), bool)
    for name, (least, most) in HOLDS.items():
        if name in used:
            mean = np.nanmean(used[name], axis=1)
            holds &= (least <= mean) & (mean <= most)
    usable = np.flatnonzero(sure & holds)
    if home is None:
        why = "What it was trained on is not known or not in the table: it is held against nothing."
        return Judged(verdict=None, share=None, share_interval=None, needs_times=None, needs_interval=None, sweep=sweep, why=why)
    times, times_interval, needs = _needs(tried, effect, home, picks)
    if not sure.any():
        why = f"No strength up to {tried[-1]:g} surely changes its pictures (noise floor {floor:.2f} seed units)."
        return Judged(verdict="none", share=None, share_interval=None, needs_times=None, needs_interval=None, sweep=sweep, why=why)
    if not len(usable):
        first = tried[int(np.argmax(sure))]
        why = f"From {first:g} on it surely changes the pictures, but something of prompt, composition, detail and colours is lost there."
        return Judged(verdict="none", share=None, share_interval=None, needs_times=times, needs_interval=times_interval, sweep=sweep, why=why)
    what, added, at_home = "style", curves["style"] - curves["style"][:1], home.gain
    if np.isnan(at_home).any() or float(at_home.mean()) < STYLED or np.isnan(added).any():
        what, added, at_home = "effect", effect, home.effect
    best = int(usable[np.argmax(added[usable].mean(1))])
    share = float(added[best].mean() / at_home.mean())
    each = added[best][picks].mean(1) / np.maximum(at_home[picks].mean(1), 1e-9)
    low, high = (float(end) for end in np.percentile(each, INTERVAL))
    verdict = "full" if share >= FULL else "partial" if share >= PARTIAL else "none"
    adds = f"At {tried[best]:g} it adds {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
    why = f"{adds} of the {what} that it adds at home at {home.strength:g}; {needs}."
    return Judged(verdict=verdict, share=share, share_interval=(low, high), needs_times=times, needs_interval=times_interval, sweep=sweep, why=why)


def _needs(tried: Sequence[float], effect: np.ndarray, home: Home, picks: np.ndarray) -> tuple[float | None, Range | None, str]:
    """The strength that makes the home's change, over the home's; its interval; both as words."""
    found = crossing(tried, effect.mean(1), float(home.effect.mean()))
    if found is None:
        return None, None, f"as much of a change as at home is not reached up to {tried[-1]:g}"
    each = [crossing(tried, effect[:, pick].mean(1), float(home.effect[pick].mean())) for pick in picks]
    reached = [one / home.strength for one in each if one is not None]
    times = found / home.strength
    if 2 * len(reached) < len(each):
        return times, None, f"it needs about x{times:.2g} of that strength"
    low, high = (float(end) for end in np.percentile(reached, INTERVAL))
    return times, (low, high), f"it needs x{times:.2g} ({low:.2g} to {high:.2g}) of that strength"


def crossing(tried: Sequence[float], values: np.ndarray, target: float) -> float | None:
    """The least strength at which a curve comes to `target`, straight between those tried; `None` if it does not."""
    for i in range(1, len(tried)):
        if values[i] >= target * (1 - REACHED):
            rise = values[i] - values[i - 1]
            share = 1.0 if rise <= 0 else (target - values[i - 1]) / rise
            return float(tried[i - 1] + min(max(share, 0.0), 1.0) * (tried[i] - tried[i - 1]))
    return None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that is said of LoRAs, and what these pictures say of it."""

    says: str
    difference: float | None
    interval: Range | None
    why: str
    """One sentence with the figures."""


def claim(says: str, measure: str, ones: Sequence[np.ndarray], others: Sequence[np.ndarray], words: tuple[str, str]) -> Claim:
    """Hold pairs of LoRAs on the same base against each other: `ones[i]` and `others[i]` are a measure of the same items, (items,).

    The claim is that `ones` are greater. `words` say who they are.
    """
    if not ones:
        return Claim(says=says, difference=None, interval=None, why=f"{says}: not seen; the table has no two LoRAs of the same pictures to tell it by.")
    mine, its = np.stack(ones), np.stack(others)  # (comparisons, items)
    if np.isnan(mine).any() or np.isnan(its).any():
        return Claim(says=says, difference=None, interval=None, why=f"{says}: not measured, as {measure} was not.")
    picks = np.random.default_rng(0).integers(mine.shape[1], size=(RESAMPLES, mine.shape[1]))
    apart = (mine - its).mean(0)
    low, high = (float(end) for end in np.percentile(apart[picks].mean(1), INTERVAL))
    answer = "these pictures agree" if low > 0 else "these pictures say the opposite" if high < 0 else "these pictures do not tell"
    figures = f"{measure} {mine.mean():.2f} {words[0]} against {its.mean():.2f} {words[1]}, {len(ones)} comparisons"
    return Claim(
        says=says,
        difference=float(apart.mean()),
        interval=(low, high),
        why=f"{says}: {answer} ({figures}; difference {apart.mean():+.3f}, {low:+.3f} to {high:+.3f}).",
    )
