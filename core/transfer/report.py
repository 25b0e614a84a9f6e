"""Report a transfer study as plain data and as a table."""

import csv
import io
from typing import Any

import numpy as np

from core.models import bases
from core.schema import presets
from core.sweep.resample import Curve, average_curve, draw_deviations
from core.transfer.blocks import describe_blocks
from core.transfer.claims import evaluate_claims, find_relation, format_tree
from core.transfer.judge import TAIL, VERDICT_RULE
from core.transfer.study import PAIR_MEASURES, TransferPair, TransferStudy

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
        "added_models": list(plan.added_models),
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
            for cell in _build_cell_rows(study.pairs[row.name, model])
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
    """Return one line that says for each LoRA where it works, and which models were added."""
    done, total = study.count_done()
    if not any(pair.judgement for pair in study.pairs.values()):
        return f"{done} of {total} images are finished."
    lines = []
    for row in study.plan.loras:
        by: dict[str, list[str]] = {}
        for model in study.plan.models:
            pair = study.pairs[row.name, model]
            by.setdefault(
                pair.judgement.verdict or "unclear"
                if pair.judgement
                else "not generated"
                if pair.failure
                else "not measured",
                [],
            ).append(model)
        lines.append(
            f"{row.name}: "
            + ", ".join(
                f"{verdict} on {' and '.join(by[verdict])}" for verdict in VERDICT_ORDER if verdict in by
            )
        )
    added = [f"{model} was added as a home model" for model in study.plan.added_models]
    return "; ".join([*lines, *added]) + "."


VERDICT_ORDER = ("full", "at least partial", "partial", "none", "unclear", "not measured", "not generated")


def format_cells_csv(study: TransferStudy) -> str:
    """Return the cells as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CELL_FIELDS)
    writer.writeheader()
    writer.writerows(build_transfer_report(study)["cells"])
    return out.getvalue()


def _build_cell_rows(pair: TransferPair) -> list[dict[str, Any]]:
    """Return a row for each strength but 0."""
    rows = []
    made = pair.strengths if pair.curves else pair.sweep.strengths
    ends = _bound_means(pair.curves["effect"]) if pair.curves else []
    for i, strength in enumerate(made):
        if strength == 0:
            continue
        row: dict[str, Any] = dict.fromkeys(CELL_FIELDS) | {
            "model": pair.model,
            "lora": pair.row.name,
            "strength": strength,
            "why": pair.judgement.why if pair.judgement else pair.failure or "Not generated yet.",
        }
        if pair.curves:
            row |= {
                "style_kept": _mean_or_none(pair.curves.get("style"), i),
                "base_style_kept": _mean_or_none(pair.curves.get("own_style"), i),
                **{name: _mean_or_none(pair.curves[name], i) for name in PAIR_MEASURES},
                "effect_low": round(float(ends[0][i]), 4),
                "effect_high": round(float(ends[1][i]), 4),
            }
        rows.append(row)
    return rows


def _bound_means(curve: Curve) -> np.ndarray:
    """Return the interval of each strength's mean over prompts and seeds, (2, strengths).

    It is the mean itself for one prompt, which does not tell how much prompts differ.
    """
    means = average_curve(curve)
    if curve.shape[1] < 2:
        return np.stack([means, means])
    drawn = draw_deviations({"it": curve}, np.random.default_rng(0), stretch=True)["it"]
    return means + np.quantile(drawn, [TAIL, 1 - TAIL], axis=0)


def _build_pair_row(pair: TransferPair) -> dict[str, Any]:
    row: dict[str, Any] = {"model": pair.model, "lora": pair.row.name}
    row["relation"] = (
        find_relation(pair.row.home_model, pair.model, presets.get_models()) if pair.row.home_model else None
    )
    found = pair.judgement
    if found is None:
        empty = (
            "answer",
            "sweet_spot",
            "recommended",
            "strength",
            "needs_times",
            "needs_interval",
            "share",
            "share_interval",
            "verdict",
        )
        why = pair.failure or "Not generated yet."
        return row | dict.fromkeys(empty) | {"why": why, "lacks": why}
    return row | {
        "answer": found.sweep.answer,
        "sweet_spot": list(found.sweep.sweet_spot) if found.sweep.sweet_spot else None,
        "recommended": found.sweep.recommended,
        "strength": found.strength,
        "needs_times": found.needs_times and round(found.needs_times, 4),
        "needs_interval": found.needs_interval
        and [None if end is None else round(end, 4) for end in found.needs_interval],
        "share": None if found.share is None else round(found.share, 4),
        "share_interval": found.share_interval and [round(end, 4) for end in found.share_interval],
        "verdict": found.verdict,
        "why": found.why,
        "lacks": pair.failure or found.lacks,
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
    return (
        None
        if curve is None or np.isnan(curve[i]).all()
        else round(float(average_curve(curve[i : i + 1])[0]), 4)
    )
