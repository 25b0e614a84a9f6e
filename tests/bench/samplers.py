"""Compare samplers and schedules with k-diffusion: `python tests/bench/samplers.py FOLDER`.

FOLDER holds what Sweetspot does not need: `pip install --no-deps --target FOLDER k-diffusion torchdiffeq
torchsde trampoline scipy`. Each schedule is compared with k-diffusion's, or with A1111's formula over
k-diffusion's levels of SDXL, at 8, 20 and 28 steps; each sampler goes through each schedule on a toy
problem whose exact denoiser is known, beside k-diffusion's with the same noise. Where k-diffusion has no
such sampler: diffusers' UniPC; Heun's method between the restarts; Euler's where CFG++ has no guidance;
LCM's formula. Prints and saves the largest differences, one row for each sampler and schedule.
"""

import importlib
import inspect
import json
import math
import sys
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from core.generate.stages import schedules, solvers  # noqa: E402
from core.schema.samplers import AUTOMATIC, OLD_SCHEDULES, SAMPLERS, SCHEDULES  # noqa: E402
from tests.bench.report import save_report  # noqa: E402

STEPS = (8, 20, 28)
CONFIG = json.loads((ROOT / "core/models/sdxl/scheduler/scheduler_config.json").read_text())
MODEL = schedules.find_model_levels(CONFIG)
PEERS = {
    "Euler a": "sample_euler_ancestral",
    "Euler": "sample_euler",
    "DPM++ 2M": "sample_dpmpp_2m",
    "DPM++ SDE": "sample_dpmpp_sde",
    "DPM++ 2M SDE": "sample_dpmpp_2m_sde",
    "DPM++ 2M SDE Heun": "sample_dpmpp_2m_sde",
    "DPM++ 3M SDE": "sample_dpmpp_3m_sde",
    "DPM++ 2S a": "sample_dpmpp_2s_ancestral",
    "Heun": "sample_heun",
    "LMS": "sample_lms",
    "DPM2": "sample_dpm_2",
    "DPM2 a": "sample_dpm_2_ancestral",
    "DDIM": "sample_euler",
    "Euler CFG++": "sample_euler",
    "Euler a CFG++": "sample_euler_ancestral",
}


def import_peer(folder: str) -> tuple[Any, Any]:
    """Import k-diffusion's samplers and levels without the training code that its package imports."""
    sys.path.append(folder)
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(Path(folder) / "k_diffusion")]
    sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling"), importlib.import_module("k_diffusion.external")


def predict(x: torch.Tensor, sigma: Any) -> torch.Tensor:
    """Denoise exactly where the clean values are -1 and 2 with deviation 0.5, equally often."""
    variance = 0.25 + float(torch.as_tensor(sigma).flatten()[0]) ** 2
    share = torch.sigmoid((3 * x - 1.5) / variance)  # of the mode at 2
    centre = 3 * share - 1
    return centre + 0.25 / variance * (x - centre)


def make_noise(count: int) -> list[torch.Tensor]:
    """Return the noise that both sides draw, in order, float64."""
    rng = torch.Generator().manual_seed(3)
    return [torch.randn((2, 4, 8, 8), generator=rng, dtype=torch.float64) for _ in range(count)]


def solve(sampler: str, levels: list[float]) -> torch.Tensor:
    """Run a solver of ours on the toy problem."""
    noise = iter(make_noise(400))
    model = lambda x, sigma: solvers.Prediction(*[predict(x, sigma)] * 2)  # noqa: E731
    *_, (x, _) = solvers.SOLVERS[sampler](model, next(noise) * levels[0], levels, lambda: next(noise))
    return x


def solve_as_peer(sampling: Any, sampler: str, levels: list[float]) -> torch.Tensor:
    """Run the peer's sampler over the same levels, with the same noise."""
    noise = iter(make_noise(400))
    x = next(noise) * levels[0]
    if sampler == "UniPC":
        return solve_as_diffusers(x, levels)
    if sampler == "LCM":
        for sigma, to in pairwise(levels):
            x = predict(x, sigma)
            x = x + to * next(noise) if to else x
        return x
    call = getattr(sampling, PEERS.get(sampler, "sample_heun"))
    options: dict[str, Any] = {"disable": True}
    if "noise_sampler" in inspect.signature(call).parameters:
        options["noise_sampler"] = make_noise_sampler(noise, brownian=sampler == "DPM++ SDE")
    if sampler == "DPM++ 2M SDE Heun":
        options["solver_type"] = "heun"
    stretches: list[list[float]] = [[levels[0]]]
    for sigma, to in pairwise(levels):
        if to > sigma:
            stretches.append([])
        stretches[-1].append(to)
    for i, stretch in enumerate(stretches):
        if i:
            x = x + next(noise) * math.sqrt(stretch[0] ** 2 - stretches[i - 1][-1] ** 2)
        x = call(predict, x, torch.tensor(stretch, dtype=torch.float64), **options)
    return x


def make_noise_sampler(noise: Any, brownian: bool) -> Callable[[Any, Any], torch.Tensor]:
    """Return the peer's source of noise; a `brownian` one continues where a half step ended."""
    half: list[Any] = []

    def draw(sigma: Any, to: Any) -> torch.Tensor:
        if not brownian:
            return next(noise)
        if not half:
            half[:] = [next(noise), to]
            return half[0]
        first, middle = half
        half.clear()
        moved = (sigma - middle).sqrt() * first + (middle - to).sqrt() * next(noise)
        return moved / (sigma - to).sqrt()

    return draw


def solve_as_diffusers(x: torch.Tensor, levels: list[float]) -> torch.Tensor:
    """Run diffusers' UniPC over explicit levels; it cannot step to 0, where the prediction is the result."""
    from diffusers import UniPCMultistepScheduler

    made = UniPCMultistepScheduler(solver_order=3, solver_type="bh1", prediction_type="sample")
    count = len(levels) - 1
    made.set_timesteps(count)
    made.sigmas = torch.tensor(levels, dtype=torch.float64)
    made.timesteps = torch.arange(count, 0, -1)
    x = x / math.hypot(1, levels[0])
    for (sigma, to), t in zip(pairwise(levels), made.timesteps, strict=True):
        clean = predict(x * math.hypot(1, sigma), sigma)
        x = made.step(clean, t, x).prev_sample if to else clean  # type: ignore[union-attr]
    return x


def build_as_peer(sampling: Any, external: Any, schedule: str, n: int) -> torch.Tensor:
    """Build a schedule as k-diffusion does, or by A1111's formula over k-diffusion's levels."""
    alphas = 1 / (1 + torch.tensor(MODEL) ** 2)
    known = external.DiscreteEpsDDPMDenoiser(None, alphas.float(), False)
    low, high = float(known.sigma_min), float(known.sigma_max)
    if schedule in ("Karras", "Exponential", "Polyexponential"):
        return getattr(sampling, f"get_sigmas_{schedule.lower()}")(n, low, high)
    if schedule == "Normal":
        return known.get_sigmas(n)
    if schedule == "SGM Uniform":
        found = [known.t_to_sigma(t) for t in torch.linspace(999, 0, n + 1)[:-1]]
    elif schedule == "UniPC":
        return known.t_to_sigma(torch.linspace(999, 0, n + 1))
    elif schedule == "Simple":
        found = [known.sigmas[-(1 + int(i * 1000 / n))] for i in range(n)]
    elif schedule == "DDIM":
        found = [known.sigmas[t] for t in range(1, 1000, max(1000 // n, 1))][::-1]
    elif schedule == "LCM":
        fifty = external.DiscreteEpsDDPMDenoiser(None, alphas.float()[19::20], False)
        return fifty.get_sigmas(n)
    elif schedule == "Beta":
        beta = importlib.import_module("scipy.stats").beta
        found = [low + beta.ppf(1 - i / (n - 1), 0.6, 0.6) * (high - low) for i in range(n)]
    else:
        numpy = importlib.import_module("numpy")
        told = schedules.ALIGN_YOUR_STEPS[::-1]
        at = numpy.linspace(0, 1, n)
        found = numpy.exp(numpy.interp(at, numpy.linspace(0, 1, 11), numpy.log(told)))[::-1]
    return torch.tensor([*map(float, found), 0.0])


def compare(sampling: Any, external: Any, sampler: str, schedule: str) -> dict[str, float]:
    """Return the largest differences of levels and of the toy problem's result."""
    traits, off, result = SAMPLERS[sampler], 0.0, 0.0
    for steps in STEPS:
        levels = schedules.build_levels(sampler, schedule, MODEL, steps)
        name = traits.schedule if schedule == AUTOMATIC else schedule
        theirs = build_as_peer(sampling, external, name, steps + traits.skips_level).tolist()
        theirs = [*theirs[:-2], theirs[-1]] if traits.skips_level else theirs
        assert len(theirs) == len(levels), (sampler, schedule, steps)
        off = max(off, *(abs(a - b) for a, b in zip(levels, theirs, strict=True)))
        levels = schedules.add_restarts(levels) if sampler == "Restart" else levels
        difference = solve(sampler, levels) - solve_as_peer(sampling, sampler, levels)
        assert difference.isfinite().all(), (sampler, schedule, steps)
        result = max(result, float(difference.abs().max()))
    return {"levels": off, "result": result}


def main() -> None:
    sampling, external = import_peer(sys.argv[1])
    rows = {}
    for sampler in SAMPLERS:
        for schedule in SCHEDULES:
            if schedule not in OLD_SCHEDULES:
                rows[f"{sampler}, {schedule}"] = row = compare(sampling, external, sampler, schedule)
                print(f"{sampler:20} {schedule:18} {row['levels']:.1e} {row['result']:.1e}")
    worst = {
        sampler: max(row["result"] for name, row in rows.items() if name.startswith(f"{sampler}, "))
        for sampler in SAMPLERS
    }
    levels = max(row["levels"] for row in rows.values())
    save_report("samplers", {"pairs": len(rows), "levels": levels, "worst": worst, "rows": rows})


if __name__ == "__main__":
    main()
