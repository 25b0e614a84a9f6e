"""Hold verdicts of a few prompts against pools of many: `python tests/bench/truth_pools.py`.

Each LoRA is swept once on the built-in model over 16 prompts x 5 seeds at 25 steps. 8 prompts x 2 seeds
of them are drawn again and again, with replacement: does the interval of each knee hold the knee of the
whole pool, and is the confidence the share of other draws whose sweet spot holds the recommended
strength? Also what each LoRA is told to be. Writes `tests/bench/results/truth_pools.json`.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import ImageEnhance
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from core.nano.lessons import (  # noqa: E402
    CaptionedPictures,
    make_outfit_set,
    make_regularisation_set,
    replace_colour,
)
from core.runtime import gpu  # noqa: E402
from core.schema.events import Failed  # noqa: E402
from core.sweep.decide import decide_verdict  # noqa: E402
from core.sweep.knees import HELD_RANGES, find_knees  # noqa: E402
from core.sweep.plan import SweepForm, plan_sweep  # noqa: E402
from core.sweep.resample import average_curve  # noqa: E402
from core.sweep.study import SweepStudy  # noqa: E402
from tests.lora.example import EXAMPLE_FILE, NANO, STYLE_CONFIG, save_lora, train_lora  # noqa: E402

SALMON = (250, 160, 130)
Tensors = dict[str, torch.Tensor]
Make = Callable[[], Tensors]


def load_example() -> Tensors:
    return load_file(EXAMPLE_FILE)


def scale(factor: float) -> Make:
    """Return what multiplies every alpha of the example."""
    return lambda: {k: v * factor if k.endswith(".alpha") else v for k, v in load_example().items()}


def negate() -> Tensors:
    return {k: -v if "lora_up" in k else v for k, v in load_example().items()}


def randomise(factor: float) -> Make:
    """Return what replaces the matrices by random ones of the same norms, `factor` times as large."""

    def replace() -> Tensors:
        torch.manual_seed(0)
        made = {}
        for key, value in load_example().items():
            noise = torch.randn_like(value.float())
            same = noise * value.float().norm() / noise.norm()
            made[key] = value if key.endswith(".alpha") else same * (factor if "lora_up" in key else 1)
        return made

    return replace


def keep_blocks(*parts: str) -> Tensors:
    """Keep the example's layers whose names contain one of these parts."""
    return {k: v for k, v in load_example().items() if any(part in k for part in parts)}


def train_on(pictures: CaptionedPictures) -> Tensors:
    """Train a LoRA of the example's shape on other pictures."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(NANO)
    train_lora(pipeline, pictures, "planted", STYLE_CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        save_lora(pipeline, "planted", STYLE_CONFIG, pictures, Path(folder) / "planted.safetensors")
        return load_file(Path(folder) / "planted.safetensors")


def brighten() -> Tensors:
    """Train on drawings that differ by their brightness alone."""
    drawn = make_regularisation_set(15)
    return train_on([(ImageEnhance.Brightness(picture).enhance(1.3), told) for picture, told in drawn])


def colour_backgrounds() -> Tensors:
    """Train on drawings whose white backgrounds are salmon, which no caption says."""
    drawn = [each for each in make_regularisation_set(150) if "white background" in each[1]][:15]
    return train_on([(replace_colour(picture, (255, 255, 255), SALMON), told) for picture, told in drawn])


@cache
def train_outfit() -> Tensors:
    return train_on(make_outfit_set("zzz"))


def merge() -> Tensors:
    """Merge the example with the outfit: one LoRA of twice the rank and alpha that adds both changes."""
    merged = {}
    for key, value in load_example().items():
        other = train_outfit()[key]
        along = 0 if "lora_down" in key else 1
        merged[key] = value + other if key.endswith(".alpha") else torch.cat([value, other], along)
    return merged


PLANTED: dict[str, tuple[Make, str]] = {
    "example": (load_example, "0-5 (+0.5)"),
    "half of its blocks": (partial(keep_blocks, "output_blocks"), "0-5 (+0.5)"),
    "negated": (negate, "0-5 (+0.5)"),
    "noise": (randomise(1), "0-5 (+0.5)"),
    "noise x10": (randomise(10), "0-1 (+0.1)"),
    "x0.05": (scale(0.05), "0-5 (+0.5)"),
    "x0.5": (scale(0.5), "0-5 (+0.5)"),
    "x3": (scale(3), "0-1.6 (+0.16)"),
    "x20": (scale(20), "0-0.25 (+0.025)"),
    "brightness": (brighten, "0-5 (+0.5)"),
    "background": (colour_backgrounds, "0-5 (+0.5)"),
    "outfit": (train_outfit, "0-5 (+0.5)"),
    "example and outfit": (merge, "0-5 (+0.5)"),
}
"""Name -> what makes the LoRA, and the strengths of its sweep."""


def measure_pool(file: Path, strengths: str, prompts: int, seeds: int) -> tuple[list[float], Any, np.ndarray]:
    """Sweep a LoRA over all prompts and seeds; return strengths, curves and noise floors."""
    form = SweepForm(
        lora=str(file),
        preset="nano",
        strengths=strengths,
        seeds=f"1-{seeds}",
        prompts=list(plan_sweep(SweepForm(lora=str(file), preset="nano", budget="Full")).prompts[:prompts]),
    )
    study = SweepStudy(plan_sweep(form))
    for event in study.run(gpu.generate_on_gpu):
        assert not isinstance(event, Failed), event
    used = {name: study.build_curve(name, study.strengths) for name in ("effect", *HELD_RANGES)}
    known = {name: curve for name, curve in used.items() if not np.isnan(curve).all()}
    return study.strengths, known, study.noise_floors


def draw(
    curves: dict[str, np.ndarray], floors: np.ndarray, rng: np.random.Generator
) -> tuple[Any, np.ndarray]:
    """Draw 8 prompts x 2 seeds of a pool, with replacement."""
    picked = rng.integers(floors.shape[0], size=8)
    seeds = rng.integers(floors.shape[1], size=(8, 2))
    return {n: c[:, picked[:, None], seeds] for n, c in curves.items()}, floors[picked[:, None], seeds]


def score_pool(strengths: list[float], curves: Any, floors: np.ndarray, many: int) -> dict[str, Any]:
    """Score verdicts of draws against the knees of the whole pool."""

    def find(of: Any, floor: np.ndarray) -> dict[str, float]:
        means = {name: average_curve(curve)[None] for name, curve in of.items()}
        knees = find_knees(strengths, means, np.array([float(np.mean(floor))]))
        places = {
            "onset": knees.onset[0],
            "sweet_spot_low": knees.low[0],
            "sweet_spot_high": np.nan if knees.is_open[0] else knees.high[0],
            "breakdown": knees.breakdown[0],
        }
        return {name: float(np.where(np.isnan(place), np.inf, place)) for name, place in places.items()}

    rng = np.random.default_rng(3)
    truth = find(curves, floors)
    others = [find(*draw(curves, floors, rng)) for _ in range(many)]
    answers: Counter[str] = Counter()
    held: dict[str, list[bool]] = {name: [] for name in truth}
    sure: list[tuple[float, float]] = []
    for _ in range(many):
        drawn, drawn_floors = draw(curves, floors, rng)
        verdict = decide_verdict(strengths, drawn, drawn_floors)
        answers[verdict.answer] += 1
        for name, (low, high) in verdict.intervals.items():
            held[name].append((low or 0) - 1e-9 <= truth[name] <= (np.inf if high is None else high + 1e-9))
        if (best := verdict.recommended) is not None:
            inside = [o["sweet_spot_low"] - 1e-9 <= best <= o["sweet_spot_high"] + 1e-9 for o in others]
            sure.append((verdict.confidence, float(np.mean(inside))))
    return {
        "knees": {name: None if np.isinf(place) else round(place, 3) for name, place in truth.items()},
        "answers": dict(answers),
        "coverage": {name: round(float(np.mean(hits)), 3) for name, hits in held.items()},
        "confidence": [round(float(x), 3) for x in np.mean(sure, axis=0)] if sure else None,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--prompts", type=int, default=16)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--draws", type=int, default=100)
    options.add_argument("--only", choices=PLANTED, nargs="+", default=list(PLANTED))
    asked = options.parse_args()
    report: dict[str, Any] = {"date": date.today().isoformat(), "device": "cpu", "draws": asked.draws}
    for name in asked.only:
        make, strengths = PLANTED[name]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "planted.safetensors"
            save_file({k: v.contiguous() for k, v in make().items()}, file)
            pool = measure_pool(file, strengths, asked.prompts, asked.seeds)
        report[name] = score_pool(*pool, asked.draws)
        print(name, json.dumps(report[name]), flush=True)
    (ROOT / "tests" / "bench" / "results" / "truth_pools.json").write_text(
        json.dumps(report, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
