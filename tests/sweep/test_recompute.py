"""A report alone gives its verdict again: by `python app.py verdict`, and with numpy in docs."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.schema.errors import UserError
from core.sweep.knees import HELD_RANGES, LEAST_GAINS, SWEET_SPOT_SHARE
from core.sweep.recompute import recompute_verdict

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "docs" / "verdict_from_report.py"
STRENGTHS = [i * 0.5 for i in range(9)]  # 0 to 4
PLATEAU = [0, 0.1, 0.5, 1.5, 2.0, 2.1, 2.1, 2.15, 2.2]
FALLING = [1, 1, 1, 1, 1, 1, 0.9, 0.3, 0.1]
LINE = [0.5 * strength for strength in STRENGTHS]
SHAPES: dict[str, dict[str, Any]] = {
    "plateau that breaks": {"effect": PLATEAU, "prompt": FALLING},
    "line": {"effect": LINE, "prompt": [1] * 9},
    "what may break": {"effect": PLATEAU, "prompt": [1, 1, 1, 1, 0.95, 0.92, 0.9, 0.87, 0.85]},
    "nothing": {"effect": [0] * 9, "prompt": [1] * 9},
    "style": {"effect": PLATEAU, "prompt": FALLING, "style": [0.2, 0.2, 0.25, 0.5, 0.6, 0.6, 0.5, 0.3, 0.2]},
}


def make_report(shape: str, sign: int = 1, **changes: Any) -> dict[str, Any]:
    """Return of a report what a verdict is decided from: curves over 6 prompts, which differ, and 2 seeds."""
    rng = np.random.default_rng(3)
    prompts = rng.normal(0, 0.06, (6, 1)) + rng.normal(0, 0.03, (6, 2))
    values = {}
    for name, means in {**SHAPES[shape], "detail": [0.9] * 9}.items():
        own = 1 + prompts if name == "effect" else np.ones((6, 2))
        each = np.array(means, float)[:, None, None] * own + rng.normal(0, 0.01, (9, 6, 2))
        values[name] = each.tolist()
    values["prompt"] = [[[None, None], *row[1:]] for row in values["prompt"]]  # a prompt without a known tag
    values["composition"] = [[[None] * 2] * 6] * 9  # not measured at all
    return {
        "strengths": [sign * strength for strength in STRENGTHS],
        "prompts": [f"prompt {i}" for i in range(6)],
        "seeds": [1, 2],
        "measured": {
            "strengths": [sign * strength for strength in STRENGTHS],
            "values": values,
            "noise_floors": np.abs(0.3 + prompts).tolist(),
        },
        "thresholds": {
            "most": SWEET_SPOT_SHARE,
            "gains": LEAST_GAINS,
            "level": 0.95,
            "resamples": 400,
            "often": 0.5,
            "holds": {
                name: [None if np.isinf(end) else end for end in ends] for name, ends in HELD_RANGES.items()
            },
        },
        **changes,
    }


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_alone_finds_the_knees_of_the_verdict(shape: str, sign: int) -> None:
    report = make_report(shape, sign)
    verdict = recompute_verdict(report)
    knees = runpy.run_path(str(SCRIPT))["compute_knees"]({**report, "breakdown": verdict.breakdown})
    for name, (_, near, far) in knees.items():
        ends = [None if np.isinf(end) else end for end in (near, far)]
        assert tuple(ends if sign > 0 else ends[::-1]) == verdict.intervals[name], name
    tried = np.abs(STRENGTHS)
    for name, claimed in (("onset", verdict.onset), ("breakdown", verdict.breakdown)):
        if claimed is not None:
            assert min(tried[tried >= abs(knees[name][0]) - 1e-9]) == abs(claimed), name
    if verdict.sweet_spot is not None:
        low, high = (abs(knees[f"sweet_spot_{end}"][0]) for end in ("low", "high"))
        inside = tried[(tried >= low - 1e-9) & (tried <= high + 1e-9)]
        assert sorted(map(abs, verdict.sweet_spot)) == [inside.min(), inside.max()]
    assert (verdict.sweet_spot is not None) == (shape in ("plateau that breaks", "style"))


def test_the_command_says_the_verdict_and_where_a_report_says_another(tmp_path: Path) -> None:
    report = make_report("plateau that breaks")
    why = recompute_verdict(report).why
    (tmp_path / "true.json").write_text(json.dumps({**report, "why": why}))
    (tmp_path / "false.json").write_text(json.dumps({**report, "why": "Works from 0 to 5\x1b[2J."}))
    same, other = (
        subprocess.run(
            [sys.executable, "app.py", "verdict", tmp_path / name], cwd=ROOT, capture_output=True, text=True
        )
        for name in ("true.json", "false.json")
    )
    assert (same.returncode, same.stdout) == (0, f"{why}\n")
    assert (other.returncode, other.stdout) == (1, f"{why}\n")
    assert other.stderr.endswith("The report says: Works from 0 to 5[2J.\n")


@pytest.mark.parametrize(
    "change",
    [
        {"measured": None},
        {"measured": {}},
        {"seeds": [1, 2, 3]},
        {"thresholds": {}},
        {"measured": {**make_report("line")["measured"], "values": {"effect": [[["x"]]]}}},
        {"measured": {**make_report("line")["measured"], "noise_floors": float("inf")}},
        {"measured": {**make_report("line")["measured"], "values": {}}},
    ],
)
def test_a_report_without_measurements_is_one_sentence(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^report: it lacks the measurements of each image"):
        recompute_verdict(make_report("line", **change))
