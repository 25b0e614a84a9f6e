"""Solvers: from noise down a list of levels to a picture, each a small function of the levels.

A latent at level `sigma` is the clean one plus `sigma` times noise of deviation 1, as in Karras et al.
(arXiv 2206.00364) and k-diffusion, with which `tests/bench/samplers.py` compares. A solver gets the
model, the first latents, the levels (descending, mostly to 0) and a function that draws noise of the
latents' shape; after each step it yields the latents and the clean ones that the model predicted.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Prediction(NamedTuple):
    """What the model takes for the clean latents."""

    clean: Tensor
    unguided: Tensor
    """Without the prompt; the same as `clean` where there is no guidance."""


Model = Callable[[Tensor, float], Prediction]
"""Predicts from latents and their level."""
Draw = Callable[[], Tensor]
Steps = Iterator[tuple[Tensor, Tensor]]
Solver = Callable[[Model, Tensor, Sequence[float], Draw], Steps]


def solve_euler(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """Euler's method; DDIM (arXiv 2010.02502, eta 0) is the same over its own levels."""
    for sigma, to in pairwise(levels):
        clean = model(x, sigma).clean
        x = _move(x, clean, sigma, to)
        yield x, clean


def solve_euler_ancestral(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """Euler's method to below the next level, and noise back up to it."""
    for sigma, to in pairwise(levels):
        clean = model(x, sigma).clean
        down, up = split_ancestral(sigma, to)
        x = _add_noise(_move(x, clean, sigma, down), up, draw)
        yield x, clean


def solve_heun(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """Heun's method. Where the levels rise, as Restart's do (arXiv 2306.14878), noise is added instead."""
    for sigma, to in pairwise(levels):
        if to > sigma:
            x = _add_noise(x, math.sqrt(to**2 - sigma**2), draw)
            continue
        clean = model(x, sigma).clean
        ahead = _move(x, clean, sigma, to)
        if to > 0:
            slope = (x - clean) / sigma
            x = x + (slope + (ahead - model(ahead, to).clean) / to) / 2 * (to - sigma)
        else:
            x = ahead
        yield x, clean


def solve_lms(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """Linear multistep method (Adams-Bashforth over uneven levels), of order 4 at most."""
    slopes: list[Tensor] = []
    for i, (sigma, to) in enumerate(pairwise(levels)):
        clean = model(x, sigma).clean
        slopes = [(x - clean) / sigma, *slopes[:3]]
        known = levels[i - len(slopes) + 1 : i + 1][::-1]
        for j, slope in enumerate(slopes):
            others = [at for k, at in enumerate(known) if k != j]
            basis = np.poly1d(others, r=True) / math.prod(known[j] - at for at in others)
            integral = basis.integ()
            x = x + float(integral(to) - integral(sigma)) * slope
        yield x, clean


def solve_dpm2(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """DPM-Solver-2 (arXiv 2206.00927) as Karras et al. write it: the slope at the geometric mean."""
    for sigma, to in pairwise(levels):
        clean = model(x, sigma).clean
        x = _move_by_middle_slope(model, x, clean, sigma, to)
        yield x, clean


def solve_dpm2_ancestral(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """DPM2 to below the next level, and noise back up to it."""
    for sigma, to in pairwise(levels):
        clean = model(x, sigma).clean
        down, up = split_ancestral(sigma, to)
        x = _add_noise(_move_by_middle_slope(model, x, clean, sigma, down), up, draw)
        yield x, clean


def solve_dpmpp_2s_ancestral(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """DPM-Solver++(2S) (arXiv 2211.01095) to below the next level, and noise back up to it."""
    for sigma, to in pairwise(levels):
        clean = seen = model(x, sigma).clean
        down, up = split_ancestral(sigma, to)
        if down > 0:
            middle = math.sqrt(sigma * down)
            clean = model(_move(x, seen, sigma, middle), middle).clean
        x = _add_noise(_move(x, clean, sigma, down), up, draw)
        yield x, seen


def solve_dpmpp_sde(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """DPM-Solver++(2S) of the stochastic equation.

    The noise of the half step is a part of the whole step's: a Brownian motion in sigma.
    """
    for sigma, to in pairwise(levels):
        clean = model(x, sigma).clean
        if to == 0:
            x = clean
        else:
            middle = math.sqrt(sigma * to)
            half = draw()
            down, up = split_ancestral(sigma, middle)
            aim = model(_move(x, clean, sigma, down) + up * half, middle).clean
            share = (sigma - middle) / (sigma - to)
            whole = math.sqrt(share) * half + math.sqrt(1 - share) * draw()
            down, up = split_ancestral(sigma, to)
            x = _move(x, aim, sigma, down) + up * whole
        yield x, clean


def solve_dpmpp_2m(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """DPM-Solver++(2M) (arXiv 2211.01095)."""
    before: tuple[Tensor, float] | None = None
    for sigma, to in pairwise(levels):
        clean = aim = model(x, sigma).clean
        if before and to > 0:
            aim = clean + (clean - before[0]) * math.log(sigma / to) / (2 * math.log(before[1] / sigma))
        x = _move(x, aim, sigma, to)
        before = clean, sigma
        yield x, clean


def solve_dpmpp_2m_sde(
    model: Model, x: Tensor, levels: Sequence[float], draw: Draw, heun: bool = False
) -> Steps:
    """DPM-Solver++(2M) of the stochastic equation, by the midpoint or by Heun's method."""
    before: tuple[Tensor, float] | None = None
    for sigma, to in pairwise(levels):
        clean = model(x, sigma).clean
        kept = (to / sigma) ** 2
        moved = _blend(x, clean, kept)
        if before and to > 0:
            h, h_before = math.log(sigma / to), math.log(before[1] / sigma)
            weight = 1 - (1 - kept) / (2 * h) if heun else (1 - kept) / 2
            moved = moved + weight * h / h_before * (clean - before[0])
        x = _add_noise(moved, to * math.sqrt(1 - kept), draw)
        before = clean, sigma
        yield x, clean


def solve_dpmpp_2m_sde_heun(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """DPM-Solver++(2M) of the stochastic equation by Heun's method."""
    return solve_dpmpp_2m_sde(model, x, levels, draw, heun=True)


def solve_dpmpp_3m_sde(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """DPM-Solver++(3M) of the stochastic equation: differences of three predictions in log sigma."""
    seen: list[tuple[Tensor, float]] = []
    for sigma, to in pairwise(levels):
        clean = model(x, sigma).clean
        seen = [(clean, sigma), *seen[:2]]
        kept = (to / sigma) ** 2
        moved = _blend(x, clean, kept)
        if len(seen) > 1 and to > 0:
            h = math.log(sigma / to)
            phi_2 = 1 - (1 - kept) / (2 * h)
            first = (clean - seen[1][0]) * (h / math.log(seen[1][1] / sigma))
            if len(seen) == 2:
                moved = moved + phi_2 * first
            else:
                r0, r1 = (math.log(far[1] / near[1]) / h for near, far in pairwise(seen))
                further = (seen[1][0] - seen[2][0]) / r1
                second = (first - further) / (r0 + r1)
                moved = moved + phi_2 * (first + second * r0) - (phi_2 / (2 * h) - 0.5) * second
        x = _add_noise(moved, to * math.sqrt(1 - kept), draw)
        yield x, clean


def solve_unipc(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """UniPC (arXiv 2302.04867) of order 3 with B(h) = h, predictor and corrector, as A1111 sets it.

    What noise its own levels leave stays; the latents are then in the model's own scale.
    """
    count = len(levels) - 1
    seen: list[tuple[Tensor, float]] = []
    start = x
    for i, (sigma, to) in enumerate(pairwise(levels)):
        clean = model(x, sigma).clean
        if seen:  # what the model says here corrects the step that led here
            x = _step_unipc(start, seen[: min(3, i, count - i + 1)], sigma, clean)
        seen = [(clean, sigma), *seen[:2]]
        start = x
        order = min(3, i + 1, count - i)
        x = _step_unipc(start, seen[:order], to, None) if to > 0 else clean
        yield (x / math.hypot(1, to) if i + 1 == count else x), clean


def _step_unipc(x: Tensor, seen: Sequence[tuple[Tensor, float]], to: float, arrived: Tensor | None) -> Tensor:
    """Move by the predictions `seen` (newest first) to the level `to`; the corrector knows `arrived`, too."""
    newest, sigma = seen[0]
    h = math.log(sigma / to)
    points = [math.log(sigma / level) / h for _, level in seen[1:]]
    differences = [(clean - newest) / at for (clean, _), at in zip(seen[1:], points, strict=True)]
    if arrived is not None:
        points, differences = [*points, 1.0], [*differences, arrived - newest]
    x = _move(x, newest, sigma, to)
    if not points:
        return x
    right, phi = [], math.expm1(-h) / -h - 1
    for k in range(1, len(points) + 1):
        right.append(phi * math.factorial(k) / -h)
        phi = phi / -h - 1 / math.factorial(k + 1)
    # The published code takes 1/2 for one difference, whatever h is.
    weights = [0.5] if len(points) == 1 else np.linalg.solve(np.vander(points, increasing=True).T, right)
    for weight, difference in zip(weights, differences, strict=True):
        x = x + h * float(weight) * difference
    return x


def solve_lcm(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """Latent consistency (arXiv 2310.04378): the whole way to the clean latents, and noise back."""
    for sigma, to in pairwise(levels):
        clean = model(x, sigma).clean
        x = _add_noise(clean, to, draw)
        yield x, clean


def solve_euler_cfgpp(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """Euler's method with CFG++ (arXiv 2406.08070): the noise is what the unguided prediction leaves."""
    for sigma, to in pairwise(levels):
        clean, unguided = model(x, sigma)
        x = clean + (x - unguided) * (to / sigma)
        yield x, clean


def solve_euler_ancestral_cfgpp(model: Model, x: Tensor, levels: Sequence[float], draw: Draw) -> Steps:
    """Euler's method with CFG++ to below the next level, and noise back up to it."""
    for sigma, to in pairwise(levels):
        clean, unguided = model(x, sigma)
        down, up = split_ancestral(sigma, to)
        x = _add_noise(clean + (x - unguided) * (down / sigma), up, draw)
        yield x, clean


def split_ancestral(sigma: float, to: float) -> tuple[float, float]:
    """Split a step: the level that it goes down to, and the noise that brings it to `to` again."""
    up = min(to, to * math.sqrt(sigma**2 - to**2) / sigma)
    return math.sqrt(to**2 - up**2), up


def _blend(x: Tensor, clean: Tensor, kept: float) -> Tensor:
    return kept * x + (1 - kept) * clean if kept else clean


def _move(x: Tensor, clean: Tensor, sigma: float, to: float) -> Tensor:
    """Move from a level to another, as is exact for a prediction that does not change."""
    return _blend(x, clean, to / sigma)


def _move_by_middle_slope(model: Model, x: Tensor, clean: Tensor, sigma: float, to: float) -> Tensor:
    if to == 0:
        return _move(x, clean, sigma, to)
    middle = math.sqrt(sigma * to)
    halfway = _move(x, clean, sigma, middle)
    return x + (halfway - model(halfway, middle).clean) / middle * (to - sigma)


def _add_noise(x: Tensor, deviation: float, draw: Draw) -> Tensor:
    """Add noise; none is drawn for a deviation of 0."""
    return x + deviation * draw() if deviation else x


SOLVERS: dict[str, Solver] = {
    "Euler a": solve_euler_ancestral,
    "Euler": solve_euler,
    "DPM++ 2M": solve_dpmpp_2m,
    "DPM++ SDE": solve_dpmpp_sde,
    "DPM++ 2M SDE": solve_dpmpp_2m_sde,
    "DPM++ 2M SDE Heun": solve_dpmpp_2m_sde_heun,
    "DPM++ 3M SDE": solve_dpmpp_3m_sde,
    "DPM++ 2S a": solve_dpmpp_2s_ancestral,
    "Heun": solve_heun,
    "LMS": solve_lms,
    "DPM2": solve_dpm2,
    "DPM2 a": solve_dpm2_ancestral,
    "UniPC": solve_unipc,
    "DDIM": solve_euler,
    "LCM": solve_lcm,
    "Restart": solve_heun,
    "Euler CFG++": solve_euler_cfgpp,
    "Euler a CFG++": solve_euler_ancestral_cfgpp,
}
"""Names of `core.schema.samplers` -> what they compute."""
