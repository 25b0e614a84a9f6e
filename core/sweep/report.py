"""Report a sweep: its curve, plain data, a table, and all of its files in a folder and a zip."""

import csv
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.lora import apply as lora
from core.lora import edit
from core.lora.edit import MULTIPLY_RANGE
from core.models import bases, lora_library
from core.sweep import charts
from core.sweep.decide import (
    HELD_RANGES,
    INTERVAL_PERCENTILES,
    RESAMPLES,
    RISING_SHARE,
    SWEET_SPOT_SHARE,
    Verdict,
)
from core.sweep.study import MEASURES, SweepStudy
from core.system.atomic_files import link_or_copy, remove_on_error

MAX_LABEL_LENGTH = 60
"""Characters of a prompt that are shown in the sheet."""


def build_curve(study: SweepStudy) -> list[dict[str, Any]]:
    """Return a row for each complete strength, rising.

    A row has the means over the pictures and the interval of the effect; `None` is what was not
    measured.
    """
    rows = []
    rng = np.random.default_rng(0)
    picks = rng.integers(len(study.items), size=(RESAMPLES, len(study.items)))
    for strength in sorted(study.measurements):
        column = study.measurements[strength]
        means = {
            name: float(np.nanmean(column[name])) if not np.isnan(column[name]).all() else None
            for name in MEASURES
        }
        low, high = np.percentile(column["effect"][picks].mean(1), INTERVAL_PERCENTILES)
        rows.append(
            {
                "strength": strength,
                **_round_numbers(means),
                **_round_numbers({"effect_low": float(low), "effect_high": float(high)}),
            }
        )
    return rows


def build_sweep_report(study: SweepStudy) -> dict[str, Any]:
    """Return the sweep as plain data.

    What was not measured is `None`, and `why` or `unmeasured` says why. `notes` has what is unusual about
    the LoRA's alpha and its law of strength.
    """
    verdict = study.verdict or Verdict(
        intervals={},
        why=f"Stopped: {len(study.pictures)} of {len(study.strengths) * len(study.items)} "
        "images are finished.",
    )
    unmeasured = dict(study.unmeasured)
    if not study.plan.references:
        unmeasured["style"] = "No reference images were given."
    character = study.find_character()
    if character is None:
        unmeasured["character"] = "No strength is recommended at which the LoRA could be described."
    cells_of = [
        {"strength": strength, "seed": item[1], "prompt": item[0], "picture": str(file), "key": file.stem}
        for (strength, item), file in sorted(study.pictures.items())
    ]
    return {
        "lora": Path(study.plan.lora.path).stem,
        "sha256": study.sha256,
        "model": study.plan.settings.model,
        "model_hash": bases.hash_weights(study.plan.settings.model),
        "noise_floor": round(study.yardstick.noise_floor, 4) if 0.0 in study.measurements else None,
        "strengths": study.strengths,
        "curve": build_curve(study),
        "onset": verdict.onset,
        "sweet_spot": list(verdict.sweet_spot) if verdict.sweet_spot else None,
        "breakdown": verdict.breakdown,
        "recommended": verdict.recommended,
        "confidence": verdict.confidence,
        "intervals": {name: list(ends) for name, ends in verdict.intervals.items()},
        "why": verdict.why,
        "next": verdict.next,
        "notes": list(lora.get_lora_file(study.plan.lora.path).notes),
        "normalise_by": verdict.recommended
        if verdict.recommended and verdict.recommended >= MULTIPLY_RANGE[0]
        else None,
        "thresholds": {
            "most": SWEET_SPOT_SHARE,
            "rising": RISING_SHARE,
            "resamples": RESAMPLES,
            "holds": {
                name: [None if np.isinf(end) else end for end in ends] for name, ends in HELD_RANGES.items()
            },
        },
        # In lists, as in a report that was read from a file.
        "character": json.loads(json.dumps(asdict(character))) if character else None,
        "unmeasured": unmeasured,
        "eye": study.plan.feature_extractor,
        "seeds": list(study.plan.seeds),
        "prompts": list(study.plan.prompts),
        "cells": cells_of,
        "cells_found": study.cells_found,
        "seconds": round(study.seconds, 3),
        "unet_calls": study.unet_calls,
    }


def format_curve_csv(study: SweepStudy) -> str:
    """Return the curve as CSV."""
    out = io.StringIO()
    columns = ["strength", "effect", "effect_low", "effect_high", *MEASURES[1:]]
    writer = csv.DictWriter(out, columns)
    writer.writeheader()
    writer.writerows(build_curve(study))
    return out.getvalue()


def _round_numbers(numbers: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if number is None else round(number, 4) for name, number in numbers.items()}


@dataclass(frozen=True, kw_only=True)
class SweepFiles:
    """The files of an exported sweep, and its report."""

    sheet: Path
    curves: Path
    cells: tuple[tuple[Path, str], ...]
    """Pictures, each with a label of its strength and seed."""
    archive: Path
    table: Path
    sidecar: Path
    report: dict[str, Any]


def export_sweep(study: SweepStudy, folder: Path) -> SweepFiles:
    """Write what is finished so far into `folder`; after an error nothing is left.

    The report names its pictures as the zip does.
    """
    report = build_sweep_report(study)
    with remove_on_error(folder):
        cells, named = [], []
        for (strength, (prompt, seed)), file in sorted(study.pictures.items()):
            number = study.plan.prompts.index(prompt) + 1
            name = f"cells/{strength:g}/prompt{number}-seed{seed}.png"
            link_or_copy(file, folder / name)
            cells.append((folder / name, f"strength {strength:g} · seed {seed}"))
            named.append(
                {"strength": strength, "seed": seed, "prompt": prompt, "picture": name, "key": file.stem}
            )
        report["cells"] = named
        stem = lora_library.slugify(Path(study.plan.lora.path).stem)
        drawn = {"sheet": folder / "sheet.png", "curves": folder / "curves.png"}
        draw_sweep_sheet(study).save(drawn["sheet"])
        charts.draw_curves(report).save(drawn["curves"])
        told = {"table": folder / "curves.csv", "sidecar": folder / f"{stem}.json"}
        told["table"].write_text(format_curve_csv(study), encoding="utf-8")
        told["sidecar"].write_text(
            json.dumps(edit.build_sidecar(lora.get_lora_file(study.plan.lora.path), report), indent=1),
            encoding="utf-8",
        )
        (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        archive = folder / f"{stem}-sweep.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:  # PNG does not get smaller
            for file in [*drawn.values(), *told.values(), folder / "report.json"]:
                out.write(file, file.name)
            for (file, _), entry in zip(cells, named, strict=True):
                out.write(file, entry["picture"])
    return SweepFiles(cells=tuple(cells), archive=archive, report=report, **drawn, **told)


def draw_sweep_sheet(study: SweepStudy):
    """Draw the contact sheet of the pictures that are finished so far."""
    verdict, name = study.verdict, Path(study.plan.lora.path).stem
    rows = [
        f"{prompt[:MAX_LABEL_LENGTH]}{'…' * (len(prompt) > MAX_LABEL_LENGTH)} · seed {seed}"
        for prompt, seed in study.items
    ]
    title = f"{name} on {study.plan.settings.model}" + (f" · {verdict.why}" if verdict else "")
    strengths = study.strengths
    return charts.draw_contact_sheet(
        title,
        rows,
        strengths,
        lambda r, c: study.pictures.get((strengths[c], study.items[r])),
        verdict and verdict.sweet_spot,
    )
