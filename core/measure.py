"""Pictures against the strength-0 picture of the same seed and prompt: each measure one pure function.

Distances are in units of what another seed changes, so that a number means the same for every model, size and prompt,
and are bounded, so that one broken picture does not swamp the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image

from core.events import Look, Spread
from core.masks import Box

FARTHEST = 10.0
"""Seed units that a distance is bounded to: past the cliff, how far is of no interest."""
SURE = 0.5
"""Probability from which a tag counts as read."""
OUTSIDE = 0.005
"""Share of strength 0's latents that lie beyond each end of the range that is called its own."""

Levels = Sequence[Spread]


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What the strength-0 pictures say of distances."""

    scales: tuple[np.ndarray, ...]
    """For each level, what its channels usually deviate by, (channels,)."""
    style_unit: float
    """Median `style_distance` of two seeds of one prompt, at strength 0."""
    layout_unit: float
    """Median `layout_distance` of the same."""
    floor: float
    """Noise floor in seed units: median effect of encoding and decoding a picture by the VAE, which is no change to anybody."""
    low: np.ndarray
    """Of the latents, (4, 1, 1): where strength 0's range begins."""
    high: np.ndarray
    """Where it ends."""


def yardstick(base: Mapping[tuple[str, int], Look]) -> Yardstick:
    """From the strength-0 looks by (prompt, seed); at least one prompt has two seeds."""
    looks = list(base.values())
    scales = tuple(np.median([spread(level)[1] for level in levels], axis=0) + 1e-6 for levels in zip(*(look.levels for look in looks), strict=True))
    pairs = [(base[a], base[b]) for a, b in combinations(base, 2) if a[0] == b[0]]
    style = float(np.median([style_distance(a.levels, b.levels, scales) for a, b in pairs])) + 1e-9
    layout = float(np.median([layout_distance(a.levels, b.levels) for a, b in pairs])) + 1e-9
    latents = np.concatenate([look.latents.astype(np.float32).reshape(4, -1) for look in looks if look.latents is not None], axis=1)
    low, high = np.quantile(latents, [OUTSIDE, 1 - OUTSIDE], axis=1)
    echoes = [_rms(style_distance(look.echo, look.levels, scales) / style, layout_distance(look.echo, look.levels) / layout) for look in looks if look.echo]
    return Yardstick(scales, style, layout, float(np.median(echoes)), low[:, None, None], high[:, None, None])


def spread(level: Spread, weights: np.ndarray | None = None) -> Spread:
    """Mean and deviation of each channel over a level's parts, (channels,) twice; `weights` (16, 16) says which parts count."""
    mean, deviation = (each.astype(np.float32).reshape(len(each), -1) for each in level)
    share = np.full(mean.shape[1], 1.0) if weights is None else weights.ravel() + 1e-9
    share = share / share.sum()
    whole = mean @ share
    return whole, np.sqrt(np.maximum((mean**2 + deviation**2) @ share - whole**2, 0))


def style_distance(a: Levels, b: Levels, scales: Sequence[np.ndarray], weights: np.ndarray | None = None) -> float:
    """How differently two pictures are painted, wherever things are.

    sqrt(mean over levels of mean over channels of ((m - m') / scale)^2 + (log s - log s')^2), with m and s a channel's mean
    and deviation: the statistics of Huang & Belongie 2017, the deviations by their ratio since they span decades.
    """
    return float(np.linalg.norm(style_shift(a, b, scales, weights)))


def style_shift(a: Levels, b: Levels, scales: Sequence[np.ndarray], weights: np.ndarray | None = None) -> np.ndarray:
    """The same as a vector from `b` to `a`, whose length is the distance: which way the style went."""
    found = []
    for one, other, scale in zip(a, b, scales, strict=True):
        (m1, s1), (m2, s2) = spread(one, weights), spread(other, weights)
        ratio = np.log((s1 + 0.01 * scale) / (s2 + 0.01 * scale))
        found += [((m1 - m2) / scale) / np.sqrt(len(scale)), ratio / np.sqrt(len(scale))]
    return np.concatenate(found) / np.sqrt(len(scales))


def layout_distance(a: Levels, b: Levels) -> float:
    """How differently two pictures are laid out: 1 - `likeness`."""
    return 1 - likeness(a, b)


def likeness(a: Levels, b: Levels) -> float:
    """Correlation, over the parts of the picture, of where the channels are active (layout) and where they vary (edges); the mean of both and all levels.

    Each channel's own mean is taken away first, so that a change of palette is none of layout.
    """
    found = []
    for one, other in zip(a, b, strict=True):
        (m1, s1), (m2, s2) = ([part.astype(np.float32) for part in level] for level in (one, other))
        typical = m1.std((1, 2), keepdims=True) + m2.std((1, 2), keepdims=True) + 1e-6
        found.append(_correlation(m1 / typical, m2 / typical))
        if not (s1.any() and s2.any()):  # a level of 16 x 16: nothing varies within a part
            continue
        quiet = 0.05 * (s1.mean((1, 2), keepdims=True) + s2.mean((1, 2), keepdims=True)) + 1e-6
        found.append(_correlation(np.log(s1 + quiet), np.log(s2 + quiet)))
    return float(np.mean(found))


def effect(look: Look, base: Look, yard: Yardstick, weights: np.ndarray | None = None) -> float:
    """What the LoRA does to a picture, in seed units, 0 to `FARTHEST`: root mean square of the style and the layout distance.

    With `weights`, in a part of the picture: the style distance there.
    """
    style = style_distance(look.levels, base.levels, yard.scales, weights) / yard.style_unit
    if weights is not None:
        return min(style, FARTHEST)
    return _rms(style, layout_distance(look.levels, base.levels) / yard.layout_unit)


def style(look: Look, references: Sequence[Look], yard: Yardstick) -> float:
    """Likeness to the wanted style, 0 to 1: 1 / (1 + mean style distance to the references in seed units)."""
    return 1 / (1 + float(np.mean([style_distance(look.levels, each.levels, yard.scales) for each in references])) / yard.style_unit)


def followed(shifts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How far styles went the wanted way, (n,): 1 is as far as `wanted` on average, 0 not at all. Both are (n, width), of the same n items.

    Each is held against the other items' way alone, since an item's own is alike in what it shows, too.
    """
    others = (wanted.sum(0) - wanted) / (len(wanted) - 1)
    return (shifts * others).sum(1) / ((others**2).sum(1) + 1e-12)


def composition(look: Look, base: Look) -> float:
    """Layout and edges kept, 0 to 1: `likeness` to the strength-0 picture."""
    return max(0.0, likeness(look.levels, base.levels))


def prompt(read: Mapping[str, float], at_zero: Mapping[str, float], asked: Sequence[str]) -> float | None:
    """Share of the prompt's tags that are read at strength 0 and still are; `None` if none of them is known or read there."""
    there = [tag for tag in asked if at_zero.get(tag, 0.0) >= SURE]
    return sum(read[tag] >= SURE for tag in there) / len(there) if there else None


def detail(picture: Image.Image, base: Image.Image) -> float:
    """Fine texture and sharpness of lines, beside those of strength 0: 1 is as much, 0 none; at most `FARTHEST`.

    Ratio of mean |x - mean of its four neighbours| of the grey picture.
    """
    return min(_fine(picture) / (_fine(base) + 1e-6), FARTHEST)


def saturation(look: Look, yard: Yardstick) -> float:
    """Share of latents beyond the range of 99 % of strength 0's, 0 to 1: burnt and oversaturated pictures leave it."""
    assert look.latents is not None, "only a picture that was made here has latents"
    values = look.latents.astype(np.float32)
    return float(np.mean((values < yard.low) | (values > yard.high)))


def inside(boxes: Sequence[Box], size: tuple[int, int], parts: int) -> np.ndarray:
    """Share of each of parts x parts of a picture of `size` (width, height) that lies in a box, (parts, parts)."""
    fine = 8  # samples a side in each part
    y, x = ((np.arange(parts * fine) + 0.5) / (parts * fine) * side for side in size[::-1])
    within = np.zeros((parts * fine, parts * fine), bool)
    for left, top, right, bottom in boxes:
        within |= ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None]
    return within.reshape(parts, fine, parts, fine).mean((1, 3))


def _rms(style: float, layout: float) -> float:
    return min(float(np.sqrt((style**2 + layout**2) / 2)), FARTHEST)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two (channels, h, w), each channel about its own mean."""
    a, b = (each - each.mean((1, 2), keepdims=True) for each in (a, b))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-12))


def _fine(picture: Image.Image) -> float:
    x = np.asarray(picture.convert("L"), np.float32) / 255
    around = (x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]) / 4
    return float(np.abs(x[1:-1, 1:-1] - around).mean())
