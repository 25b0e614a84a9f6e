"""Judge a LoRA on a base model against its result at home: full, at least partial, partial or none.

The pair and its home are drawn together (`core.sweep.resample`): other prompts, and in each other seeds.
A word is said where the whole interval agrees with it, and of a range that would have shown better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np

from core.schema import limits
from core.sweep.decide import LEVEL, find_sure_loss
from core.sweep.knees import LEAST_GAINS, find_knees
from core.sweep.resample import RESAMPLES, Curve, average_curve, count_prompts, draw_deviations
from core.sweep.strengths import STRENGTH_DECIMALS, extend_strengths
from core.sweep.verdict import Interval, Range, Verdict

FULL_SHARE, PARTIAL_SHARE = 0.8, 0.33
"""Least shares, for full and for partial, of what a LoRA adds at home."""
MIN_CONFIDENCE = 0.5
"""A home's strength is known if another set of prompts would more likely than not find it, too."""
REACH_TOLERANCE = 1e-3
"""Share of a change that may be missing when it counts as reached.

The same pictures are not equal to the last digit.
"""
OPEN = (None, "at least partial")
"""Verdicts that more pictures may narrow."""
TAIL = (1 - LEVEL) / 2
"""Share of the draws beyond each end of an interval."""
MIN_STRENGTH = 0.05
"""Least strength that a range is extended to."""
MIN_STEP = 1.25
"""A strength between two others is tried where they are further apart than these times."""
VERDICT_RULE = (
    "The share is how much of the style that it adds at home (of the effect, where no style is known) it "
    "also adds here while prompt, composition, detail and colours hold. "
    f"full: surely at least {100 * FULL_SHARE:.0f} %; "
    f"at least partial: surely at least {100 * PARTIAL_SHARE:.0f} %, and not sure whether "
    f"{100 * FULL_SHARE:.0f} %; "
    f"partial: surely at least {100 * PARTIAL_SHARE:.0f} % and less than {100 * FULL_SHARE:.0f} %; "
    f"none: surely less than {100 * PARTIAL_SHARE:.0f} %, or no change at any strength. "
    "Partial and none need a range in which something surely breaks, or in which the images change as much "
    "as at home. Anything else is unclear."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class HomeBaseline:
    """What a LoRA does at home, with which its pairs are compared."""

    strength: float
    effect: np.ndarray
    """The effect at that strength, (prompts, seeds)."""
    gain: np.ndarray
    """The gain in style at that strength, (prompts, seeds); NaN where no style is known."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The judgement of a LoRA on a base model."""

    verdict: str | None
    """`full`, `at least partial`, `partial` or `none`; `None` where that is unclear."""
    share: float | None = None
    """Share of what the LoRA adds at home that it adds while everything holds, at most 1."""
    share_interval: Range | None = None
    """From where everything likely holds to where something is surely lost."""
    strength: float | None = None
    """The strength tried at which it does: the least of them, or where it adds most."""
    needs_times: float | None = None
    """The strength that changes as much as at home, divided by the strength at home."""
    needs_interval: Interval | None = None
    """`None` ends are beyond the strengths tried."""
    sweep: Verdict
    why: str
    """The reason for the verdict, one sentence."""
    lacks: str | None = None
    """What is missing for a narrower verdict, one sentence."""
    further: tuple[float, ...] = ()
    """Strengths that would tell more."""


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Means over strengths that rise from 0, draws of them, and how far everything holds."""

    tried: list[float]
    sign: float
    """-1 where the strengths are below 0 and stand here without their sign."""
    means: Mapping[str, np.ndarray]  # (strengths,)
    draws: Mapping[str, np.ndarray]  # (draws, strengths)
    likely: int
    """How many of the strengths, 0 among them, come before half of the draws have broken."""
    lost: int | None
    """Index of the first strength at which something is surely lost."""
    lost_words: str


def find_home_strength(
    strengths: Sequence[float], curves: Mapping[str, Curve], verdict: Verdict
) -> tuple[float | None, list[float]]:
    """Return the strength that a LoRA has at home, and the strengths to try for it.

    `curves` and `verdict` are its sweep's. It is the strength that the sweep recommends; `None` where there
    is none, or where another set of prompts might well give another.
    """
    drawn = _draw(strengths, curves)
    first, last = drawn.tried[1], drawn.tried[-1]
    found = verdict.recommended if verdict.confidence >= MIN_CONFIDENCE else None
    is_weak = drawn.lost is None and (found is None or abs(found) == last)
    is_strong = len(drawn.tried) < 3 or drawn.lost == 1 or (found is not None and abs(found) == first)
    between = _list_between(drawn, 1) if found is None else []
    return found, sorted([*between, *_list_further(drawn, is_weak=is_weak, is_strong=is_strong)])


def judge_unmeasured(verdict: Verdict) -> Judgement:
    """Judge a pair of which no picture was measured, by its sweep's verdict, which says why."""
    is_null = verdict.answer == "no change"
    return Judgement(
        verdict="none" if is_null else None,
        sweep=verdict,
        why=verdict.why,
        lacks=None if is_null else verdict.surer or verdict.why,
    )


def judge_pair(
    strengths: Sequence[float],
    curves: Mapping[str, Curve],
    verdict: Verdict,
    home: HomeBaseline | str,
) -> Judgement:
    """Judge a pair over the strengths from 0 upwards (downwards if all are at or below 0).

    `curves` has `effect`, `style` where one is known, and the measures that must hold, each (strengths,
    prompts, seeds); `verdict` is the pair's own. `home` is what the pair is compared with, or why there
    is nothing, one sentence.
    """
    if verdict.answer in ("provisional", "too little"):
        few = verdict.surer or f"Try the strengths {verdict.next}."
        return Judgement(verdict=None, sweep=verdict, why=verdict.why, lacks=few)
    at_home = {"home effect": home.effect, "home style": home.gain} if isinstance(home, HomeBaseline) else {}
    drawn = _draw(strengths, {**curves, **{name: values[None] for name, values in at_home.items()}})
    if verdict.answer == "no change":
        further = _list_further(drawn, is_weak=True, is_strong=False)
        return Judgement(
            verdict=None if further else "none",
            sweep=verdict,
            why=verdict.why,
            lacks=verdict.surer if further else None,
            further=tuple(further),
        )
    if isinstance(home, str):
        return Judgement(verdict=None, sweep=verdict, why=home, lacks=home)
    return _compare(drawn, verdict, home)


def _compare(drawn: _Drawn, verdict: Verdict, home: HomeBaseline) -> Judgement:
    """Judge a pair that changes the images by the share that it adds of what it adds at home."""
    style = drawn.draws.get("home style", np.zeros(1)) if "style" in drawn.means else np.zeros(1)
    # Without the LoRA, likeness is what it is; how far a style moved, whose whole way is 1, is 0.
    least = LEAST_GAINS["style"] * (float(drawn.means["style"][0]) or 1.0) if "style" in drawn.means else 0.0
    what = "style" if style.any() and np.quantile(style, TAIL) >= least else "effect"
    target, target_draws = (each[f"home {what}"][..., 0] for each in (drawn.means, drawn.draws))
    gain, gain_draws = (each[what] - each[what][..., :1] for each in (drawn.means, drawn.draws))
    reach = np.maximum.accumulate(gain_draws, axis=-1) / np.maximum(target_draws, 1e-9)[:, None]
    shares = np.clip(reach, 0, 1)
    low = float(np.quantile(shares[:, drawn.likely - 1], TAIL))
    high = float(np.quantile(shares[:, (drawn.lost or len(gain)) - 1], 1 - TAIL))
    held = gain[: drawn.likely]
    share = float(min(1.0, held.max() / max(target, 1e-9)))
    enough = np.flatnonzero(held >= target * (1 - REACH_TOLERANCE))
    best = int(enough[0] if len(enough) else held.argmax())
    times, times_interval, needs = _find_needed_strength(drawn, home)
    is_far_enough = drawn.lost is not None or times is not None
    word = _choose_word(low, high, is_far_enough)
    further = _list_further(
        drawn,
        is_weak=drawn.lost is None and (word in OPEN or times is None),
        is_strong=drawn.lost == 1 or drawn.means["effect"][1] > drawn.means["home effect"][0],
    )
    further += _list_between(drawn, max(1, drawn.likely - 1)) if word != "full" else []
    until = f"Up to {drawn.sign * drawn.tried[drawn.likely - 1]:g}, while everything holds,"
    if drawn.lost is not None:
        needs += f"; it breaks by {drawn.sign * drawn.tried[drawn.lost]:g}, where {drawn.lost_words}"
    return Judgement(
        verdict=word,
        share=share,
        share_interval=(low, high),
        strength=drawn.sign * drawn.tried[best] if best else None,
        needs_times=times,
        needs_interval=times_interval,
        sweep=verdict,
        why=f"{until} it adds {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f}) of the {what} "
        f"that it adds at home at {home.strength:g}; {needs}.",
        lacks=None if word not in OPEN else _describe_lack(low, high, is_far_enough, home),
        further=tuple(sorted(further)),
    )


def _choose_word(low: float, high: float, is_far_enough: bool) -> str | None:
    if low >= FULL_SHARE:
        return "full"
    if is_far_enough and high < PARTIAL_SHARE:
        return "none"
    if low >= PARTIAL_SHARE:
        return "partial" if is_far_enough and high < FULL_SHARE else "at least partial"
    return None


def _describe_lack(low: float, high: float, is_far_enough: bool, home: HomeBaseline) -> str:
    """Return what is missing for a word, one sentence."""
    if not is_far_enough and low < PARTIAL_SHARE:
        return (
            "Nothing breaks, and the images do not change as much as at home: try more strength, "
            "or multiply the file's alpha."
        )
    if low >= PARTIAL_SHARE:
        open_between = "It surely works in part; more prompts would tell whether fully"
    elif high < FULL_SHARE:
        open_between = "It surely does not work fully; more prompts would tell whether in part"
    else:
        open_between = "More prompts would narrow it"
    return f"{open_between} ({home.effect.shape[0]} were used)."


def _draw(strengths: Sequence[float], curves: Mapping[str, Curve]) -> _Drawn:
    """Average the curves, and draw what other prompts and seeds could have given.

    Those of a single strength stand beside the others: what was measured at home.
    """
    sign = -1.0 if max(strengths) <= 0 else 1.0
    order = sorted((i for i, s in enumerate(strengths) if s * sign >= 0), key=lambda i: abs(strengths[i]))
    used = {
        name: curve[order] if len(curve) == len(strengths) else curve
        for name, curve in curves.items()
        if count_prompts(curve) > 1
    }
    means = {name: average_curve(curve) for name, curve in used.items()}
    deviations = draw_deviations(used, np.random.default_rng(0), stretch=True)
    lost, words = find_sure_loss(means, deviations, LEVEL)
    draws = {name: means[name] + deviations[name] for name in means}
    tried = [abs(strengths[i]) for i in order]
    whole = {name: drawn for name, drawn in draws.items() if drawn.shape[1] == len(tried)}
    broken = find_knees(tried, whole, np.zeros(RESAMPLES)).breakdown
    likely = sum(float(np.mean(broken <= strength)) <= 0.5 for strength in tried)
    return _Drawn(tried, sign, means, draws, likely, lost, words)


def _list_further(drawn: _Drawn, *, is_weak: bool, is_strong: bool) -> list[float]:
    """Return the next strengths: beyond the last of a range too weak, half the first of one too strong.

    None beyond what is allowed.
    """
    further = extend_strengths(drawn.tried, limits.STRENGTH[1]) if is_weak else []
    if is_strong and drawn.tried[1] / 2 >= MIN_STRENGTH:
        further.append(round(drawn.tried[1] / 2, STRENGTH_DECIMALS))
    return sorted(drawn.sign * strength for strength in further)


def _list_between(drawn: _Drawn, first: int) -> list[float]:
    """Return strengths between those from index `first` to the first loss that lie far apart.

    What a LoRA adds before it breaks is told no finer than by the strengths tried.
    """
    steps = pairwise(drawn.tried[first : (drawn.lost or 0) + 1])
    middles = [sqrt(a * b) for a, b in steps if b > MIN_STEP * a]
    return [drawn.sign * round(middle, STRENGTH_DECIMALS) for middle in middles]


def _find_needed_strength(drawn: _Drawn, home: HomeBaseline) -> tuple[float | None, Interval | None, str]:
    """Return the strength that makes the home's change, divided by the home's.

    Also returns its interval, and both as words.
    """
    unit = abs(home.strength)
    end = f"{drawn.sign * drawn.tried[-1]:g}"
    found = find_crossing(drawn.tried, drawn.means["effect"], float(drawn.means["home effect"][0]))
    each = [
        find_crossing(drawn.tried, effect, float(target))
        for effect, target in zip(drawn.draws["effect"], drawn.draws["home effect"][:, 0], strict=True)
    ]
    reached = np.array([np.inf if one is None else one / unit for one in each])
    low, high = (
        None if np.isinf(q) else float(q) for q in np.quantile(reached, [TAIL, 1 - TAIL], method="nearest")
    )
    if found is None:
        short = 100 * float(drawn.means["effect"].max() / drawn.means["home effect"][0])
        return None, None, f"the images change {short:.0f} % of what they change at home, up to {end}"
    interval = f"{low:.2g} to {high:.2g}" if high is not None else f"at least {low:.2g}"
    return found / unit, (low, high), f"it needs x{found / unit:.2g} ({interval}) that strength"


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
