"""Describe what a LoRA is: how strongly it acts, how alike its changes are, and towards which words.

The three are CARLoS' strength, consistency and direction (Sarfaty et al. 2025, arXiv 2512.08826): each
prompt and seed gives the vector from the features of the picture without the LoRA to those with it.
Strength is the mean length of these vectors (here `action`, since strength is what the LoRA is used at),
consistency the mean cosine of any two of them, and direction what they have in common, which is told here
in tags. CARLoS' features are CLIP's embedding; these are the statistics that `measure.style_shift` compares,
of the model's own VAE or the network that was chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.sweep.decide import MIN_PROMPTS
from core.sweep.measure import TAG_THRESHOLD
from core.sweep.resample import draw_deviations
from core.sweep.verdict import Range

MAX_WORDS_SHOWN = 6
"""Greatest number of tags that a sentence names in one direction."""


@dataclass(frozen=True, kw_only=True)
class Word:
    """A tag that a LoRA surely makes more or less likely."""

    tag: str
    change: float
    """Mean change of the tag's probability beside strength 0, -1 to 1."""
    low: float
    """Lower end of its interval, which is 95 % sure for all tags together."""
    high: float


@dataclass(frozen=True, kw_only=True)
class Character:
    """What a LoRA is, at one strength."""

    strength: float
    """The strength at which it was measured."""
    action: float
    """Mean length of the shifts, in seed units: 1 is as far as another seed is."""
    consistency: float
    """Mean cosine of two pictures' shifts: 1 is always the same way, 0 no common way."""
    intervals: Mapping[str, Range]
    """95 % intervals of `action` and `consistency`; empty with fewer than `MIN_PROMPTS` prompts."""
    words: tuple[Word, ...] | None
    """The greatest change first; `None` if it was not measured."""
    why: str | None
    """Why intervals or words are missing."""


def describe_character(
    strength: float,
    shifts: np.ndarray,
    tags: Sequence[str] = (),
    at_zero: np.ndarray | None = None,
    at_strength: np.ndarray | None = None,
) -> Character:
    """Return what a LoRA is at one strength.

    `shifts` is (prompts, seeds, width), in seed units; `at_zero` and `at_strength` are the tags'
    probabilities, (prompts, seeds, tags), or `None` if there is no tagger.
    """
    lengths, cosines = np.linalg.norm(shifts, axis=2), compare_shifts(shifts)
    action, consistency = float(lengths.mean()), float(np.clip(cosines.mean(), -1 + 1e-9, 1 - 1e-9))
    intervals, words, why = dict[str, Range](), None, None
    if len(shifts) < MIN_PROMPTS:
        why = f"Intervals and words need at least {MIN_PROMPTS} prompts."
    else:
        # A mean over pairs errs twice as far as the mean of each picture's share in it (Hoeffding 1948).
        errors = _draw_errors(np.stack([lengths, 2 * cosines], axis=2))
        # As a logarithm and as Fisher's z, whose ends cannot leave what is possible.
        intervals = {
            "action": _bound(action * np.exp(errors[:, 0] / (action + 1e-9))),
            "consistency": _bound(np.tanh(np.arctanh(consistency) + errors[:, 1] / (1 - consistency**2))),
        }
        if at_zero is None or at_strength is None:
            why = "No tagger reads this model's images, so words are missing."
        else:
            words = find_words(tags, at_zero, at_strength)
    return Character(
        strength=strength,
        action=round(action, 4),
        consistency=round(consistency, 4),
        intervals=intervals,
        words=words,
        why=why,
    )


def compare_shifts(shifts: np.ndarray) -> np.ndarray:
    """Return each picture's mean cosine with all other pictures' shifts, (prompts, seeds).

    `shifts` is (prompts, seeds, width). A shift of length 0 has no direction and is alike to none.
    """
    flat = shifts.reshape(-1, shifts.shape[2]).astype(float)
    units = flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-12)
    others = units.sum(0) - units
    return ((units * others).sum(1) / (len(units) - 1)).reshape(shifts.shape[:2])


def find_words(tags: Sequence[str], at_zero: np.ndarray, at_strength: np.ndarray) -> tuple[Word, ...]:
    """Return the tags that surely rise or fall, the greatest change first.

    Probabilities are (prompts, seeds, tags). Only tags that are read in some picture count. Their
    intervals hold for all of them together, or among thousands of tags some would rise by chance.

    A tag's deviation is raised by the median of all (Tusher, Tibshirani & Chu 2001): among many tags,
    some differ little over a few prompts by chance alone.
    """
    read = np.maximum(at_zero, at_strength).max((0, 1)) >= TAG_THRESHOLD
    if not read.any():
        return ()
    changes = (at_strength[..., read] - at_zero[..., read]).astype(float)
    names = [tag for tag, is_read in zip(tags, read, strict=True) if is_read]
    means, errors = changes.mean((0, 1)), _draw_errors(changes)
    deviations = errors.std(0)
    scales = deviations + np.median(deviations) + 1e-9
    reach = np.percentile((np.abs(errors) / scales).max(1), 95) * scales
    found = [
        Word(
            tag=tag,
            change=round(float(mean), 4),
            low=round(max(float(mean - half), -1.0), 4),
            high=round(min(float(mean + half), 1.0), 4),
        )
        for tag, mean, half in zip(names, means, reach, strict=True)
        if abs(mean) > half
    ]
    return tuple(sorted(found, key=lambda word: -abs(word.change)))


def _draw_errors(values: np.ndarray) -> np.ndarray:
    """Draw by how much means over prompts and seeds may be wrong, (draws, measures).

    `values` is (prompts, seeds, measures).
    """
    curve = values.transpose(2, 0, 1)
    return draw_deviations({"errors": curve}, np.random.default_rng(0), stretch=True)["errors"]


def format_character(found: Mapping[str, Any]) -> str:
    """Return a report's character as sentences, in plain text."""
    ends = {name: f" ({low:.2g} to {high:.2g})" for name, (low, high) in found["intervals"].items()}
    said = [
        f"At {found['strength']:g} it changes how an image is painted {found['action']:.2g}"
        f"{ends.get('action', '')} times as much as another seed does. "
        f"Consistency {found['consistency']:.2g}{ends.get('consistency', '')}, where 1 is the same change "
        "in every image and 0 no common one."
    ]
    if found["words"] is not None:
        rising, falling = ([word for word in found["words"] if word["change"] * sign > 0] for sign in (1, -1))
        said += [f"Moves towards {_list_words(rising)}."] if rising else []
        said += [f"Moves away from {_list_words(falling)}."] if falling else []
        said += [] if found["words"] else ["No tag surely rises or falls."]
    return " ".join(said + ([found["why"]] if found["why"] else []))


def _list_words(words: Sequence[Mapping[str, Any]]) -> str:
    shown = [
        f"{word['tag']} {word['change']:+.2f} ({word['low']:.2f} to {word['high']:.2f})"
        for word in words[:MAX_WORDS_SHOWN]
    ]
    more = len(words) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _bound(drawn: np.ndarray) -> Range:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return round(float(low), 4), round(float(high), 4)
