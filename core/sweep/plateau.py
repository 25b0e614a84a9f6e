"""Decide over points without an order: at which everything holds, and which gain about as much as any.

The means of other prompts and seeds are drawn (`core.sweep.resample`). On the plateau everything holds in
nearly all draws, and the gain is near to the greatest. One definition for numbers and names, for one axis
and for two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.sweep.decide import LEVEL, MIN_PROMPTS
from core.sweep.knees import HELD_RANGES, LEAST_GAINS, SWEET_SPOT_SHARE
from core.sweep.resample import Curve, average_curve, count_prompts, draw_deviations

PlateauAnswer = Literal[
    "works", "changes", "holds", "no gain", "no change", "breaks", "unclear", "provisional", "too little"
]
"""What a study of axes found.

- `works`: some points surely gain, and those on the plateau gain about as much as any;
- `changes`: the same, of any change that a LoRA makes;
- `holds`: nothing says what is wanted; on the plateau everything holds;
- `no gain`: no point surely gains over the reference;
- `no change`: nothing beyond the noise floor;
- `breaks`: something surely does not hold at any point but the reference;
- `unclear`: these pictures do not tell;
- `provisional`: means of too few prompts for a verdict;
- `too little`: nothing was measured.
"""


@dataclass(frozen=True, kw_only=True)
class PointVerdict:
    """What is known of one point."""

    gain: float | None = None
    """Of the measure that is wanted, over the reference; `None` where nothing is."""
    interval: tuple[float, float] | None = None
    """Of the gain. The intervals of all points hold together in 95 % of the draws; `None` for one prompt."""
    lost: tuple[str, ...]
    """What surely does not hold, such as `prompt falls`."""
    holds: float
    """Share of the draws in which everything holds."""
    chance: float
    """Share of the draws in which the point is on the plateau."""


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """The verdict over points, which are told by their numbers; point 0 is the reference."""

    answer: PlateauAnswer
    wanted: str | None
    """The measure of the gain; `None` where there is none."""
    points: tuple[PointVerdict, ...] = ()
    plateau: tuple[int, ...] = ()
    """The points at which everything surely holds and whose mean gain is near to the greatest.

    Empty unless the answer is `works`, `changes` or `holds`.
    """
    confidence: Mapping[int, float]
    """Point of the plateau -> the chance that it is on that of another set of prompts and seeds."""


@dataclass(frozen=True, eq=False)
class _Draws:
    """Means of n draws, (n, points)."""

    gain: np.ndarray
    lost: Mapping[str, np.ndarray]
    holds: np.ndarray
    is_in: np.ndarray


def find_plateau(curves: Mapping[str, Curve], noise_floors: np.ndarray, wanted: str | None) -> Plateau:
    """Find the plateau of the points, the first of which is the reference.

    `curves` has `effect`, the measure that is `wanted` and those of `HELD_RANGES` where they were measured,
    each (points, prompts, seeds); NaN marks what was not measured. `noise_floors`, (prompts, seeds), is the
    effect of what changes nothing visible; where nobody knows it, it counts as nothing.
    """
    points, prompts, _ = curves["effect"].shape
    noise_floors = np.zeros_like(noise_floors) if np.isnan(noise_floors).all() else noise_floors
    # A single prompt's measure has no deviation between prompts, and so no interval.
    used = {name: curve for name, curve in curves.items() if count_prompts(curve) >= min(2, prompts)}
    means = {name: average_curve(curve) for name, curve in used.items()}
    floor = float(average_curve(noise_floors[None])[0])
    together = {**used, "noise floor": noise_floors[None]}
    nothing = {name: np.zeros((1, points)) for name in used} | {"noise floor": np.zeros((1, 1))}

    def draw(seed: int, stretch: bool) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return draw_deviations(together, rng, stretch=stretch) if prompts > 1 else nothing

    def place(deviations: Mapping[str, np.ndarray]) -> _Draws:
        floors = np.maximum(0.0, floor + deviations["noise floor"])
        return _place_points({name: means[name] + deviations[name] for name in means}, floors, wanted)

    stretched = draw(0, True)
    drawn = place(stretched)
    found = place(nothing)
    gain, reach = found.gain[0], _bound_together(drawn.gain - found.gain)
    low, high = gain - reach, gain + reach
    is_known = wanted is not None
    verdicts = tuple(
        PointVerdict(
            gain=float(gain[i]) if is_known else None,
            interval=(float(low[i]), float(high[i])) if is_known and prompts > 1 else None,
            lost=tuple(name for name, out in drawn.lost.items() if out[:, i].mean() >= LEVEL),
            holds=float(drawn.holds[:, i].mean()),
            chance=float(drawn.is_in[:, i].mean()),
        )
        for i in range(points)
    )
    plateau = tuple(i for i, each in enumerate(verdicts) if each.holds >= LEVEL and found.is_in[0, i])
    if prompts < MIN_PROMPTS:
        return Plateau(answer="provisional", wanted=wanted, points=verdicts, confidence={})
    one, other = draw(1, False), draw(2, False)
    again = place({name: one[name] + other[name] for name in one})
    floors = np.maximum(0.0, floor + stretched["noise floor"][:, 0])
    least = float(_calculate_least_gain(wanted, {name: mean[None] for name, mean in means.items()})[0, 0])
    alive = [i for i in range(1, points) if not verdicts[i].lost]
    answer: PlateauAnswer
    if np.mean((means["effect"] + stretched["effect"]).max(1) <= floors) >= (1 + LEVEL) / 2:
        answer = "no change"
    elif not alive:
        answer = "breaks"
    elif wanted is None:
        answer = "holds" if any(plateau) else "unclear"
    elif any(low[i] > 0 and gain[i] >= least for i in plateau):
        answer = "changes" if wanted == "effect" else "works"
    elif wanted == "effect":
        answer = "unclear"
    else:
        answer = "no gain" if all(high[i] < least for i in alive) else "unclear"
    if answer not in ("works", "changes", "holds"):
        return Plateau(answer=answer, wanted=wanted, points=verdicts, confidence={})
    return Plateau(
        answer=answer,
        wanted=wanted,
        points=verdicts,
        plateau=plateau,
        confidence={i: float(again.is_in[:, i].mean()) for i in plateau},
    )


def _place_points(means: Mapping[str, np.ndarray], floors: np.ndarray, wanted: str | None) -> _Draws:
    """Return which points of n draws are on the plateau; `means` are (n, points), `floors` (n, 1).

    At these everything holds, and the gain is at least 60 % of the greatest one at which everything holds,
    or too near to it for anybody to see the difference. A gain in effect must be above the noise floor.
    """
    lost = {}
    for name, (least, most) in HELD_RANGES.items():
        if name in means:
            lost[f"{name} falls"], lost[f"{name} rises"] = means[name] < least, means[name] > most
    holds = np.ones(means["effect"].shape, bool)
    for out in lost.values():
        holds &= ~out
    holds[:, 0] = True  # the others are measured against the reference
    if wanted is None:
        return _Draws(gain=np.zeros(holds.shape), lost=lost, holds=holds, is_in=holds)
    gain = means[wanted] - means[wanted][:, :1]
    best = np.where(holds, gain, -np.inf).max(1, keepdims=True)
    unseen = _calculate_least_gain(wanted, means)
    is_in = holds & (gain >= best - np.maximum(unseen, (1 - SWEET_SPOT_SHARE) * best))
    if wanted == "effect":
        is_in &= gain > floors
    return _Draws(gain=gain, lost=lost, holds=holds, is_in=is_in)


def _calculate_least_gain(wanted: str | None, means: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the least gain that counts, (draws, 1)."""
    share = LEAST_GAINS.get(wanted or "", 0.0)
    return share * (means["style"][:, :1] if wanted == "style" else np.ones((len(means["effect"]), 1)))


def _bound_together(deviations: np.ndarray) -> np.ndarray:
    """Return how far each point's gain may be off, (points,), so that all are right in 95 % of the draws.

    `deviations` are (draws, points).
    """
    spread = deviations.std(0)
    far = np.abs(deviations) / np.maximum(spread, 1e-9)
    return np.quantile(far.max(1), LEVEL) * spread


def choose_best(plateau: Plateau, positions: Sequence[tuple[float | str, ...]]) -> int | None:
    """Return the point of the plateau to recommend; `None` without a plateau.

    `positions` has for each point its place on each axis: the place among the numbers, or a name. Of the
    name that gains most, it is the point nearest to the middle of the plateau: the greatest gain of many is
    often luck.
    """
    if not plateau.plateau:
        return None

    def split(number: int) -> tuple[tuple[str, ...], np.ndarray]:
        names = tuple(place for place in positions[number] if isinstance(place, str))
        return names, np.array([place for place in positions[number] if not isinstance(place, str)])

    first = max(plateau.plateau, key=lambda number: plateau.points[number].gain or 0.0)
    alike = [number for number in plateau.plateau if split(number)[0] == split(first)[0]]
    middle = np.mean([split(number)[1] for number in alike], axis=0)
    return min(alike, key=lambda number: float(((split(number)[1] - middle) ** 2).sum()))
