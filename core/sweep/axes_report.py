"""Report a study of axes, or of two LoRAs: plain data, a table, a chart or a map, and a zip of it all."""

import csv
import io
import json
import math
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.models import bases
from core.sweep import axes_charts, charts
from core.sweep.axes import format_value
from core.sweep.axes_study import AxesStudy
from core.sweep.axes_words import explain_interaction, explain_plateau, suggest_more, suggest_plateau
from core.sweep.decide import LEVEL
from core.sweep.gauge import MEASURES
from core.sweep.interaction import Interaction, find_interaction
from core.sweep.knees import HELD_RANGES, LEAST_GAINS, SWEET_SPOT_SHARE
from core.sweep.report import MAX_LABEL_LENGTH, list_values
from core.sweep.resample import RESAMPLES, average_curve
from core.system.atomic_files import link_or_copy, remove_on_error
from core.system.tensor_files import calculate_sha256

POINT_COLUMNS = ("gain", "gain_low", "gain_high", "chance", "holds", "lost")
"""What the verdict says of a point, after its values and before its measures."""


@dataclass(frozen=True, kw_only=True)
class AxesFiles:
    """The files of an exported study, and its report."""

    chart: Path
    sheet: Path
    table: Path
    archive: Path
    report: dict[str, Any]


def build_axes_report(study: AxesStudy) -> dict[str, Any]:
    """Return the study as plain data. What was not measured is `None`, and `why` or `unmeasured` says why.

    `points` are in the order of the study, the first is the reference.
    """
    plan, found = study.axes_plan, study.plateau
    measured = sorted(study.columns)
    floor = float(average_curve(study.noise_floors[None])[0]) if measured else math.nan
    return {
        "axes": [{"name": axis.name, "label": axis.label} for axis in plan.axes],
        "values": [list(values) for values in plan.values],
        "reference": list(plan.points[0]),
        "loras": [
            {
                "lora": Path(use.path).stem,
                "strength": use.strength,
                "sha256": calculate_sha256(Path(use.path)),
            }
            for use in plan.settings.loras
        ],
        "model": plan.settings.model,
        "model_hash": bases.hash_weights(plan.settings.model),
        "noise_floor": _finish_numbers(floor),
        "wanted": found and found.wanted,
        "points": [_describe_point(study, number) for number in range(len(plan.points))],
        "answer": found.answer if found else "too little",
        "plateau": [list(plan.points[number]) for number in found.plateau] if found else [],
        "recommended": None if study.recommended is None else list(plan.points[study.recommended]),
        "confidence": None
        if found is None or study.recommended is None
        else round(found.confidence[study.recommended], 3),
        "why": explain_plateau(study),
        "surer": found and suggest_plateau(found, len(study.prompts)),
        "unmeasured": study.unmeasured,
        "measured": {
            "values": {name: list_values(study.build_curve(name, measured)) for name in MEASURES},
            "noise_floors": list_values(study.noise_floors) if measured else [],
        },
        "thresholds": {
            "most": SWEET_SPOT_SHARE,
            "gains": LEAST_GAINS,
            "level": LEVEL,
            "draws": RESAMPLES,
            "held": {
                name: [end if math.isfinite(end) else None for end in ends]
                for name, ends in HELD_RANGES.items()
            },
        },
        "eye": study.plan.feature_extractor,
        "seeds": list(study.plan.seeds),
        "prompts": list(study.prompts),
        "cells": _list_cells(study),
        "cells_found": study.cells_found,
        "seconds": round(study.seconds, 3),
        "unet_calls": study.unet_calls,
    }


def build_pair_report(study: AxesStudy) -> dict[str, Any]:
    """Return the study of `plan_pair` as plain data, with `interaction`, and an answer and why about both."""
    found = _judge_pair(study)
    report = build_axes_report(study)
    names = [entry["lora"] for entry in report["loras"]]
    stopped = report["why"] if study.plateau is None else None
    told = asdict(found)
    del told["answer"]
    return report | {
        "interaction": {name: _finish_numbers(value) for name, value in told.items()},
        "answer": found.answer,
        "why": stopped or explain_interaction(found, names),
        "surer": suggest_more(len(study.prompts)) if found.answer in ("unclear", "provisional") else None,
        "plateau": [],
        "recommended": None,
        "confidence": None,
    }


def _judge_pair(study: AxesStudy) -> Interaction:
    if study.plateau is None or study.plateau.answer == "too little":
        return Interaction(answer="too little")
    shifts = np.stack([study.columns[number].style_shifts for number in (2.0, 1.0, 3.0)])
    shape = 3, len(study.prompts), len(study.plan.seeds), -1
    _, second, first, both = study.plateau.points
    return find_interaction(shifts.reshape(shape), (first, second), both)


def _describe_point(study: AxesStudy, number: int) -> dict[str, Any]:
    """Return a point's values, the verdict on it, and the means of its measures."""
    told = study.plateau.points[number] if study.plateau and study.plateau.points else None
    low, high = (told and told.interval) or (None, None)
    is_measured = float(number) in study.columns
    means = {
        name: float(average_curve(study.build_curve(name, [float(number)]))[0]) if is_measured else math.nan
        for name in MEASURES
    }
    verdict = {
        "gain": told and told.gain,
        "gain_low": low,
        "gain_high": high,
        "chance": told and told.chance,
        "holds": told and told.holds,
    }
    return {
        "point": list(study.axes_plan.points[number]),
        **{name: _finish_numbers(value) for name, value in verdict.items()},
        "lost": list(told.lost) if told else [],
        **{name: _finish_numbers(mean) for name, mean in means.items()},
    }


def _finish_numbers(value: Any) -> Any:
    """Return a value as JSON takes it: numbers to four decimals, `None` for what is not finite."""
    if isinstance(value, list | tuple):
        return [_finish_numbers(each) for each in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def _list_cells(study: AxesStudy) -> list[dict[str, Any]]:
    return [
        {
            "point": list(study.axes_plan.points[int(number)]),
            "seed": seed,
            "prompt": prompt,
            "picture": str(file),
            "key": file.stem,
        }
        for (number, (prompt, seed)), file in sorted(study.pictures.items())
    ]


def format_points_csv(report: dict[str, Any]) -> str:
    """Return a report's points as CSV, a column for each axis first."""
    out = io.StringIO()
    names = [axis["name"] for axis in report["axes"]]
    writer = csv.DictWriter(out, [*names, *POINT_COLUMNS, *MEASURES], extrasaction="ignore")
    writer.writeheader()
    for point in report["points"]:
        values = dict(zip(names, point["point"], strict=True))
        writer.writerow({**point, **values, "lost": " and ".join(point["lost"])})
    return out.getvalue()


def export_axes(study: AxesStudy, folder: Path, report: dict[str, Any]) -> AxesFiles:
    """Write what is finished so far into `folder`; after an error nothing is left.

    `report` is the study's, whose pictures are then named as in the zip.
    """
    with remove_on_error(folder):
        for cell in report["cells"]:
            number = study.axes_plan.points.index(tuple(cell["point"]))
            prompt = study.prompts.index(cell["prompt"]) + 1
            name = f"cells/{number:03d}/prompt{prompt}-seed{cell['seed']}.png"
            link_or_copy(Path(cell["picture"]), folder / name)
            cell["picture"] = name
        files = {"chart": folder / "chart.png", "sheet": folder / "sheet.png", "table": folder / "points.csv"}
        axes_charts.draw_points(report).save(files["chart"])
        draw_axes_sheet(study, report["why"]).save(files["sheet"])
        files["table"].write_text(format_points_csv(report), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        archive = folder / f"{'-x-'.join(axis['name'] for axis in report['axes'])}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:  # PNG does not get smaller
            for file in [*files.values(), folder / "report.json"]:
                out.write(file, file.name)
            for cell in report["cells"]:
                out.write(folder / cell["picture"], cell["picture"])
    return AxesFiles(archive=archive, report=report, **files)


def draw_axes_sheet(study: AxesStudy, title: str):
    """Draw the contact sheet of the pictures that are finished so far: a column for each point.

    The first column is the reference. A column of two axes gives both values, in their order.
    """
    plan = study.axes_plan
    columns = [" x ".join(map(format_value, point)) for point in plan.points]
    columns[0] += " (reference)"
    title = f"{' x '.join(axis.label for axis in plan.axes)} · {title}"
    rows = [
        f"{prompt[:MAX_LABEL_LENGTH]}{'…' * (len(prompt) > MAX_LABEL_LENGTH)} · seed {seed}"
        for prompt, seed in study.items
    ]
    return charts.draw_contact_sheet(
        title, rows, columns, lambda r, c: study.pictures.get((float(c), study.items[r])), None
    )
