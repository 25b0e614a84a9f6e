"""Tell whether two LoRAs get along: what both together do beyond the sum of what each does alone.

Of each prompt and seed there are four pictures: without a LoRA, with each, and with both. Styles are vectors
(`core.sweep.measure.style_shift`), so that shifts can be added. What another seed's shift does not share is
chance: the square of a length is the product of the shifts of two seeds of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.sweep.decide import LEVEL, MIN_PROMPTS
from core.sweep.knees import SWEET_SPOT_SHARE
from core.sweep.plateau import PointVerdict
from core.sweep.resample import average_curve, draw_deviations

MUCH_INTERACTION = 0.5
"""Two LoRAs do not get along if surely more than this share of what both do is beyond their sum."""

PairAnswer = Literal["get along", "fight", "unclear", "provisional", "too little"]
"""What the four pictures of each prompt and seed tell.

- `get along`: surely each keeps most of its own style and everything holds, and nothing says that much is
  beyond the sum;
- `fight`: surely a LoRA loses most of its style, or both lose something while surely each alone holds;
- `unclear`: these pictures do not tell;
- `provisional`: means of too few prompts for a verdict;
- `too little`: nothing was measured.
"""
Share = tuple[float, float, float]
"""A share, and the ends of its interval."""


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """How two LoRAs get along; what was not measured is `None`."""

    answer: PairAnswer
    beyond_sum: Share | None = None
    """Length of shift(A + B) - shift(A) - shift(B), relative to those of shift(A) and shift(B) together.

    0 is the sum; 1 is as much as both; below 0 is chance. It is not relative to the length of the sum, which
    is 0 for two that cancel.
    """
    kept: tuple[Share, Share] | None = None
    """How much of each LoRA's own shift is in the pictures with both: 1 is all of it."""
    alike: float | None = None
    """Cosine between both shifts: 1 is the same style, -1 the opposite, 0 nothing in common."""
    lost: tuple[str, ...] = ()
    """What surely does not hold with both, such as `prompt falls`; told where each alone surely holds."""


def find_interaction(shifts: np.ndarray, alone: Sequence[PointVerdict], both: PointVerdict) -> Interaction:
    """Find how two LoRAs get along, over at least two seeds.

    `shifts`, (3, prompts, seeds, width), are those of the first LoRA, of the second, and of both together;
    `alone` and `both` say what holds there.
    """
    if shifts.shape[1] < 2:
        return Interaction(answer="provisional")
    # Prompts count alike: a flat background answers ten times as much as a busy one.
    lengths = np.linalg.norm(shifts[:2], axis=3).sum(0).mean(1)
    first, second, together = shifts / np.maximum(lengths, 1e-9)[:, None, None]
    beyond = together - first - second
    lines = np.stack(
        [
            _multiply(first, first),
            _multiply(second, second),
            _multiply(together, first),
            _multiply(together, second),
            _multiply(beyond, beyond),
        ]
    )
    mean = average_curve(lines)
    drawn = mean + draw_deviations({"lengths": lines}, np.random.default_rng(0), stretch=True)["lengths"]
    # A row for the means, then one for each draw.
    a, b, a_in_both, b_in_both, rest = np.concatenate([mean[None], drawn]).T
    beyond_sum = _bound_share(_root(rest), _root(a) + _root(b))
    kept = _bound_share(a_in_both, a), _bound_share(b_in_both, b)
    # What may be lost alone is no loss by both: one share of 94 % beside another of 95 % tells nothing.
    lost = both.lost if all(each.holds >= LEVEL for each in alone) else ()
    answer: PairAnswer
    if shifts.shape[1] < MIN_PROMPTS:
        answer = "provisional"
    elif lost or any(high < SWEET_SPOT_SHARE for _, _, high in kept):
        answer = "fight"
    elif (
        all(low >= SWEET_SPOT_SHARE for _, low, _ in kept)
        and both.holds >= LEVEL
        and beyond_sum[1] <= MUCH_INTERACTION
    ):
        answer = "get along"
    else:
        answer = "unclear"
    one, other = first.mean((0, 1)), second.mean((0, 1))
    alike = float(one @ other) / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12)
    return Interaction(answer=answer, beyond_sum=beyond_sum, kept=kept, alike=alike, lost=lost)


def _multiply(shifts: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return each picture's shift times the mean of `others` over the prompt's other seeds, (prompts, seeds).

    Both arguments are (prompts, seeds, width). Its own seed, whose chance would count as length, is left out.
    """
    rest = (others.sum(1, keepdims=True) - others) / (others.shape[1] - 1)
    return (shifts * rest).sum(2)


def _root(squares: np.ndarray) -> np.ndarray:
    """Return lengths of their squares, which chance may bring below 0."""
    return np.sign(squares) * np.sqrt(np.abs(squares))


def _bound_share(part: np.ndarray, whole: np.ndarray) -> Share:
    """Return the share of one length in another, and its interval.

    Both are (1 + draws,): of the means, then of each draw. A draw in which the whole has no length could be
    any share.
    """
    known = whole > 1e-9
    shares = part / np.where(known, whole, 1.0)
    tail = (1 - LEVEL) / 2
    low = np.quantile(np.where(known, shares, -np.inf)[1:], tail, method="lower")
    high = np.quantile(np.where(known, shares, np.inf)[1:], 1 - tail, method="higher")
    return (float(shares[0]) if known[0] else np.nan), float(low), float(high)
