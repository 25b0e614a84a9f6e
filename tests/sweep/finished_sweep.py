"""A finished sweep as its zip has it, made without a model: the shade of a picture tells its strength."""

import json
import zipfile
from pathlib import Path
from typing import Any

from tests.dataset.parts import make_picture

STRENGTHS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
PROMPTS = ("1girl, red hair", "1boy, smile", "a cat on a sofa", "<b>*beach*</b>")


def make_report(**changes: Any) -> dict[str, Any]:
    """Return the report of a sweep over 4 prompts and 2 seeds, which recommends 3."""
    report: dict[str, Any] = {
        "lora": "example",
        "strengths": list(STRENGTHS),
        "prompts": list(PROMPTS),
        "seeds": [1, 2],
        "recommended": 3.0,
        "breakdown": 5.0,
        "intervals": {"breakdown": [4.0, None]},
        "why": "Works from 2 to 4, best around 3.",
        **changes,
    }
    report["cells"] = changes.get("cells") or [
        {
            "strength": strength,
            "prompt": prompt,
            "seed": seed,
            "picture": f"cells/{strength:g}/prompt{number}-seed{seed}.png",
        }
        for strength in report["strengths"]
        for number, prompt in enumerate(report["prompts"], 1)
        for seed in report["seeds"]
    ]
    return report


def write_sweep(folder: Path, report: dict[str, Any]) -> Path:
    """Write the zip of a sweep, as `core.sweep.report.export_sweep` packs it."""
    file = folder / "example-sweep.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
        out.writestr("report.json", json.dumps(report))
        out.writestr("curves.csv", "strength,effect")
        for cell in report["cells"]:
            shade = round(40 * abs(cell["strength"]))
            out.writestr(cell["picture"], make_picture((shade, shade, shade), (48, 48)))
    return file
