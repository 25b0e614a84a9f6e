"""Place the strengths of a sweep: by how much single calls of the model change, and beyond those tried.

Over eight LoRAs of nano, pictures began to change visibly where single calls of the U-Net changed by 3 to
7 %, and broke where they changed by 19 to 79 %; one that changes the last layer only began at 22 %. The
norms of the weights' changes would have placed them no nearer than a factor of 17. Strengths are in equal
ratio, since LoRAs differ by factors.
"""

import math
from collections.abc import Mapping, Sequence

FIRST_STRENGTHS = 12
"""Strengths of a first pass, 0 among them."""
SEARCHED_CHANGES = (0.03, 0.9)
"""Relative changes of single calls between which a first pass lies: nothing shows, and all is lost."""
LEAST_RATIO = 1.1
"""Neighbours differ by at least this factor: what is closer looks the same."""
STRENGTH_DECIMALS = 3
"""Strengths that are equal to this many decimals count as one."""


def place_strengths(changes: Mapping[float, float]) -> list[float]:
    """Return the strengths of a first pass in rising order, 0 among them.

    `changes` has the relative change of single calls at each strength that a probe tried; all strengths have
    one sign, and the greatest that is allowed is among them. The pass goes in equal ratio from the last
    strength below the first of `SEARCHED_CHANGES` to the first beyond the second, or to the greatest allowed.
    """
    tried = sorted(changes, key=abs)
    below, beyond = SEARCHED_CHANGES
    end = next((at for at in tried if changes[at] >= beyond), tried[-1])
    start = next((at for at in reversed(tried[: tried.index(end)]) if changes[at] < below), tried[0])
    steps = min(FIRST_STRENGTHS - 2, int(math.log(end / start, LEAST_RATIO) + 0.5))
    return sorted({0.0, *_divide_range(start, end, max(1, steps))})


def extend_strengths(strengths: Sequence[float], limit: float) -> list[float]:
    """Return strengths to try beyond the last of `strengths`, the nearest first; none if it is the limit.

    They go on in nearly the ratio of the last two, to the limit or to twice the last one, so that not much is
    tried beyond a breakdown. `limit` is the greatest strength that is allowed; where it is negative, the
    strengths below 0 go on.
    """
    *before, last = sorted((at for at in strengths if at * limit > 0), key=abs)
    end = min(2 * last, limit, key=abs)
    if abs(last) >= abs(end):
        return []
    ratio = max(last / before[-1] if before else 2.0, LEAST_RATIO)
    return _divide_range(last, end, max(1, round(math.log(end / last, ratio))))[1:]


def explain_no_strengths(changes: Mapping[float, float]) -> str | None:
    """Return why a LoRA needs no sweep, from the changes of `place_strengths`; `None` if it needs one."""
    least, greatest = min(changes, key=abs), max(changes, key=abs)
    below, beyond = SEARCHED_CHANGES
    if changes[greatest] < below:
        return (
            f"No change: even at {greatest:g}, the greatest strength that is allowed, what the model "
            f"predicts changes by {math.floor(1000 * changes[greatest]) / 10:g} %. "
            f"Below {100 * below:g} %, nothing shows in a picture."
        )
    if changes[least] >= beyond:
        return (
            f"Too strong: even at {least:.3g}, the least strength, what the model predicts changes by more "
            f"than {100 * beyond:g} %, and no picture is left. Rescale the file."
        )
    return None


def _divide_range(start: float, end: float, steps: int) -> list[float]:
    """Return the strengths from `start` to `end` in so many steps of equal ratio, to two digits."""
    ratio = end / start
    placed = (start * ratio ** (step / steps) for step in range(steps + 1))
    return list(dict.fromkeys(round(float(f"{at:.2g}"), STRENGTH_DECIMALS) for at in placed))
