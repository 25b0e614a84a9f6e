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
from core.sweep import charts, decide
from core.sweep.character import Character
from core.sweep.gauge import MEASURES
from core.sweep.knees import HELD_RANGES, LEAST_GAINS, SWEET_SPOT_SHARE
from core.sweep.resample import RESAMPLES, average_curve, draw_deviations
from core.sweep.study import SweepStudy
from core.sweep.verdict import Verdict
from core.system.atomic_files import link_or_copy, remove_on_error

MAX_LABEL_LENGTH = 60
"""Characters of a prompt that are shown in the sheet."""


def build_curve(study: SweepStudy) -> list[dict[str, Any]]:
    """Return a row for each complete strength, rising.

    A row has the means over the pictures and the interval of the effect over prompts and seeds, which
    is the effect itself for one prompt; `None` is what was not measured.
    """
    rows = []
    for strength in sorted(study.columns):
        curves = {name: study.build_curve(name, [strength]) for name in MEASURES}
        means = {
            name: None if np.isnan(curve).all() else float(average_curve(curve)[0])
            for name, curve in curves.items()
        }
        effect = {"effect": curves["effect"]}
        drawn = (
            draw_deviations(effect, np.random.default_rng(0), stretch=True)["effect"]
            if len(study.prompts) > 1
            else np.zeros(1)
        )
        tail = 50 * (1 - decide.LEVEL)
        low, high = (means["effect"] or 0) + np.percentile(drawn, [tail, 100 - tail])
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

    What was not measured is `None`, and `why` or `unmeasured` says why. `probe` is what the strengths were
    placed by (`core.sweep.strengths`), `None` where they were given. `notes` has what is unusual about the
    LoRA's alpha and its law of strength.
    """
    verdict = study.verdict or Verdict(
        answer="too little",
        intervals={},
        why=f"Stopped: {len(study.pictures)} of {len(study.strengths) * len(study.items)} "
        "images are finished.",
    )
    measured = sorted(study.columns)
    character = study.find_character()
    cells_of = [
        {"strength": strength, "seed": item[1], "prompt": item[0], "picture": str(file), "key": file.stem}
        for (strength, item), file in sorted(study.pictures.items())
    ]
    return {
        "lora": Path(study.plan.lora.path).stem,
        "sha256": study.sha256,
        "model": study.plan.settings.model,
        "model_hash": bases.hash_weights(study.plan.settings.model),
        "noise_floor": round(float(average_curve(study.noise_floors[None])[0]), 4) if measured else None,
        "strengths": study.strengths,
        "probe": [
            {"strength": strength, "change": change if np.isfinite(change) else None}
            for strength, change in sorted(study.changes.items())
        ]
        or None,
        "curve": build_curve(study),
        **_describe_verdict(verdict),
        "notes": list(lora.get_lora_file(study.plan.lora.path).notes),
        "measured": {
            "strengths": measured,
            "values": {name: list_values(study.build_curve(name, measured)) for name in MEASURES},
            "noise_floors": list_values(study.noise_floors) if measured else [],
        },
        "thresholds": _list_thresholds(study.level),
        # In lists, as in a report that was read from a file.
        "character": json.loads(json.dumps(asdict(character))) if character else None,
        "unmeasured": _explain_unmeasured(study, character),
        "eye": study.plan.feature_extractor,
        "seeds": list(study.plan.seeds),
        "prompts": list(study.prompts),
        "cells": cells_of,
        "cells_found": study.cells_found,
        "seconds": round(study.seconds, 3),
        "unet_calls": study.unet_calls,
    }


def _describe_verdict(verdict: Verdict) -> dict[str, Any]:
    recommended = verdict.recommended
    return {
        "answer": verdict.answer,
        "onset": verdict.onset,
        "sweet_spot": list(verdict.sweet_spot) if verdict.sweet_spot else None,
        "breakdown": verdict.breakdown,
        "recommended": recommended,
        "confidence": verdict.confidence,
        "intervals": {name: list(ends) for name, ends in verdict.intervals.items()},
        "why": verdict.why,
        "surer": verdict.surer,
        "next": verdict.next,
        "normalise_by": recommended if recommended and recommended >= MULTIPLY_RANGE[0] else None,
    }


def _list_thresholds(level: float) -> dict[str, Any]:
    """Return what the verdict was decided by; `level` is the share of the draws that a claim needed."""
    return {
        "most": SWEET_SPOT_SHARE,
        "gains": LEAST_GAINS,
        "levelling": decide.LEVELLING_SHARE,
        "rising": decide.RISING_SHARE,
        "rare": decide.RARE_SHARE,
        "often": decide.OFTEN_SHARE,
        "equally_sure": decide.EQUALLY_SURE,
        "settled": decide.SETTLED_CONFIDENCE,
        "prompts": decide.MIN_PROMPTS,
        "level": level,
        "resamples": RESAMPLES,
        "holds": {
            name: [None if np.isinf(end) else end for end in ends] for name, ends in HELD_RANGES.items()
        },
    }


def _explain_unmeasured(study: SweepStudy, character: Character | None) -> dict[str, str]:
    """Return measure -> why the report has no value of it."""
    found, measured = dict(study.unmeasured), sorted(study.columns)
    if not study.plan.references:
        found["style"] = "No reference images were given."
    if measured and np.isnan(study.build_curve("trigger", measured)).all():
        found["trigger"] = found.get(
            "prompt", "The LoRA's file names no tag that the tagger knows and that these prompts do not show."
        )
    if character is None:
        found["character"] = "No strength is recommended at which the LoRA could be described."
    return found


def format_curve_csv(study: SweepStudy) -> str:
    """Return the curve as CSV."""
    out = io.StringIO()
    columns = ["strength", "effect", "effect_low", "effect_high", *MEASURES[1:]]
    writer = csv.DictWriter(out, columns)
    writer.writeheader()
    writer.writerows(build_curve(study))
    return out.getvalue()


def list_values(values: np.ndarray) -> Any:
    """Return nested lists of an array's numbers, `None` for NaN, to six significant digits."""
    if values.ndim:
        return [list_values(each) for each in values]
    return None if np.isnan(values) else float(f"{values:.6g}")


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
        places = [(strength, item) for item in study.items for strength in study.strengths]
        for strength, (prompt, seed) in (place for place in places if place in study.pictures):
            file, number = study.pictures[strength, (prompt, seed)], study.prompts.index(prompt) + 1
            name = f"cells/{strength:g}/prompt{number}-seed{seed}.png"
            link_or_copy(file, folder / name)
            cells.append((folder / name, f"{strength:g} · seed {seed}"))
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
    strengths = study.strengths or [0.0]  # a sweep without a picture has an empty column
    return charts.draw_contact_sheet(
        title,
        rows,
        strengths,
        lambda r, c: study.pictures.get((strengths[c], study.items[r])),
        verdict and verdict.sweet_spot,
    )
