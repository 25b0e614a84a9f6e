"""What a transfer study tells, as plain data and as a table."""

import csv
import io
from typing import Any

import numpy as np

from core import presets
from core.decide import INTERVAL, RESAMPLES
from core.transfer.blocks import blocks
from core.transfer.claims import claims
from core.transfer.judge import RULE
from core.transfer.lineage import relation, tree
from core.transfer.study import Pair, Study

CELL = (
    "model",
    "lora",
    "strength",
    "effect",
    "effect_low",
    "effect_high",
    "style_kept",
    "base_style_kept",
    "composition",
    "prompt",
    "detail",
    "saturation",
    "why",
)


def reported(study: Study) -> dict[str, Any]:
    """Everything: what was not measured is `None`, and `why` or `unmeasured` says why."""
    table, plan = presets.models(), study.plan
    done, total = study.done()
    whole = all(pair.curves or pair.failed for pair in study.pairs.values())
    return {
        "models": list(plan.models),
        "loras": [row.name for row in plan.rows],
        "sha256": {row.name: study.pairs[row.name, plan.models[0]].sweep.sha256 for row in plan.rows},
        "parts": {row.name: row.lora.blocks for row in plan.rows if row.lora.blocks},
        "homes": {row.name: row.home for row in plan.rows},
        "strengths": study.strengths,
        "prompts": list(plan.prompts),
        "seeds": list(plan.seeds),
        "clip_skip": plan.settings.clip_skip,
        "eye": plan.eye,
        "cells": [cell for row in plan.rows for model in plan.models for cell in _cells(study, study.pairs[row.name, model])],
        "per_pair": [_pair(study.pairs[row.name, model]) for row in plan.rows for model in plan.models],
        "rule": RULE,
        "lineage": {"tree": tree(plan.models, table), "claims": [vars(claim) for claim in claims(study)] if whole else []},
        "blocks": blocks(study),
        "unmeasured": study.unmeasured,
        "why": sentence(study),
        "pictures": _pictures(study),
        "pictures_done": done,
        "pictures_wanted": total,
        "seconds": round(study.seconds, 3),
        "unet_calls": study.unet_calls,
        "model_loads": study.loads,
    }


def sentence(study: Study) -> str:
    """For each LoRA where it works, in a line."""
    done, total = study.done()
    if not any(pair.judged for pair in study.pairs.values()):
        return f"{done} of {total} pictures are there."
    lines = []
    for row in study.plan.rows:
        by: dict[str, list[str]] = {}
        for model in study.plan.models:
            pair = study.pairs[row.name, model]
            by.setdefault("not made" if pair.failed else (pair.judged.verdict or "not known") if pair.judged else "not measured", []).append(model)
        lines.append(f"{row.name}: " + ", ".join(f"{verdict} on {' and '.join(by[verdict])}" for verdict in ORDER if verdict in by))
    return "; ".join(lines) + "."


ORDER = ("full", "partial", "none", "not known", "not measured", "not made")


def table(study: Study) -> str:
    """The cells as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CELL)
    writer.writeheader()
    writer.writerows(reported(study)["cells"])
    return out.getvalue()


def _cells(study: Study, pair: Pair) -> list[dict[str, Any]]:
    """A row for each strength but 0."""
    rows = []
    items = len(study.items)
    picks = np.random.default_rng(0).integers(items, size=(RESAMPLES, items))
    for i, strength in enumerate(study.strengths):
        if strength == 0:
            continue
        row: dict[str, Any] = dict.fromkeys(CELL) | {"model": pair.model, "lora": pair.row.name, "strength": strength}
        row["why"] = pair.failed or (pair.judged.why if pair.judged else "Not made yet.")
        if pair.curves:
            means = {name: _mean(pair.curves.get(name), i) for name in ("effect", "composition", "prompt", "detail", "saturation")}
            means |= {"style_kept": _mean(pair.curves.get("style"), i), "base_style_kept": _mean(pair.curves.get("own_style"), i)}
            low, high = np.percentile(pair.curves["effect"][i][picks].mean(1), INTERVAL)
            row |= means | {"effect_low": round(float(low), 4), "effect_high": round(float(high), 4)}
        rows.append(row)
    return rows


def _pair(pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {"model": pair.model, "lora": pair.row.name}
    row["relation"] = relation(pair.row.home, pair.model, presets.models()) if pair.row.home else None
    found = pair.judged
    if found is None:
        empty = ("sweet_spot", "recommended", "needs_times", "needs_interval", "share", "share_interval", "verdict")
        return row | dict.fromkeys(empty) | {"why": pair.failed or "Not made yet."}
    return row | {
        "sweet_spot": list(found.sweep.sweet_spot) if found.sweep.sweet_spot else None,
        "recommended": found.sweep.recommended,
        "needs_times": found.needs_times and round(found.needs_times, 4),
        "needs_interval": found.needs_interval and [round(end, 4) for end in found.needs_interval],
        "share": found.share and round(found.share, 4),
        "share_interval": found.share_interval and [round(end, 4) for end in found.share_interval],
        "verdict": found.verdict,
        "why": found.why,
    }


def _pictures(study: Study) -> list[dict[str, Any]]:
    """Every picture by its place; that of strength 0 once a model."""
    found = []
    for (lora, model), pair in study.pairs.items():
        for (strength, (prompt, seed)), file in sorted(pair.sweep.pictures.items()):
            if strength or lora == study.plan.rows[0].name:
                found.append({"model": model, "lora": lora if strength else None, "strength": strength, "prompt": prompt, "seed": seed, "picture": str(file)})
    return found


def _mean(curve: np.ndarray | None, i: int) -> float | None:
    return None if curve is None or np.isnan(curve[i]).all() else round(float(np.nanmean(curve[i])), 4)
