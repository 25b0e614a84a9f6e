"""Say in words what a study of axes, or of two LoRAs, found."""

import math
from collections.abc import Sequence
from itertools import groupby

from core.schema import limits
from core.sweep.axes import Axis, Value, format_point, format_value
from core.sweep.axes_study import AxesStudy
from core.sweep.interaction import Interaction, Share
from core.sweep.knees import SWEET_SPOT_SHARE
from core.sweep.plateau import Plateau

WANTED = {
    "style": "likeness to the references",
    "trigger": "what the trigger stands for",
    "effect": "change",
}
MAX_LOSSES = 4
"""Values that a sentence names as lost."""


def explain_plateau(study: AxesStudy) -> str:
    """Return why a study's verdict is what it is, one sentence or two."""
    found = study.plateau
    if found is None:
        total = len(study.strengths) * len(study.items)
        return f"Stopped: {len(study.pictures)} of {total} images are finished."
    plan = study.axes_plan
    base = format_point(plan.axes, plan.points[0])
    best = study.recommended
    where = _describe_plateau(study, found)
    match found.answer:
        case "works":
            told = f"Best {where}: {_describe_gain(found, best)} over {base}"
        case "changes":
            told = f"Changes the images most, while everything holds, {where}"
        case "holds":
            told = f"Everything holds {where}, compared with {base}"
        case "no gain":
            told = f"No value surely gains over {base} in {WANTED[str(found.wanted)]}"
        case "no change":
            told = f"Nothing changes beyond the noise floor, compared with {base}"
        case "breaks":
            told = f"Something is lost at every value but {base}"
        case "too little":
            return "Needs at least 2 seeds to tell a change from chance."
        case "provisional":
            many = len(study.prompts)
            return f"Provisional: {many} prompt{'s are' if many > 1 else ' is'} too few for a verdict."
        case _:
            told = "These prompts do not tell which value is best"
    return f"{told}{_describe_losses(plan.axes, study)}."


def suggest_plateau(found: Plateau, prompts: int) -> str | None:
    """Return what would say more, one sentence, or `None`."""
    match found.answer:
        case "holds" | "changes":
            return (
                "Whether a change is an improvement was not measured: add reference images. No LoRA's file "
                "names tags that its trigger would add."
            )
        case "unclear" | "provisional" | "no gain":
            return suggest_more(prompts)
    return None


def suggest_more(prompts: int) -> str:
    """Return what would tell more than so many prompts, one sentence."""
    return f"Try more than {prompts} prompts." if prompts < limits.PROMPTS else "Try more seeds."


def explain_interaction(found: Interaction, names: Sequence[str]) -> str:
    """Return how two LoRAs of these names get along, one sentence or two."""
    match found.answer:
        case "too little":
            return "Needs at least 2 seeds to tell a change from chance."
        case "get along":
            told = "Get along: each keeps its style, and everything holds"
        case "fight":
            faded = [
                f"{name} keeps {_format_share(share)} of its style"
                for name, share in zip(names, found.kept or (), strict=False)
                if share[2] < SWEET_SPOT_SHARE
            ]
            told = f"Fight: {' and '.join([*faded, *(f'{word} with both' for word in found.lost)])}"
        case "provisional":
            told = "Provisional: too few prompts for a verdict"
        case _:
            told = "Unclear: these prompts do not tell whether they get along"
            weak = [
                name for name, share in zip(names, found.kept or (), strict=False) if share[2] == math.inf
            ]
            if weak:
                told = f"Unclear: {' and '.join(dict.fromkeys(weak))} alone changes too little to tell"
    if found.beyond_sum is None or found.kept is None:
        return f"{told}."
    kept = " and ".join(_format_share(share) for share in found.kept)
    beyond = _format_share(found.beyond_sum)
    return f"{told}. Beyond the sum of both: {beyond}; of their own styles they keep {kept}."


def _describe_plateau(study: AxesStudy, found: Plateau) -> str:
    """Return where the plateau is, such as `at CFG 4 to 7`."""
    plan, best = study.axes_plan, study.recommended
    inside = [plan.points[number] for number in found.plateau]
    if len(plan.axes) == 1:
        axis = plan.axes[0]
        tried = [point[0] for point in plan.points]
        told = f"at {axis.label} {_describe_values(axis, tried, [point[0] for point in inside])}"
        return (
            told
            if best is None or len(inside) == 1
            else f"{told}, such as {format_value(plan.points[best][0])}"
        )
    such = "" if best is None else f", such as {format_point(plan.axes, plan.points[best])}"
    return f"at {len(inside)} of {len(plan.points)} points{such}"


def _describe_gain(found: Plateau, number: int | None) -> str:
    """Return the gain of a point with its interval, such as `likeness to the references +0.05 (...)`."""
    assert number is not None, "a plateau that works has a point to recommend"
    point = found.points[number]
    low, high = point.interval or (point.gain, point.gain)
    return f"{WANTED[str(found.wanted)]} {point.gain:+.2f} ({low:+.2f} to {high:+.2f})"


def _describe_values(axis: Axis, tried: Sequence[Value], inside: Sequence[Value]) -> str:
    """Return values as words: names with commas, numbers as ranges of neighbours among those tried."""
    if axis.has_names:
        return ", ".join(map(format_value, inside))
    order = sorted(tried, key=float)
    runs = groupby(order, key=lambda value: value in inside)
    ranges = [list(values) for is_in, values in runs if is_in]
    return ", ".join(
        format_value(each[0]) if len(each) == 1 else f"{format_value(each[0])} to {format_value(each[-1])}"
        for each in ranges
    )


def _describe_losses(axes: Sequence[Axis], study: AxesStudy) -> str:
    """Return what is surely lost where, for one axis; empty for two, whose map shows it."""
    assert study.plateau is not None
    points = zip(study.axes_plan.points, study.plateau.points, strict=False)
    lost = [f"at {format_value(point[0])} {' and '.join(told.lost)}" for point, told in points if told.lost]
    if len(axes) > 1 or not lost:
        return ""
    more = f" and {len(lost) - MAX_LOSSES} more" if len(lost) > MAX_LOSSES else ""
    return f"; {', '.join(lost[:MAX_LOSSES])}{more}"


def _format_share(share: Share) -> str:
    """Return a share and its interval in percent."""
    middle, low, high = share
    if not math.isfinite(high - low):
        return "an unknown share"
    return f"{round(100 * middle)} % ({round(100 * low)} to {round(100 * high)})"
