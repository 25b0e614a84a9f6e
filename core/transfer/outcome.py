"""A transfer study's files in one folder and one zip: every picture at full size, the heat map, the sheet, table, report and page."""

import json
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core import charts, shelf
from core.atomic import filling, placed
from core.transfer.page import page
from core.transfer.report import reported, table
from core.transfer.study import Study

PANELS = {"effect": "effect, seed units", "style_kept": "trained style", "base_style_kept": "base's own style"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the files are, and the report, whose pictures are named as in the zip."""

    sheet: Path
    heat: Path
    archive: Path
    table: Path
    page: Path
    report: dict[str, Any]
    folder: Path


def outcome(study: Study, folder: Path) -> Outcome:
    """Write everything that there is by now into `folder`, or nothing."""
    report = reported(study)
    with filling(folder):
        for told in report["pictures"]:
            own = f"{shelf.slug(told['lora'])}/{told['strength']:g}" if told["lora"] else "base"
            name = f"cells/{shelf.slug(told['model'])}/{own}/prompt{study.plan.prompts.index(told['prompt']) + 1}-seed{told['seed']}.png"
            placed(Path(told["picture"]), folder / name)
            told["picture"] = name
        files = {"sheet": folder / "sheet.png", "heat": folder / "heat.png", "table": folder / "cells.csv", "page": folder / "study.html"}
        sheet(study).save(files["sheet"])
        heat(study, report).save(files["heat"])
        files["table"].write_text(table(study), encoding="utf-8")
        files["page"].write_text(page(report, folder, files["heat"]), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        archive = folder / "transfer.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:  # PNG does not get smaller
            for file in [*files.values(), folder / "report.json"]:
                out.write(file, file.name)
            for told in report["pictures"]:
                out.write(folder / told["picture"], told["picture"])
    return Outcome(archive=archive, report=report, folder=folder, **files)


def heat(study: Study, report: dict[str, Any]) -> Image.Image:
    """Effect, trained style and the base's own style by LoRA and base, each LoRA at the greatest strength up to 1; verdicts in the first."""
    plan = study.plan
    at = max((strength for strength in study.strengths if 0 < strength <= 1), default=max(study.strengths))
    found = {(cell["lora"], cell["model"]): cell for cell in report["cells"] if cell["strength"] == at}
    values = {
        title: np.array([[_number(found.get((row.name, model)), name) for model in plan.models] for row in plan.rows], float) for name, title in PANELS.items()
    }
    told = {
        (plan.rows.index(next(r for r in plan.rows if r.name == pair["lora"])), plan.models.index(pair["model"])): _told(pair) for pair in report["per_pair"]
    }
    return charts.matrix(f"At strength {at:g}", [_named(row.name, row.home) for row in plan.rows], list(plan.models), values, told)


def _named(name: str, home: str | None) -> str:
    return textwrap.fill(name[:60], 22) + (f"\n(home: {home})" if home and home not in name else "")


def _told(pair: dict[str, Any]) -> str:
    """The verdict, and how much more strength than at home; home itself is marked."""
    mark = "⌂ " if pair["relation"] == "home" else ""
    times = f" x{pair['needs_times']:.2g}" if pair["needs_times"] else ""
    return f"{mark}{pair['verdict'] or '?'}{times}"


def sheet(study: Study) -> Image.Image:
    """A row for each LoRA and strength, a column for each prompt and base; the first seed."""
    plan = study.plan
    rows = [(plan.rows[0].name, 0.0), *((row.name, strength) for strength in study.strengths if strength for row in plan.rows)]
    columns = [(prompt, model) for prompt in plan.prompts for model in plan.models]

    def picture(r: int, c: int) -> Path | None:
        (lora, strength), (prompt, model) = rows[r], columns[c]
        return study.pairs[lora, model].sweep.pictures.get((strength, (prompt, plan.seeds[0])))

    labels = ["without a LoRA", *(f"{name} at {strength:g}" for name, strength in rows[1:])]
    return charts.sheet("LoRAs over base models", labels, [model for _, model in columns], picture, None)


def _number(cell: Mapping[str, Any] | None, name: str) -> float:
    """NaN where it was not measured, or where a study has no strength but 0."""
    return np.nan if cell is None or cell[name] is None else cell[name]
