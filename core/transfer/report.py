"""Report a transfer study as plain data and as a table."""

import csv
import io
from typing import Any

import numpy as np

from core.models import bases
from core.schema import presets
from core.sweep.decide import INTERVAL_PERCENTILES, RESAMPLES
from core.transfer.blocks import describe_blocks
from core.transfer.claims import evaluate_claims, find_relation, format_tree
from core.transfer.judge import VERDICT_RULE
from core.transfer.study import TransferPair, TransferStudy

CELL_FIELDS = (
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


def build_transfer_report(study: TransferStudy) -> dict[str, Any]:
    """Return the study as plain data.

    What was not measured is `None`, and `why` or `unmeasured` says why.
    """
    table, plan = presets.get_models(), study.plan
    done, total = study.count_done()
    whole = all(pair.curves or pair.failure for pair in study.pairs.values())
    return {
        "models": list(plan.models),
        "model_hashes": {model: bases.hash_weights(model) for model in plan.models},
        "loras": [row.name for row in plan.loras],
        "sha256": {row.name: study.pairs[row.name, plan.models[0]].sweep.sha256 for row in plan.loras},
        "parts": {row.name: row.lora.blocks for row in plan.loras if row.lora.blocks},
        "homes": {row.name: row.home_model for row in plan.loras},
        "strengths": study.strengths,
        "prompts": list(plan.prompts),
        "seeds": list(plan.seeds),
        "clip_skip": plan.settings.clip_skip,
        "eye": plan.feature_extractor,
        "cells": [
            cell
            for row in plan.loras
            for model in plan.models
            for cell in _build_cell_rows(study, study.pairs[row.name, model])
        ],
        "per_pair": [
            _build_pair_row(study.pairs[row.name, model]) for row in plan.loras for model in plan.models
        ],
        "rule": VERDICT_RULE,
        "lineage": {
            "tree": format_tree(plan.models, table),
            "claims": [vars(claim) for claim in evaluate_claims(study)] if whole else [],
        },
        "blocks": describe_blocks(study),
        "unmeasured": study.unmeasured,
        "why": summarise_study(study),
        "pictures": _list_pictures(study),
        "pictures_done": done,
        "pictures_wanted": total,
        "seconds": round(study.seconds, 3),
        "unet_calls": study.unet_calls,
        "model_loads": study.model_loads,
    }


def summarise_study(study: TransferStudy) -> str:
    """Return one line that says for each LoRA where it works."""
    done, total = study.count_done()
    if not any(pair.judgement for pair in study.pairs.values()):
        return f"{done} of {total} images are finished."
    lines = []
    for row in study.plan.loras:
        by: dict[str, list[str]] = {}
        for model in study.plan.models:
            pair = study.pairs[row.name, model]
            by.setdefault(
                "not generated"
                if pair.failure
                else (pair.judgement.verdict or "not known")
                if pair.judgement
                else "not measured",
                [],
            ).append(model)
        lines.append(
            f"{row.name}: "
            + ", ".join(
                f"{verdict} on {' and '.join(by[verdict])}" for verdict in VERDICT_ORDER if verdict in by
            )
        )
    return "; ".join(lines) + "."


VERDICT_ORDER = ("full", "partial", "none", "not known", "not measured", "not generated")


def format_cells_csv(study: TransferStudy) -> str:
    """Return the cells as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CELL_FIELDS)
    writer.writeheader()
    writer.writerows(build_transfer_report(study)["cells"])
    return out.getvalue()


def _build_cell_rows(study: TransferStudy, pair: TransferPair) -> list[dict[str, Any]]:
    """Return a row for each strength but 0."""
    rows = []
    items = len(study.items)
    picks = np.random.default_rng(0).integers(items, size=(RESAMPLES, items))
    for i, strength in enumerate(study.strengths):
        if strength == 0:
            continue
        row: dict[str, Any] = dict.fromkeys(CELL_FIELDS) | {
            "model": pair.model,
            "lora": pair.row.name,
            "strength": strength,
        }
        row["why"] = pair.failure or (pair.judgement.why if pair.judgement else "Not generated yet.")
        if pair.curves:
            means = {
                name: _mean_or_none(pair.curves.get(name), i)
                for name in ("effect", "composition", "prompt", "detail", "saturation")
            }
            means |= {
                "style_kept": _mean_or_none(pair.curves.get("style"), i),
                "base_style_kept": _mean_or_none(pair.curves.get("own_style"), i),
            }
            low, high = np.percentile(pair.curves["effect"][i][picks].mean(1), INTERVAL_PERCENTILES)
            row |= means | {"effect_low": round(float(low), 4), "effect_high": round(float(high), 4)}
        rows.append(row)
    return rows


def _build_pair_row(pair: TransferPair) -> dict[str, Any]:
    row: dict[str, Any] = {"model": pair.model, "lora": pair.row.name}
    row["relation"] = (
        find_relation(pair.row.home_model, pair.model, presets.get_models()) if pair.row.home_model else None
    )
    found = pair.judgement
    if found is None:
        empty = (
            "sweet_spot",
            "recommended",
            "needs_times",
            "needs_interval",
            "share",
            "share_interval",
            "verdict",
        )
        return row | dict.fromkeys(empty) | {"why": pair.failure or "Not generated yet."}
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


def _list_pictures(study: TransferStudy) -> list[dict[str, Any]]:
    """Return every picture with its place; strength 0 appears once per model."""
    found = []
    for (lora, model), pair in study.pairs.items():
        for (strength, (prompt, seed)), file in sorted(pair.sweep.pictures.items()):
            if strength or lora == study.plan.loras[0].name:
                found.append(
                    {
                        "model": model,
                        "lora": lora if strength else None,
                        "strength": strength,
                        "prompt": prompt,
                        "seed": seed,
                        "picture": str(file),
                    }
                )
    return found


def _mean_or_none(curve: np.ndarray | None, i: int) -> float | None:
    return None if curve is None or np.isnan(curve[i]).all() else round(float(np.nanmean(curve[i])), 4)
