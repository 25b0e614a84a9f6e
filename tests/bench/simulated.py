"""Simulate sweeps whose answer is known: curves of several shapes, with the variance of real pictures.

Shares of variance between prompts, seeds and pictures are those of the built-in model's example LoRA
(12 prompts x 6 seeds, strengths 0 to 5); prompts differ by a factor, and keep their place over strengths.
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from core.sweep.knees import find_knees

END, FLOOR, TAGS = 5.0, 0.2, 6
Curves = dict[str, np.ndarray]


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _saturate(s: np.ndarray) -> np.ndarray:
    return 2 * (1 - np.exp(-((s / 1.3) ** 1.6)))


def _fall(s: np.ndarray, at: float, width: float) -> np.ndarray:
    """Return a share of prompt tags that falls from nearly all to none."""
    return 0.995 * _logistic((at - s) / width)


SHAPES: dict[str, Callable[[np.ndarray], Curves]] = {
    "null": lambda s: {"effect": 0.08 * (1 - np.exp(-s / 2))},
    "line": lambda s: {"effect": 0.35 * s},
    "brightness": lambda s: {"effect": 0.12 * s**1.45},
    "bent": lambda s: {"effect": 2 * (1 - np.exp(-s / 2.9))},
    "plateau": lambda s: {"effect": _saturate(s)},
    "hump": lambda s: {
        "effect": 2.2 * np.exp(-(((s - 2.4) / 1.5) ** 2) / 1.2) * (1 - np.exp(-2 * s))
        + 0.35 * (1 - np.exp(-s))
    },
    "cliff": lambda s: {
        "effect": _saturate(s),
        "prompt": _fall(s, 3.4, 0.12),
        "composition": 0.88 - 0.6 * _logistic((s - 3.5) / 0.2),
    },
    "step": lambda s: {
        "effect": 0.01 * s + 2 * _logistic((s - 1.7) / 0.04),
        "prompt": _fall(s, 3.9, 0.25),
    },
    "sigmoid": lambda s: {
        "effect": 2.6 * (_logistic((s - 1.8) / 0.45) - _logistic(np.array(-4.0))),
        "prompt": _fall(s, 4.3, 0.35),
        "composition": 0.95 - 0.7 * _logistic((s - 4.1) / 0.5),
    },
    "example": lambda s: {
        "effect": 0.9 * s,
        "prompt": 0.998 * _logistic((4.95 - s) / 0.55),
        "composition": np.interp(s, [0, 1, 2, 3, 4, 5, 7], [1, 0.861, 0.722, 0.618, 0.458, 0.261, 0.05]),
        "detail": np.interp(s, [0, 1, 2, 3, 4, 5, 7], [1, 0.834, 0.67, 0.62, 0.6, 0.53, 0.5]),
    },
    "edge": lambda s: {
        "effect": _saturate(s),
        "prompt": 0.995 - 0.12 * np.minimum(s / 2.5, 1),
        "composition": 1 - 0.61 * np.minimum(s / 2.5, 1),
        "detail": 1 - 0.54 * np.minimum(s / 2.5, 1),
        "saturation": 0.01 + 0.07 * np.minimum(s / 2.5, 1),
    },
}
"""Shape -> the true means over strengths; what a shape leaves out hardly changes."""
RISING = ("line", "brightness", "bent")


def calculate_truth(shape: str, strengths: np.ndarray, stretch: float) -> Curves:
    """Return the true means, (strengths,) each; `stretch` stretches the axis."""
    s = np.asarray(strengths, float) / stretch
    usual = {
        "prompt": np.full(s.shape, 0.995),
        "composition": 1 - 0.12 * np.minimum(s / END, 1),
        "detail": 1 - 0.1 * np.minimum(s / END, 1),
        "saturation": np.full(s.shape, 0.01),
    }
    return usual | SHAPES[shape](s)


def find_truth(shape: str, stretch: float) -> dict[str, float]:
    """Return the true knees as strengths; infinity is beyond the range."""
    fine = np.arange(0, END + 1e-9, 0.025)  # none of these shapes is lost and comes back
    knees = find_knees(
        list(fine),
        {name: mean[None] for name, mean in calculate_truth(shape, fine, stretch).items()},
        np.array([FLOOR]),
    )
    high = np.nan if knees.is_open[0] else knees.high[0]
    places = (knees.onset[0], knees.low[0], high, knees.breakdown[0])
    names = ("onset", "sweet_spot_low", "sweet_spot_high", "breakdown")
    return {
        name: np.inf if np.isnan(place) else float(place) for name, place in zip(names, places, strict=True)
    }


def draw_sweep(
    shape: str,
    strengths: np.ndarray,
    prompts: int,
    seeds: int,
    rng: np.random.Generator,
    stretch: float = 1.0,
) -> Curves:
    """Draw a sweep, (strengths, prompts, seeds) for each measure."""
    s = np.asarray(strengths, float)
    truth = calculate_truth(shape, s, stretch)
    smooth = {
        length: np.linalg.cholesky(np.exp(-np.abs(s[:, None] - s[None]) / length) + 1e-8 * np.eye(len(s)))
        for length in (10.0, 1.8, 1.0)
    }
    sizes = ((10.0, (prompts, 1)), (1.8, (1, seeds)), (1.8, (prompts, seeds)))
    together = [smooth[length] @ rng.normal(size=(len(s), np.prod(size))) for length, size in sizes]

    def mix(variances: tuple[np.ndarray | float, ...]) -> np.ndarray:
        """Return deviations with these variances between prompts, seeds and pictures.

        Most of each is the same for all measures: what changes more also loses more.
        """
        total = np.zeros((len(s), prompts, seeds))
        for (length, size), shared, variance in zip(sizes, together, variances, strict=True):
            own = smooth[length] @ rng.normal(size=shared.shape)
            part = (0.85 * shared + np.sqrt(1 - 0.85**2) * own).reshape(len(s), *size)
            total = total + np.sqrt(np.broadcast_to(variance, (len(s),)))[:, None, None] * part
        return total

    def column(values: np.ndarray | float) -> np.ndarray:
        return np.broadcast_to(np.asarray(values, float), (len(s),))[:, None, None]

    u = s / END
    effect = ((0.28 + 1.05 * np.exp(-4 * u)) ** 2, (0.1 + 0.15 * np.exp(-4 * u)) ** 2)
    effect = (*effect, (0.2 + 1.2 * np.exp(-4 * u)) ** 2)
    far = np.minimum(np.abs(np.log(truth["detail"])) / 0.4, 1) ** 2
    detail = (0.25 * far, 0.0036 * far, 0.0625 * far)
    kept = np.clip(truth["composition"], 1e-3, 1)
    found = {
        "effect": column(truth["effect"]) * np.exp(mix(effect) - column(sum(effect) / 2)),
        "composition": column(kept) - column(np.sqrt(kept * (1 - kept))) * mix((0.0729, 0.0144, 0.0625)),
        "detail": column(truth["detail"]) * np.exp(mix(detail) - column(sum(detail) / 2)),
        "saturation": column(truth["saturation"]) * np.exp(mix((0.09, 0.04, 0.16)) - 0.145),
    }
    each = smooth[1.0] @ rng.normal(size=(len(s), prompts * seeds * TAGS))
    tags = mix((0.4, 0.1, 0.2))[..., None] + np.sqrt(0.3) * each.reshape(len(s), prompts, seeds, TAGS)
    read = np.array([NormalDist().inv_cdf(float(np.clip(p, 1e-9, 1 - 1e-9))) for p in truth["prompt"]])
    found["prompt"] = (tags < read[:, None, None, None]).mean(-1)
    for name, value in {"effect": 0.0, "prompt": 1.0, "composition": 1.0, "detail": 1.0}.items():
        found[name][s == 0] = value
    return found
