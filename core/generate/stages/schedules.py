"""Noise schedules: which noise levels a picture goes through, from the model's own levels and the steps.

A level is k-diffusion's sigma: the deviation of the noise on a picture whose own scale is 1. The
formulas are those by which A1111 1.10 (`modules/sd_schedulers.py`) and k-diffusion name them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from diffusers import DDPMScheduler

from core.schema.samplers import AUTOMATIC, SAMPLERS

LAST_SIGNAL = 4.8973451890853435e-08
"""A1111's signal at the last level of a model with zero terminal SNR, which would have no sigma."""
KARRAS_RHO = 7.0  # arXiv 2206.00364
BETA_SHAPE = 0.6  # arXiv 2407.12173
LCM_LEVELS = 50  # arXiv 2310.04378
ALIGN_YOUR_STEPS = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""NVIDIA's levels for SDXL, https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html"""
RESTART_TO, RESTART_FROM = 2.0, 0.1
"""Restart goes from the lower level back to the higher one (arXiv 2306.14878)."""

Levels = np.ndarray
"""Noise levels (n,), float64."""


def find_model_levels(config: Any) -> Levels:
    """Return a model's own noise levels, ascending, from its scheduler's `config`."""
    scheduler = DDPMScheduler.from_config(config)
    assert isinstance(scheduler, DDPMScheduler)
    signal = scheduler.alphas_cumprod.double().numpy()
    if config.get("rescale_betas_zero_snr"):
        signal[-1] = LAST_SIGNAL
    return np.sqrt((1 - signal) / signal)


def sigma_at(model: Levels, timestep: Any) -> Any:
    """Return the level at a timestep, log-linear between the model's own."""
    return np.exp(np.interp(timestep, np.arange(len(model)), np.log(model)))


def timestep_at(model: Levels, sigma: float) -> float:
    """Return the timestep of a level, log-linear between the model's own and not beyond them."""
    return float(np.interp(np.log(sigma), np.log(model), np.arange(len(model))))


def build_levels(sampler: str, schedule: str, model: Levels, steps: int) -> list[float]:
    """Return the levels that a sampler goes through in `steps` steps, descending, mostly to 0.

    `DDIM` has a step more where 1000 is no multiple of the steps, as in A1111.
    """
    traits = SAMPLERS[sampler]
    make = FORMULAS[traits.schedule if schedule == AUTOMATIC else schedule]
    levels = [float(level) for level in make(model, steps + traits.skips_level)]
    return [*levels[:-2], levels[-1]] if traits.skips_level else levels


def add_restarts(levels: list[float]) -> list[float]:
    """Return the levels of Restart: from one near 0.1 it goes back up to one near 2, once or twice.

    That takes the place of other steps: from 20 steps on, 9 of them, from 36 on, half. As published
    with A1111, the others then follow Karras. The levels are ascending where noise is added.
    """
    steps = len(levels) - 1
    if steps < 20:
        return levels
    again, times = (9, 1) if steps < 36 else (steps // 4, 2)
    main = _space_by_power(levels[0], levels[-2], steps - again * times)
    low = int(np.abs(main - RESTART_FROM).argmin())
    high = int(np.abs(main - RESTART_TO).argmin())
    if high >= low:
        return [*main]
    turn = _space_by_power(main[high], main[low], again + 1)[:-1]
    return [float(level) for level in (*main[: low + 1], *np.tile(turn, times), *main[low + 1 :])]


def _end_at_zero(levels: Any) -> Levels:
    return np.append(levels, 0.0)


def _space_by_power(high: float, low: float, count: int) -> Levels:
    first, last = high ** (1 / KARRAS_RHO), low ** (1 / KARRAS_RHO)
    return _end_at_zero(np.linspace(first, last, count) ** KARRAS_RHO)


def _karras(model: Levels, steps: int) -> Levels:
    return _space_by_power(model[-1], model[0], steps)


def _exponential(model: Levels, steps: int) -> Levels:
    return _end_at_zero(np.exp(np.linspace(np.log(model[-1]), np.log(model[0]), steps)))


def _normal(model: Levels, steps: int) -> Levels:
    return _end_at_zero(sigma_at(model, np.linspace(len(model) - 1, 0, steps)))


def _sgm_uniform(model: Levels, steps: int) -> Levels:
    return _end_at_zero(sigma_at(model, np.linspace(len(model) - 1, 0, steps + 1)[:-1]))


def _simple(model: Levels, steps: int) -> Levels:
    stride = len(model) / steps
    return _end_at_zero([model[-1 - int(i * stride)] for i in range(steps)])


def _ddim(model: Levels, steps: int) -> Levels:
    if _has_no_signal(model):  # a leading spacing would never see the last level
        return _end_at_zero([model[round(len(model) * (1 - i / steps)) - 1] for i in range(steps)])
    return _end_at_zero(model[1 :: max(1, len(model) // steps)][::-1])


def _beta(model: Levels, steps: int) -> Levels:
    return _end_at_zero(model[0] + _beta_quantiles(np.linspace(1, 0, steps)) * (model[-1] - model[0]))


def _align_your_steps(model: Levels, steps: int) -> Levels:
    known = np.log(ALIGN_YOUR_STEPS)
    levels = np.exp(np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(known)), known))
    if _has_no_signal(model):
        levels[0] = model[-1]
    return _end_at_zero(levels)


def _unipc(model: Levels, steps: int) -> Levels:
    """UniPC's own spacing in A1111: uniform in time down to the model's first level, which stays."""
    return sigma_at(model, np.linspace(len(model) - 1, 0, steps + 1))


def _lcm(model: Levels, steps: int) -> Levels:
    """LCM's own spacing in A1111: over the 50 levels that a model is distilled at."""
    stride = len(model) // LCM_LEVELS
    return _normal(model[stride - 1 :: stride], steps)


def _has_no_signal(model: Levels) -> bool:
    """Whether the model has zero terminal SNR."""
    return bool(model[-1] > 1000)


def _beta_quantiles(p: np.ndarray) -> np.ndarray:
    """Return the quantiles `p` of the symmetric beta distribution of `BETA_SHAPE`, to about 1e-15."""
    tail = np.minimum(p, 1 - p)
    low, high = np.zeros_like(p), np.full_like(p, 0.5)
    half = _incomplete_beta(high)
    for _ in range(60):
        middle = (low + high) / 2
        is_low = _incomplete_beta(middle) < 2 * tail * half
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    return np.where(p > 0.5, 1 - low, low)


def _incomplete_beta(x: np.ndarray) -> np.ndarray:
    """Return the incomplete beta function of `BETA_SHAPE` for x up to 0.5, by its power series."""
    total, term = np.zeros_like(x), np.ones_like(x)
    for n in range(60):
        total += term / (BETA_SHAPE + n)
        term = term * (n + 1 - BETA_SHAPE) / (n + 1) * x
    return x**BETA_SHAPE * total


FORMULAS: dict[str, Callable[[Levels, int], Levels]] = {
    "Karras": _karras,
    "Exponential": _exponential,
    "Polyexponential": _exponential,  # the same at k-diffusion's and A1111's rho of 1
    "SGM Uniform": _sgm_uniform,
    "Simple": _simple,
    "Normal": _normal,
    "Beta": _beta,
    "DDIM": _ddim,
    "Align Your Steps": _align_your_steps,
    "UniPC": _unipc,
    "LCM": _lcm,
}
"""What a schedule computes; the last two are spacings of one sampler's own."""
