"""Solvers on an exact denoiser: their order, their deviation, and a seed that is the same in any batch."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from core.generate.stages.schedules import add_restarts
from core.generate.stages.solvers import SOLVERS, Prediction
from core.schema.samplers import SAMPLERS

MEAN, DEVIATION = 0.5, 0.7
ORDERS = {"Euler": 1, "Heun": 2, "DPM2": 2, "DPM++ 2M": 2, "LMS": 3, "UniPC": 2, "Euler CFG++": 1, "DDIM": 1}
"""Samplers without noise of their own -> their order. UniPC's is 3 but for its first and last step."""
NOISY = [name for name in SAMPLERS if name not in ORDERS and name not in ("LCM", "Restart")]


def predict(x: Tensor, sigma: float) -> Prediction:
    """Denoise exactly where the clean values are normal."""
    share = DEVIATION**2 / (DEVIATION**2 + sigma**2)
    clean = share * x + (1 - share) * MEAN
    return Prediction(clean, clean)


def make_levels(steps: int) -> list[float]:
    return [float(level) for level in np.geomspace(10, 0.2, steps + 1)]


def solve(sampler: str, x: Tensor, levels: Sequence[float], seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    *_, (x, _) = SOLVERS[sampler](
        predict, x, levels, lambda: torch.randn(x.shape, generator=rng, dtype=x.dtype)
    )
    return x


@pytest.mark.parametrize("sampler", ORDERS)
def test_the_error_falls_by_the_order(sampler: str) -> None:
    def error(steps: int) -> float:
        levels = make_levels(steps)
        start = torch.full((1,), 8.0, dtype=torch.float64)
        exact = MEAN + (8 - MEAN) * math.hypot(DEVIATION, levels[-1]) / math.hypot(DEVIATION, levels[0])
        scale = math.hypot(1, levels[-1]) if sampler == "UniPC" else 1
        return abs(float(solve(sampler, start, levels)) * scale - exact)

    assert error(160) < 1e-2
    assert math.log2(error(80) / error(160)) > ORDERS[sampler] - 0.3


@pytest.mark.parametrize("sampler", NOISY)
def test_noise_on_the_way_keeps_the_pictures_deviation(sampler: str) -> None:
    levels = make_levels(200)
    start = MEAN + math.hypot(DEVIATION, 10) * torch.randn(
        200_000, generator=torch.Generator().manual_seed(1)
    )
    made = solve(sampler, start, levels)
    assert float(made.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(made.std()) == pytest.approx(math.hypot(DEVIATION, 0.2), rel=0.02)


def test_restart_keeps_the_pictures_deviation() -> None:
    levels = add_restarts([*(float(level) for level in np.geomspace(10, 0.03, 200)), 0.0])
    start = MEAN + math.hypot(DEVIATION, 10) * torch.randn(
        200_000, generator=torch.Generator().manual_seed(1)
    )
    made = solve("Restart", start, levels)
    assert float(made.std()) == pytest.approx(DEVIATION, rel=0.02)


def test_lcm_goes_all_the_way_and_back() -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(8, generator=rng)
    made = solve("LCM", torch.ones(8), [10.0, 2.0])
    assert torch.equal(made, predict(torch.ones(8), 10.0).clean + 2.0 * noise)


@pytest.mark.parametrize("sampler", ["Euler CFG++", "Euler a CFG++"])
def test_cfgpp_renoises_with_what_the_unguided_prediction_leaves(sampler: str) -> None:
    x, clean, unguided = torch.full((4,), 5.0), torch.full((4,), 1.0), torch.full((4,), 3.0)
    ((made, _),) = SOLVERS[sampler](
        lambda x, sigma: Prediction(clean, unguided), x, [4.0, 2.0], lambda: torch.zeros(4)
    )
    down = {"Euler CFG++": 2.0, "Euler a CFG++": 2.0 * 2.0 / 4.0}[sampler]
    assert torch.allclose(made, clean + (x - unguided) / 4.0 * down)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(sampler: str) -> None:
    """Bit for bit, with a generator for each picture."""
    levels = [*make_levels(24), 0.0]
    levels = add_restarts(levels) if sampler == "Restart" else levels
    start = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(1)) * levels[0]

    def run(places: Sequence[int]) -> Tensor:
        rngs = [torch.Generator().manual_seed(place) for place in places]
        *_, (made, _) = SOLVERS[sampler](
            predict,
            start[list(places)],
            levels,
            lambda: torch.stack([torch.randn((4, 8, 8), generator=rng) for rng in rngs]),
        )
        return made

    together = run([0, 1, 2])
    for place in range(3):
        assert torch.equal(together[place : place + 1], run([place]))
