"""Measure pictures against the strength-0 picture of the same seed and prompt.

Each measure is one pure function. Distances are in seed units, that is, relative to what another
seed changes, so that a number means the same for every model, size and prompt. They are bounded, so
that one broken picture does not swamp the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image

from core.generate.stages.masks import Box
from core.schema.events import Features, LevelStatistics

MAX_DISTANCE = 10.0
"""Bound of a distance in seed units: how far past the cliff a picture is does not matter."""
TAG_THRESHOLD = 0.5
"""Probability from which a tag counts as read."""
TAIL_SHARE = 0.005
"""Share of strength 0's latents that lie beyond each end of what counts as its range."""

Levels = Sequence[LevelStatistics]
Item = tuple[str, int]
"""A prompt and a seed."""


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Units for distances, taken from the strength-0 pictures."""

    scales: tuple[np.ndarray, ...]
    """For each level, what its channels usually deviate by, (channels,)."""
    style_unit: float
    """Median `style_distance` of two seeds of one prompt at strength 0.

    At least that of a VAE round trip, as for the layout: a model whose seeds are nearly alike would
    otherwise count what nobody sees.
    """
    layout_unit: float
    """Median `layout_distance` of two seeds of one prompt at strength 0."""
    noise_floors: Mapping[Item, float]
    """Effect, in seed units, of a VAE round trip of each picture, which changes nothing visible."""
    low: np.ndarray
    """Lower end of the range of strength 0's latents, (4, 1, 1)."""
    high: np.ndarray
    """Upper end of the range of strength 0's latents, (4, 1, 1)."""


def build_yardstick(base: Mapping[Item, Features]) -> Yardstick:
    """Return the yardstick of the strength-0 features by (prompt, seed).

    At least one prompt must have two seeds.
    """
    looks = list(base.values())
    scales = tuple(
        np.median([spread(level)[1] for level in levels], axis=0) + 1e-6
        for levels in zip(*(look.levels for look in looks), strict=True)
    )
    pairs = [(base[a], base[b]) for a, b in combinations(base, 2) if a[0] == b[0]]
    seeds = [
        (style_distance(a.levels, b.levels, scales), layout_distance(a.levels, b.levels)) for a, b in pairs
    ]
    echoes = {
        item: (
            style_distance(look.vae_roundtrip, look.levels, scales),
            layout_distance(look.vae_roundtrip, look.levels),
        )
        for item, look in base.items()
        if look.vae_roundtrip
    }
    units = np.median(seeds, axis=0) + 1e-9
    if echoes:
        units = np.maximum(units, np.median(list(echoes.values()), axis=0))
    style, layout = map(float, units)
    latents = np.concatenate(
        [look.latents.astype(np.float32).reshape(4, -1) for look in looks if look.latents is not None], axis=1
    )
    low, high = np.quantile(latents, [TAIL_SHARE, 1 - TAIL_SHARE], axis=1)
    floors = {item: _rms(echo[0] / style, echo[1] / layout) for item, echo in echoes.items()}
    return Yardstick(scales, style, layout, floors, low[:, None, None], high[:, None, None])


def spread(level: LevelStatistics, weights: np.ndarray | None = None) -> LevelStatistics:
    """Return mean and deviation of each channel over a level's parts, (channels,) each.

    `weights`, (16, 16), is how much each part counts; without it, all count the same.
    """
    mean, deviation = (each.astype(np.float32).reshape(len(each), -1) for each in level)
    share = np.full(mean.shape[1], 1.0) if weights is None else weights.ravel() + 1e-9
    share = share / share.sum()
    whole = mean @ share
    return whole, np.sqrt(np.maximum((mean**2 + deviation**2) @ share - whole**2, 0))


def style_distance(
    a: Levels, b: Levels, scales: Sequence[np.ndarray], weights: np.ndarray | None = None
) -> float:
    """Return how differently two pictures are painted, wherever things are.

    sqrt(mean over levels of mean over channels of ((m - m') / scale)^2 + (log s - log s')^2), with
    m and s a channel's mean and deviation: the statistics of Huang & Belongie 2017, with the
    deviations compared by their ratio because they span decades.
    """
    return float(np.linalg.norm(style_shift(a, b, scales, weights)))


def style_shift(
    a: Levels, b: Levels, scales: Sequence[np.ndarray], weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the vector from the style of `b` to that of `a`; its length is `style_distance`.

    Its direction is the way the style went.
    """
    found = []
    for one, other, scale in zip(a, b, scales, strict=True):
        (m1, s1), (m2, s2) = spread(one, weights), spread(other, weights)
        ratio = np.log((s1 + 0.01 * scale) / (s2 + 0.01 * scale))
        found += [((m1 - m2) / scale) / np.sqrt(len(scale)), ratio / np.sqrt(len(scale))]
    return np.concatenate(found) / np.sqrt(len(scales))


def layout_distance(a: Levels, b: Levels) -> float:
    """Return how differently two pictures are laid out: 1 - `likeness`."""
    return 1 - likeness(a, b)


def likeness(a: Levels, b: Levels) -> float:
    """Return the likeness of two pictures' layouts: a correlation over the parts of the picture.

    It is the mean, over all levels, of two correlations: of where the channels are active (layout),
    and of where they vary (edges).

    Each channel's own mean is subtracted first, so that a change of palette is no change of layout.
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


def effect(
    features: Features, base: Features, yardstick: Yardstick, weights: np.ndarray | None = None
) -> float:
    """Return what the LoRA does to a picture, in seed units, 0 to `MAX_DISTANCE`.

    It is the root mean square of the style and the layout distance; with `weights`, the style
    distance in the part of the picture that they select.
    """
    style = style_distance(features.levels, base.levels, yardstick.scales, weights) / yardstick.style_unit
    if weights is not None:
        return min(style, MAX_DISTANCE)
    return _rms(style, layout_distance(features.levels, base.levels) / yardstick.layout_unit)


def style(features: Features, references: Sequence[Features], yardstick: Yardstick) -> float:
    """Return the likeness to the wanted style, 0 to 1.

    1 / (1 + mean style distance to the references in seed units).
    """
    return 1 / (
        1
        + float(
            np.mean([style_distance(features.levels, each.levels, yardstick.scales) for each in references])
        )
        / yardstick.style_unit
    )


def shift_projection(shifts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return how far styles went in the wanted direction, (n,): 0 is not at all.

    1 is as far as `wanted` goes on average. Both arguments are (n, width), of the same n items.

    Each item is compared with the direction of the other items alone: its own is also alike in what
    it shows.
    """
    others = (wanted.sum(0) - wanted) / (len(wanted) - 1)
    return (shifts * others).sum(1) / ((others**2).sum(1) + 1e-12)


def composition(features: Features, base: Features) -> float:
    """Return how much of layout and edges is kept, 0 to 1: `likeness` to the strength-0 picture."""
    return max(0.0, likeness(features.levels, base.levels))


def prompt(
    tags: Mapping[str, float], tags_at_zero: Mapping[str, float], prompt_tags: Sequence[str]
) -> float | None:
    """Return the share of the prompt's tags read at strength 0 that are still read.

    `None` if none of the prompt's tags is known or read at strength 0.
    """
    there = [tag for tag in prompt_tags if tags_at_zero.get(tag, 0.0) >= TAG_THRESHOLD]
    return sum(tags[tag] >= TAG_THRESHOLD for tag in there) / len(there) if there else None


def detail(picture: Image.Image, base: Image.Image) -> float:
    """Return fine texture and sharpness of lines relative to those of strength 0.

    1 is as much, 0 none; at most `MAX_DISTANCE`. It is the ratio of mean |x - mean of its four
    neighbours| of the grey pictures.
    """
    return min(_sharpness(picture) / (_sharpness(base) + 1e-6), MAX_DISTANCE)


def saturation(features: Features, yardstick: Yardstick) -> float:
    """Return the share of latents outside the range of 99 % of strength 0's latents, 0 to 1.

    Burnt and oversaturated pictures leave that range.
    """
    assert features.latents is not None, "only a picture that was made here has latents"
    values = features.latents.astype(np.float32)
    return float(np.mean((values < yardstick.low) | (values > yardstick.high)))


def box_coverage(boxes: Sequence[Box], size: tuple[int, int], parts: int) -> np.ndarray:
    """Return the share of each part of a picture that lies in a box, (parts, parts).

    `size` is the picture's (width, height) in pixels.
    """
    fine = 8  # samples per side of each part
    y, x = ((np.arange(parts * fine) + 0.5) / (parts * fine) * side for side in size[::-1])
    within = np.zeros((parts * fine, parts * fine), bool)
    for left, top, right, bottom in boxes:
        within |= ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None]
    return within.reshape(parts, fine, parts, fine).mean((1, 3))


def _rms(style: float, layout: float) -> float:
    return min(float(np.sqrt((style**2 + layout**2) / 2)), MAX_DISTANCE)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two (channels, h, w), each channel about its own mean."""
    a, b = (each - each.mean((1, 2), keepdims=True) for each in (a, b))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-12))


def _sharpness(picture: Image.Image) -> float:
    x = np.asarray(picture.convert("L"), np.float32) / 255
    around = (x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]) / 4
    return float(np.abs(x[1:-1, 1:-1] - around).mean())
