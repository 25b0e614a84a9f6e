"""Find where curves over strength turn: onset, both ends of the sweet spot, and breakdown.

One definition for the means and for each draw of them. Between the strengths that were tried, a curve
is taken as straight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SWEET_SPOT_SHARE = 0.6
"""A strength in the sweet spot has at least this share of the greatest gain before breakdown."""
HELD_RANGES = {
    "prompt": (0.85, np.inf),
    "composition": (0.35, np.inf),
    "detail": (0.4, 2.5),
    "saturation": (-np.inf, 0.1),
}
"""Measure -> least and greatest mean that still holds.

Composition: two pictures of different prompts share about a quarter, of one prompt three quarters.
"""
LEAST_GAINS = {"style": 0.05, "trigger": 0.05, "effect": 0.0}
"""Least gain that counts: in likeness to the references, as a share of that without the LoRA; in the
probability of the trigger's tags. The effect's is the noise floor, which onset asks for.

Likeness is a share, since how near images are to references depends on what else both show.
"""
PARTS = 20
"""Into how many parts a step between two strengths is divided."""

Means = Mapping[str, np.ndarray]
"""Measure -> means, (draws, strengths)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Knees:
    """Where each of n draws of the curves turns, (n,) strengths each; NaN where it does not."""

    onset: np.ndarray
    """From here to breakdown the effect is above the noise floor."""
    low: np.ndarray
    """From here most of the reachable gain is there, and everything holds."""
    high: np.ndarray
    """Until here; NaN where that is beyond the last strength."""
    breakdown: np.ndarray
    """From here something does not hold, for a step at least."""
    is_open: np.ndarray
    """(n,) bool: whether there is a sweet spot that goes on at the last strength."""


def choose_gain(measures: Mapping[str, object]) -> str:
    """Return the measure of what is wanted: likeness to references, the trigger's tags, or any effect."""
    return next(name for name in LEAST_GAINS if name in measures)


def calculate_gain(means: Means) -> np.ndarray:
    """Return the gain over strength 0, (draws, strengths)."""
    wanted = means[choose_gain(means)]
    return wanted - wanted[:, :1]


def calculate_least_gain(means: Means) -> np.ndarray:
    """Return the least gain that counts, (draws,)."""
    name = choose_gain(means)
    return LEAST_GAINS[name] * (means[name][:, 0] if name == "style" else np.ones(len(means[name])))


def find_knees(strengths: Sequence[float], means: Means, noise_floor: np.ndarray) -> Knees:
    """Find the knees of n draws of the curves. `strengths` rise from 0; `noise_floor` is (n,)."""
    at, fine = _divide_steps(np.asarray(strengths, float)), {k: _divide_steps(v) for k, v in means.items()}
    places = np.arange(len(at))
    lost = np.zeros(fine["effect"].shape, bool)
    for name, (least, most) in HELD_RANGES.items():
        if name in fine:  # NaN, not measured, holds
            lost |= (fine[name] < least) | (fine[name] > most)
    lost[:, 0] = False
    # Lost for a step without a gap; what is lost and comes back was chance.
    so_far = np.concatenate([np.zeros((len(lost), 1), int), lost.cumsum(1)], axis=1)
    until = np.minimum(places + PARTS, len(at) - 1)
    lasts = so_far[:, until + 1] - so_far[:, places] == until - places + 1
    breakdown = np.where(lasts.any(1), lasts.argmax(1), len(at))
    before = places < breakdown[:, None]
    quiet = (fine["effect"] <= noise_floor[:, None]) & before
    onset = np.where(quiet.any(1), len(at) - quiet[:, ::-1].argmax(1), 1)
    gain = calculate_gain(fine)
    candidates = before & (places >= onset[:, None]) & ~lost
    reach = np.where(candidates, gain, -np.inf).max(1)
    works = candidates & (gain >= SWEET_SPOT_SHARE * reach[:, None])
    has_spot = np.isfinite(reach) & (reach > 0) & (reach >= calculate_least_gain(fine))
    low = works.argmax(1)
    ended = ~works & (places > low[:, None])
    high = np.where(ended.any(1), ended.argmax(1) - 1, len(at))

    def locate(indices: np.ndarray, found: np.ndarray) -> np.ndarray:
        return np.where(found, at[np.minimum(indices, len(at) - 1)], np.nan)

    return Knees(
        onset=locate(onset, onset < np.minimum(breakdown, len(at))),
        low=locate(low, has_spot),
        high=locate(high, has_spot & (high < len(at))),
        breakdown=locate(breakdown, breakdown < len(at)),
        is_open=has_spot & (high >= len(at)),
    )


def _divide_steps(values: np.ndarray) -> np.ndarray:
    """Return the values with those between two strengths, the last axis `PARTS` times as long."""
    places = np.arange((values.shape[-1] - 1) * PARTS + 1) / PARTS
    left = np.minimum(places.astype(int), values.shape[-1] - 2)
    share = places - left
    # A strength that was tried takes nothing from the next, which may not be measured.
    return np.where(
        share > 0, values[..., left] * (1 - share) + values[..., left + 1] * share, values[..., left]
    )
