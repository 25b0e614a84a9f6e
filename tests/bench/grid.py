"""Find the strengths of LoRAs whose answer is planted: `python tests/bench/grid.py`.

The example LoRA, multiplied, negated, and as noise of the same norm in each layer; each is swept on nano with
automatic strengths, 4 prompts and 2 seeds. For each: the first and last strength that was found, onset and
breakdown of the verdict, and how much single calls of the U-Net change there.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from safetensors.torch import load_file, save_file  # noqa: E402

from core.generate.probe import Probe  # noqa: E402
from core.runtime import gpu  # noqa: E402
from core.schema.events import Failed, ModelChange  # noqa: E402
from core.sweep import cell_cache  # noqa: E402
from core.sweep.plan import SweepForm, plan_sweep  # noqa: E402
from core.sweep.study import PROBED_PICTURES, SweepStudy  # noqa: E402
from tests.bench.report import save_report  # noqa: E402

EXAMPLE = ROOT / "presets" / "loras" / "nano-airbrush.safetensors"
FACTORS = (0.05, 0.5, 1.0, 3.0, 20.0, -1.0)
SEEDS = "1, 2"
CURVE_CHANGES = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9)
"""Changes whose strengths are searched, to read off the change at any strength between."""
Tensors = dict[str, torch.Tensor]


def multiply(tensors: Tensors, factor: float) -> Tensors:
    return {key: value * factor if key.endswith(".alpha") else value for key, value in tensors.items()}


def make_noise(tensors: Tensors, seed: int) -> Tensors:
    """Return random matrices whose product has the norm of the file's in each layer."""
    rng, made = torch.Generator().manual_seed(seed), dict(tensors)
    for key, down in tensors.items():
        if key.endswith("lora_down.weight"):
            other = key.replace("down", "up")
            both = [torch.randn(each.shape, generator=rng) for each in (down, tensors[other])]
            norms = [float((up.float() @ low.float()).norm()) for low, up in ((down, tensors[other]), both)]
            made |= {key: both[0].half(), other: (both[1] * norms[0] / norms[1]).half()}
    return made


def measure_changes(study: SweepStudy) -> dict[float, float]:
    """Return the change at many strengths, rising."""
    items = [(prompt, study.plan.seeds[0]) for prompt in study.plan.prompts[:PROBED_PICTURES]]
    requests = tuple(study.build_request(study.plan.limit, item) for item in items)
    events = gpu.generate_on_gpu([], probe=Probe(requests=requests, changes=CURVE_CHANGES))
    return dict(sorted((e.strength, e.change) for e in events if isinstance(e, ModelChange)))


def sweep(file: Path) -> dict[str, Any]:
    study = SweepStudy(plan_sweep(SweepForm(lora=str(file), preset="nano", seeds=SEEDS)))
    for event in study.run(gpu.generate_on_gpu):
        if isinstance(event, Failed):
            sys.exit(event.message)
    assert study.verdict
    changes = measure_changes(study)

    def read_change(strength: float | None) -> float | None:
        if strength is None:
            return None
        change = np.exp(np.interp(np.log(strength), np.log([*changes]), np.log([*changes.values()])))
        return float(f"{change:.3g}")

    return {
        "strengths": study.strengths[1:2] + study.strengths[-1:],
        "change_at_limit": float(f"{study.changes[study.plan.limit]:.3g}"),
        "onset": study.verdict.onset,
        "change_at_onset": read_change(study.verdict.onset),
        "recommended": study.verdict.recommended,
        "breakdown": study.verdict.breakdown,
        "change_at_breakdown": read_change(study.verdict.breakdown),
        "why": study.verdict.why,
        "probe_calls": len(study.changes),
        "seconds": round(study.seconds, 1),
    }


def main() -> None:
    tensors = load_file(EXAMPLE)
    planted = {f"example x{factor:g}": multiply(tensors, factor) for factor in FACTORS}
    planted |= {f"noise {seed}": make_noise(tensors, seed) for seed in (1, 2)}
    with tempfile.TemporaryDirectory() as folder:
        cell_cache.FOLDER = Path(folder) / "cells"
        found = {}
        for name, each in planted.items():
            file = Path(folder) / f"{name.replace(' ', '-')}.safetensors"
            save_file(each, file)
            found[name] = sweep(file)
            print(name, found[name], flush=True)
    save_report("grid", found)


if __name__ == "__main__":
    main()
