"""Say a verdict in words: a headline of three numbers, the reason, and what would make it surer."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.schema import limits
from core.sweep.verdict import Answer, Interval

ONE_SEED = "Needs at least 2 seeds to tell the LoRA's effect from chance."
WANTED = {
    "style": "get closer to the references",
    "trigger": "show more of what the trigger stands for",
    "effect": "change",
}
"""The measure of what is wanted -> what images do that gain in it."""


def describe_spot(
    answer: Answer,
    ends: Sequence[float],
    best: float,
    knees: Mapping[str, Any],
    reasons: str,
    is_open: bool,
) -> str:
    """Return the sentence of a sweet spot with these `ends`, from 0 outwards."""
    where = f"at {ends[0]:g}" if ends[0] == ends[1] else f"from {ends[0]:g} to {ends[1]:g}"
    what = (
        f"Works {where}, best at {best:g}"
        if answer == "works"
        else f"Changes the images {where} while everything holds; the middle is {best:g}"
        if not is_open
        else f"Changes the images {where} while everything holds; {best:g} is enough"
    )
    if knees["breakdown"] is not None:
        until = f"breaks at {knees['breakdown']:g}, where {reasons}"
    elif is_open:
        until = f"nothing breaks up to {ends[1]:g}, and more strength adds little"
    else:
        until = f"beyond {ends[1]:g} the gain is lost"
    visible = f"; visible from {knees['onset']:g}" if knees["onset"] is not None else ""
    return f"{what}{visible}; {until}."


def explain(
    answer: Answer, wanted: str, knees: Mapping[str, Any], reasons: str, end: float, noise_floor: float
) -> str:
    """Return why there is no sweet spot, one sentence.

    `wanted` is the measure of what is wanted, and `end` the last strength tried.
    """
    onset, breakdown = knees["onset"], knees["breakdown"]
    visible = f"The images change from {onset:g} on" if onset is not None else "The images may change"
    match answer:
        case "breaks":
            early = f"; {visible.lower()}" if onset is not None else ""
            return f"Breaks at {breakdown:g}, where {reasons}, before a sweet spot is sure{early}."
        case "no gain":
            until = f" before they break at {breakdown:g}, where {reasons}" if breakdown is not None else ""
            return f"{visible}, but do not get closer to what is wanted{until}."
        case "no change":
            return f"Nothing changes up to {end:g} (noise floor {noise_floor:.2f} seed units)."
        case "rising":
            return f"{visible}, and still {WANTED[wanted]} more and more at {end:g}; nothing breaks yet."
    not_before = format_bound(knees["intervals"]["breakdown"], end)
    return f"{visible}, but these prompts do not tell at which strength it is best; {not_before}."


def describe_means(prompts: int, inside: Sequence[float], breakdown: float | None) -> str:
    """Return the sentence of a provisional answer.

    `inside` are the strengths tried that make most of the change, the one nearest 0 first; `breakdown` is
    the first at which something is lost.
    """
    few = f"{prompts} prompt{'s' * (prompts > 1)} {'are' if prompts > 1 else 'is'} too few for a verdict"
    if not inside:
        seen = "no strength tried at which the images change and everything holds"
    elif len(inside) == 1:
        seen = f"most of the change at {inside[0]:g}"
    else:
        seen = f"most of the change from {inside[0]:g} to {inside[-1]:g}"
    broken = "" if breakdown is None else f", something lost from {breakdown:g} on"
    return f"Provisional: {few}; their means show {seen}{broken}."


def suggest(answer: Answer, wanted: str, prompts: int, further: str | None) -> str | None:
    """Return what would say more, one sentence, or `None`."""
    if answer == "changes":
        return (
            "Whether the change is an improvement was not measured: add reference images. This file names no "
            "tags that its trigger would add."
        )
    if answer in ("rising", "no change"):
        return f"Sweep {further}." if further else "Strengths go no further."
    if answer == "unclear":
        more = [f"more than {prompts} prompts" if prompts < limits.PROMPTS else "more seeds"]
        more += [f"strengths {further}"] if further else []
        return f"Try {' or '.join(more)}."
    if answer == "breaks":
        return f"Sweep {further}."
    return None


def format_headline(report: Mapping[str, Any]) -> str:
    """Return three numbers, such as `Works 2 to 4 · best 3 · breaks at 4.75`; empty without a sweet spot."""
    if not report["sweet_spot"]:
        return ""
    low, high = report["sweet_spot"]
    where = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    verb, best = ("Works", "best") if report.get("answer", "works") == "works" else ("Changes", "middle")
    broken = report["breakdown"]
    until = "no breakdown seen" if broken is None else f"breaks at {broken:g}"
    return f"{verb} {where} · {best} {report['recommended']:g} · {until}"


def format_bound(interval: Interval, end: float) -> str:
    """Return where something breaks, as words, from its interval; `end` is the last strength tried."""
    low, high = interval if end > 0 else interval[::-1]
    if high is None:
        return f"it does not break before {low:g}" if low else f"whether it breaks by {end:g} is open"
    return f"it breaks between {low:g} and {high:g}" if low else f"it breaks by {high:g}"


def format_interval(interval: Interval) -> str:
    """Return an interval, such as `1 to 2`; an open one as `1 or more`, or `-1 or less`."""
    low, high = interval
    if low is None or high is None:
        return f"{high:g} or less" if low is None else f"{low:g} or more"
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def describe_intervals(report: Mapping[str, Any]) -> str:
    """Return the intervals of a report's knees as words, without those that exclude no strength."""
    shown = {
        "onset": "first visible",
        "sweet_spot_low": "starts working",
        "sweet_spot_high": "stops working",
        "breakdown": "breaks",
    }
    ends = report["intervals"]
    return "; ".join(
        f"{word} at {format_interval(ends[name])}"
        for name, word in shown.items()
        if name in ends and tuple(ends[name]) not in ((0, None), (None, 0))
    )


def describe_basis(report: Mapping[str, Any]) -> str:
    """Return what a verdict was measured over, and what it was held against."""
    prompts, seeds = len(report["prompts"]), len(report["seeds"])
    against = "references" if "style" not in report["unmeasured"] else ""
    if not against and "trigger" not in report["unmeasured"]:
        against = "the tags of its trigger"
    held = f", held against {against}" if against else ""
    return f"{prompts} prompts x {seeds} seeds a strength{held}."


def describe_confidence(confidence: float) -> str:
    """Return a confidence in words and as a number, such as `sure (93 %)`."""
    word = "sure" if confidence >= 0.9 else "fairly sure" if confidence >= 0.75 else "not sure"
    return f"{word} ({100 * confidence:.0f} %)"
