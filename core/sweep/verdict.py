"""A sweep's verdict: where a LoRA works, how sure that is, and what would make it surer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Range = tuple[float, float]
Interval = tuple[float | None, float | None]
"""Two strengths that were tried, rising; `None` stands for a place beyond the last one from 0."""

Answer = Literal[
    "works", "changes", "rising", "no change", "no gain", "breaks", "unclear", "provisional", "too little"
]
"""What a sweep found.

- `works`: a range in which most of what is wanted is there, and everything holds;
- `changes`: the same, of any change: without references or a trigger's tags, change is all that is seen;
- `rising`: more strength surely adds more;
- `no change`: nothing beyond the noise floor;
- `no gain`: the images change, but not towards what is wanted;
- `breaks`: something is lost before most of the gain is surely there;
- `unclear`: these pictures do not tell;
- `provisional`: curves of too few prompts for a verdict;
- `too little`: not even curves.
"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Where a LoRA works. What was not seen is `None`, and `why` says it."""

    answer: Answer
    onset: float | None = None
    """Least strength tried from which, up to breakdown, the mean effect is above the noise floor.

    That there is one is sure; where it may lie is its interval.
    """
    sweet_spot: Range | None = None
    """First and last strength tried at which most of the gain is there and everything holds."""
    breakdown: float | None = None
    """Least strength tried from which the mean of a measure of `HELD_RANGES` does not hold.

    That something breaks is sure; where that may be is its interval.
    """
    recommended: float | None = None
    """The strength tried that lies nearest to the middle of the sweet spot.

    In a sweet spot without an end, the least that is nearly as sure as any.
    """
    confidence: float = 0.0
    """The chance that the sweet spot of another set of prompts and seeds holds the recommended strength."""
    intervals: Mapping[str, Interval]
    """Intervals of `onset`, `sweet_spot_low`, `sweet_spot_high` and `breakdown`, claimed or not.

    They are rounded outwards to strengths that were tried.
    """
    why: str
    """The reason for the verdict, one sentence."""
    surer: str | None = None
    """What would say more, one sentence."""
    next: str | None = None
    """Strengths to try next, as text; `None` if nothing is missing."""
    is_settled: bool = False
    """Whether more prompts would hardly change the verdict."""
