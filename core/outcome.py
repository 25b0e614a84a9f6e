"""A sweep's files in one folder and one zip: every picture by its strength, the sheet, the curves, the table, the report."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import charts, edit, lora, shelf
from core.atomic import filling, placed
from core.report import reported, table
from core.sweep import Study

SHOWN = 60
"""Characters of a prompt in the sheet."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the files are, and the report."""

    sheet: Path
    curves: Path
    cells: tuple[tuple[Path, str], ...]
    """Pictures with their strength and seed."""
    archive: Path
    table: Path
    sidecar: Path
    report: dict[str, Any]


def outcome(study: Study, folder: Path) -> Outcome:
    """Write everything that there is by now into `folder`, or nothing; the report names its pictures as the zip does."""
    report = reported(study)
    with filling(folder):
        cells, named = [], []
        for (strength, (prompt, seed)), file in sorted(study.pictures.items()):
            number = study.plan.prompts.index(prompt) + 1
            name = f"cells/{strength:g}/prompt{number}-seed{seed}.png"
            placed(file, folder / name)
            cells.append((folder / name, f"{strength:g} · {seed}"))
            named.append({"strength": strength, "seed": seed, "prompt": prompt, "picture": name, "key": file.stem})
        report["cells"] = named
        stem = shelf.slug(Path(study.plan.lora.path).stem)
        drawn = {"sheet": folder / "sheet.png", "curves": folder / "curves.png"}
        sheet(study).save(drawn["sheet"])
        charts.curves(report).save(drawn["curves"])
        told = {"table": folder / "curves.csv", "sidecar": folder / f"{stem}.json"}
        told["table"].write_text(table(study), encoding="utf-8")
        told["sidecar"].write_text(json.dumps(edit.sidecar(lora.file(study.plan.lora.path), report), indent=1), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        archive = folder / f"{stem}-sweep.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:  # PNG does not get smaller
            for file in [*drawn.values(), *told.values(), folder / "report.json"]:
                out.write(file, file.name)
            for (file, _), entry in zip(cells, named, strict=True):
                out.write(file, entry["picture"])
    return Outcome(cells=tuple(cells), archive=archive, report=report, **drawn, **told)


def sheet(study: Study):
    """The contact sheet of what there is by now."""
    verdict, name = study.verdict, Path(study.plan.lora.path).stem
    rows = [f"{prompt[:SHOWN]}{'…' * (len(prompt) > SHOWN)} · seed {seed}" for prompt, seed in study.items]
    title = f"{name} on {study.plan.settings.model}" + (f" · {verdict.why}" if verdict else "")
    strengths = study.strengths
    return charts.sheet(title, rows, strengths, lambda r, c: study.pictures.get((strengths[c], study.items[r])), verdict and verdict.sweet_spot)
