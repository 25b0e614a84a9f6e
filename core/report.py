"""What a sweep tells: its curve, its report as plain data, its table."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from core.decide import HOLDS, INTERVAL, MOST, RESAMPLES, RISING, Verdict
from core.edit import MULTIPLY
from core.sweep import MEASURES, Study


def curve(study: Study) -> list[dict[str, Any]]:
    """A row for each strength that is whole, rising: means over the pictures, and the effect's interval; `None` for what was not measured."""
    rows = []
    rng = np.random.default_rng(0)
    picks = rng.integers(len(study.items), size=(RESAMPLES, len(study.items)))
    for strength in sorted(study.measured):
        column = study.measured[strength]
        means = {name: float(np.nanmean(column[name])) if not np.isnan(column[name]).all() else None for name in MEASURES}
        low, high = np.percentile(column["effect"][picks].mean(1), INTERVAL)
        rows.append({"strength": strength, **_rounded(means), **_rounded({"effect_low": float(low), "effect_high": float(high)})})
    return rows


def reported(study: Study) -> dict[str, Any]:
    """Everything as plain data: what was not measured is `None`, and `why` or `unmeasured` says why."""
    verdict = study.verdict or Verdict(intervals={}, why=f"Stopped: {len(study.pictures)} of {len(study.strengths) * len(study.items)} pictures are there.")
    unmeasured = dict(study.unmeasured)
    if not study.plan.references:
        unmeasured["style"] = "No reference pictures were given."
    cells_of = [
        {"strength": strength, "seed": item[1], "prompt": item[0], "picture": str(file), "key": file.stem}
        for (strength, item), file in sorted(study.pictures.items())
    ]
    return {
        "lora": Path(study.plan.lora.path).stem,
        "sha256": study.sha256,
        "model": study.plan.settings.model,
        "noise_floor": round(study.yard.floor, 4) if 0.0 in study.measured else None,
        "strengths": study.strengths,
        "curve": curve(study),
        "onset": verdict.onset,
        "sweet_spot": list(verdict.sweet_spot) if verdict.sweet_spot else None,
        "breakdown": verdict.breakdown,
        "recommended": verdict.recommended,
        "confidence": verdict.confidence,
        "intervals": {name: list(ends) for name, ends in verdict.intervals.items()},
        "why": verdict.why,
        "next": verdict.next,
        "normalise_by": verdict.recommended if verdict.recommended and verdict.recommended >= MULTIPLY[0] else None,
        "thresholds": {
            "most": MOST,
            "rising": RISING,
            "resamples": RESAMPLES,
            "holds": {name: [None if np.isinf(end) else end for end in ends] for name, ends in HOLDS.items()},
        },
        "unmeasured": unmeasured,
        "eye": study.plan.eye,
        "seeds": list(study.plan.seeds),
        "prompts": list(study.plan.prompts),
        "cells": cells_of,
        "cells_found": study.found,
        "seconds": round(study.seconds, 3),
        "unet_calls": study.unet_calls,
    }


def table(study: Study) -> str:
    """The curve as CSV."""
    out = io.StringIO()
    columns = ["strength", "effect", "effect_low", "effect_high", *MEASURES[1:]]
    writer = csv.DictWriter(out, columns)
    writer.writeheader()
    writer.writerows(curve(study))
    return out.getvalue()


def _rounded(numbers: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if number is None else round(number, 4) for name, number in numbers.items()}
