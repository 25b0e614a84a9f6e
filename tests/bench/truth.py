"""Hold verdicts against answers that are known: `python tests/bench/truth.py`.

For each shape of curve and each number of prompts and seeds: what is claimed, how often the intervals
hold the true knees, and whether the confidence is the chance that the true sweet spot holds the
recommended strength. Coverage counts knees within the range alone. Writes `tests/bench/results/truth.json`.
"""

import argparse
import collections
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from core.sweep.decide import LOOK_LEVELS, decide_verdict  # noqa: E402
from core.sweep.plan import LOOKS  # noqa: E402
from core.sweep.verdict import Verdict  # noqa: E402
from tests.bench.simulated import END, FLOOR, RISING, SHAPES, draw_sweep, find_truth  # noqa: E402

STRENGTHS = np.arange(0, END + 0.01, 0.5)
SETS = ((4, 2), (4, 4), (8, 2), (16, 2))
"""Prompts x seeds."""
OTHERS = 5
"""Other sets of each truth, whose sweet spots hold the recommended strength or do not."""


def decide(curves: dict[str, np.ndarray], prompts: int, seeds: int, level: float = 0.95) -> Verdict:
    used = {name: curve[:, :prompts] for name, curve in curves.items()}
    return decide_verdict([float(s) for s in STRENGTHS], used, np.full((prompts, seeds), FLOOR), level)


def holds(verdict: Verdict, truth: dict[str, float]) -> dict[str, bool]:
    """Return for each knee whether its interval holds the truth, give or take the curves' resolution."""
    return {
        name: (low or 0) - 0.026 <= truth[name] <= (np.inf if high is None else high + 0.026)
        for name, (low, high) in verdict.intervals.items()
    }


def score_set(prompts: int, seeds: int, many: int) -> dict[str, Any]:
    """Score `many` sweeps of each shape."""
    rng = np.random.default_rng(100 * prompts + seeds)
    said: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    held: dict[str, list[bool]] = collections.defaultdict(list)
    again: list[tuple[float, float]] = []
    for shape in SHAPES:
        for _ in range(many):
            stretch = rng.uniform(0.85, 1.15)
            truth = find_truth(shape, stretch)
            one = draw_sweep(shape, STRENGTHS, prompts, seeds, rng, stretch)
            verdict = decide(one, prompts, seeds)
            said[shape][verdict.answer] += 1
            said[shape]["breakdown"] += verdict.breakdown is not None
            for name, hit in holds(verdict, truth).items():
                if np.isfinite(truth[name]):  # an open interval holds what is beyond the range at no cost
                    held[name].append(hit)
            if verdict.recommended is not None and shape not in (*RISING, "null"):
                others = (draw_sweep(shape, STRENGTHS, prompts, seeds, rng, stretch) for _ in range(OTHERS))
                hits = [is_in_spot(verdict.recommended, other) for other in others]
                again.append((verdict.confidence, float(np.mean(hits))))
    sure, hit = (float(np.mean(each)) for each in zip(*again, strict=True))
    return {
        "answers": {shape: dict(counts) for shape, counts in said.items()},
        "false_claims": float(np.mean([said[shape]["changes"] / many for shape in ("null", *RISING)])),
        "false_breakdowns": said["edge"]["breakdown"] / many,
        "coverage": {name: round(float(np.mean(hits)), 3) for name, hits in held.items()},
        "outside": 1 - float(np.mean([hit for hits in held.values() for hit in hits])),
        "confidence": {"said": round(sure, 3), "held_again": round(hit, 3), "sweeps": len(again)},
    }


def is_in_spot(strength: float, curves: dict[str, np.ndarray]) -> bool:
    """Whether the sweet spot of the means of another set holds the strength."""
    from core.sweep.knees import find_knees
    from core.sweep.resample import average_curve

    means = {name: average_curve(curve)[None] for name, curve in curves.items()}
    knees = find_knees([float(s) for s in STRENGTHS], means, np.array([FLOOR]))
    high = np.inf if knees.is_open[0] else knees.high[0]
    return bool(knees.low[0] - 1e-9 <= strength <= high + 1e-9)


def score_looks(many: int) -> dict[str, Any]:
    """Score sweeps that look after each block of prompts and end where the verdict stands."""
    rng = np.random.default_rng(5)
    rows: dict[str, Any] = {}
    for shape in SHAPES:
        pictures, answers = [], collections.Counter[str]()
        for _ in range(many):
            curves = draw_sweep(shape, STRENGTHS, LOOKS[-1], 2, rng, rng.uniform(0.85, 1.15))
            for prompts in LOOKS:
                verdict = decide(curves, prompts, 2, LOOK_LEVELS[-1])
                if verdict.is_settled:
                    break
            pictures.append(prompts * 2 * len(STRENGTHS))
            answers[verdict.answer] += 1
        rows[shape] = {"pictures": round(float(np.mean(pictures))), "answers": dict(answers)}
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sweeps", type=int, default=40, help="of each shape")
    many = options.parse_args().sweeps
    report: dict[str, Any] = {"date": date.today().isoformat(), "device": "cpu", "sweeps_a_shape": many}
    for prompts, seeds in SETS:
        report[f"{prompts} prompts x {seeds} seeds"] = scored = score_set(prompts, seeds, many)
        print(f"{prompts} x {seeds}", json.dumps(scored), flush=True)
    report["looks"] = score_looks(many)
    print("looks", json.dumps(report["looks"]), flush=True)
    (ROOT / "tests" / "bench" / "results" / "truth.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
