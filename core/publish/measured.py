"""Check reports that a client sends back, so that they can be printed.

Of each report only its known fields are kept; numbers must be such as a study writes, and texts are
cut short.
"""

import re
from collections.abc import Mapping
from typing import Any, get_args

from core.models import bases
from core.schema import limits, presets
from core.schema.bounds import FORBIDDEN_CHARACTERS, is_number
from core.schema.errors import UserError
from core.sweep.field_check import parse_field_answers, summarise_field_check
from core.sweep.verdict import Answer

MAX_TEXT_LENGTH = 2000  # characters of one text
MAX_ROWS = 4096  # of one list
MAX_NUMBER = 1e6  # of what a study measures
CURVE_FIELDS = (
    "strength",
    "effect",
    "effect_low",
    "effect_high",
    "style",
    "composition",
    "prompt",
    "detail",
    "saturation",
)
KNEE_FIELDS = ("onset", "sweet_spot_low", "sweet_spot_high", "breakdown")
PAIR_FIELDS = ("sweet_spot", "recommended", "needs_times", "share")
VERDICTS = ("full", "at least partial", "partial", "none", None)


def parse_sweep_report(
    report: Any, sha256: str, history: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Parse a sweep's report of the file with this hash, or of a file in its `history`.

    `history` is the hash of an earlier file -> its strength that is 1 in this file. Raises
    `UserError` for any other report: figures of another file are worse than none.
    """
    known = {sha256: 1.0, **(history or {})}
    try:
        own = report["sha256"] in known
        found = {
            "lora": _parse_text(report["lora"]),
            "sha256": sha256,
            "model": _parse_text(report["model"]),
            "why": _parse_text(report["why"]) + _describe_weights(report["model"], report.get("model_hash")),
            "noise_floor": _parse_number(report["noise_floor"], 0, MAX_NUMBER),
            **{name: _parse_strength(report[name]) for name in ("onset", "breakdown", "recommended")},
            "sweet_spot": _parse_interval(report["sweet_spot"]),
            "confidence": _parse_number(report["confidence"], 0, 1) or 0.0,
            "answer": _parse_answer(report.get("answer")),
            "intervals": {
                name: _parse_open_interval(report["intervals"][name])
                for name in KNEE_FIELDS
                if report["intervals"].get(name) is not None
            },
            "curve": [_parse_curve_row(row) for row in _parse_rows(report["curve"])],
            "prompts": [_parse_text(prompt) for prompt in _parse_rows(report["prompts"])],
            "seeds": [_parse_seed(seed) for seed in _parse_rows(report["seeds"])],
            "eye": _parse_text(report["eye"]),
            "cells": [_parse_cell(cell) for cell in _parse_rows(report.get("cells", []))],
            "character": _parse_character(report.get("character")),
            "field_check": None,
        }
        times = known.get(report["sha256"], 1.0)
        if times != 1:
            found = _rescale_report(found, times)
        if (check := report.get("field_check")) is not None:
            found["field_check"] = summarise_field_check(
                parse_field_answers(check, times), found["intervals"].get("breakdown")
            )
        if (found["sweet_spot"] is None) != (found["recommended"] is None):
            raise ValueError("half a verdict")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError("sweep", "use the report of a sweep from the Sweep tab or /sweep.") from error
    if not own:
        raise UserError(
            "sweep", f"{found['lora'][:60]} was measured, which is not the file to publish. Measure this one."
        )
    return found


def _rescale_report(report: dict[str, Any], times: float) -> dict[str, Any]:
    """Return the report in the strengths of a file at which 1 is what was `times`."""
    made = dict(report)
    made |= {
        name: round(made[name] / times, 4)
        for name in ("onset", "breakdown", "recommended")
        if made[name] is not None
    }
    made |= {
        "sweet_spot": _divide_range(made["sweet_spot"], times),
        "intervals": {name: _divide_range(ends, times) for name, ends in made["intervals"].items()},
    }
    if character := made["character"]:
        made["character"] = {**character, "strength": round(character["strength"] / times, 4)}
    made |= {
        name: [{**row, "strength": round((row["strength"] or 0) / times, 4)} for row in made[name]]
        for name in ("curve", "cells")
    }
    made["why"] = (
        f"Measured before alpha was multiplied by {times:g}; strengths are divided by it. "
        f"Original result: {report['why']}"
    )
    return made


def _divide_range(ends: list[Any] | None, times: float) -> list[float | None] | None:
    return ends and [None if end is None else round(end / times, 4) for end in ends]


def parse_transfer_report(report: Any, sha256: str) -> dict[str, Any]:
    """Parse a transfer study's report; return the rows of the file with this hash.

    Raises `UserError` for anything that is no such report, and for one in which the whole file was
    not measured.
    """
    try:
        own = {name for name, hashed in report["sha256"].items() if hashed == sha256}
        if "parts" not in report:
            raise UserError(
                "transfer",
                "the report is from an older version and does not say whether whole files "
                "were measured. Measure again.",
            )
        names = own - dict(report["parts"]).keys()  # some blocks alone do not describe the file
        found = {
            "rule": _parse_text(report["rule"]),
            "models": [_parse_text(model) for model in _parse_rows(report["models"])],
            "seeds": [_parse_seed(seed) for seed in _parse_rows(report["seeds"])],
            "prompts": [_parse_text(prompt) for prompt in _parse_rows(report["prompts"])],
            "per_pair": [
                _parse_pair(pair, dict(report.get("model_hashes", {})))
                for pair in _parse_rows(report["per_pair"])
                if pair["lora"] in names
            ],
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            "transfer", "use the report of a transfer study from the Transfer tab or /transfer."
        ) from error
    if own and not names:
        raise UserError(
            "transfer", "only some blocks of the file to publish were measured. Measure the whole file."
        )
    if not names:
        raise UserError(
            "transfer", "the file to publish is not among those that were measured. Measure this one."
        )
    return found


def _parse_curve_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a strength's row of a curve.

    Raises `ValueError` if the strength, the effect or its interval is missing, which are drawn as a
    line.
    """
    found = {name: _parse_number(row.get(name)) for name in CURVE_FIELDS}
    _parse_strength(found["strength"])
    if any(found[name] is None for name in CURVE_FIELDS[:4]):
        raise ValueError("no interval")
    return found


def _parse_character(found: Any) -> dict[str, Any] | None:
    """Parse what a LoRA is; `None` for reports that do not say, as older ones."""
    if found is None:
        return None
    told = {
        "strength": _parse_strength(found["strength"]),
        "action": _parse_number(found["action"], 0),
        "consistency": _parse_number(found["consistency"], -1, 1),
    }
    if None in told.values():
        raise ValueError("half a character")
    return {
        **told,
        "intervals": {
            name: _parse_ends(found["intervals"][name], *ends)
            for name, ends in (("action", (0, MAX_NUMBER)), ("consistency", (-1, 1)))
            if found["intervals"].get(name) is not None
        },
        "words": None
        if found["words"] is None
        else [_parse_word(word) for word in _parse_rows(found["words"])],
        "why": None if found["why"] is None else _parse_text(found["why"]),
    }


def _parse_word(word: Mapping[str, Any]) -> dict[str, Any]:
    low, high = _parse_ends([word["low"], word["high"]], -1, 1)
    change = _parse_number(word["change"], low, high)
    if change is None:
        raise ValueError("no change")
    return {"tag": _parse_text(word["tag"]), "change": change, "low": low, "high": high}


def _parse_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a picture's strength, seed and prompt, and the key of its cell in the cache."""
    key = _parse_text(cell.get("key", ""))
    told = {
        "strength": _parse_strength(cell["strength"]),
        "seed": _parse_seed(cell["seed"]),
        "prompt": _parse_text(cell["prompt"]),
    }
    if told["strength"] is None:
        raise ValueError("no strength")
    return {**told, "key": key if re.fullmatch(r"[0-9a-f]{64}", key) else ""}


def _describe_weights(model: Any, measured: Any) -> str:
    """Return a remark if a report was not measured on the weights that an embedded model has now.

    `measured` is the hash that the report names, or `None`. Empty for models that are not embedded.
    """
    today = bases.hash_weights(model) if model in presets.get_models() else None
    if today in (None, measured):
        return ""
    return f" (Measured on {'other' if measured else 'unknown'} weights of {model}.)"


def _parse_pair(pair: Mapping[str, Any], hashes: Mapping[str, Any]) -> dict[str, Any]:
    if pair["verdict"] not in VERDICTS:
        raise ValueError("no verdict")
    numbers = {
        name: _parse_interval(pair[name])
        if name == "sweet_spot"
        else _parse_strength(pair[name])
        if name == "recommended"
        else _parse_number(pair[name])
        for name in PAIR_FIELDS
    }
    return {
        "lora": _parse_text(pair["lora"]),
        "model": _parse_text(pair["model"]),
        "verdict": pair["verdict"],
        "why": _parse_text(pair["why"]) + _describe_weights(pair["model"], hashes.get(pair["model"])),
        **numbers,
    }


def _parse_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return FORBIDDEN_CHARACTERS.sub("", value[:MAX_TEXT_LENGTH])


def _parse_number(value: Any, low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> float | None:
    if value is None:
        return None
    if not is_number(value) or not low <= value <= high:  # false for NaN
        raise TypeError("no number of a study")
    return value


def _parse_strength(value: Any) -> float | None:
    return _parse_number(value, *limits.STRENGTH)


def _parse_seed(value: Any) -> int:
    seed = _parse_number(value, *limits.SEED)
    if seed is None or seed != int(seed):
        raise TypeError("no seed")
    return int(seed)


def _parse_interval(value: Any) -> list[float] | None:
    if value is None:
        return None
    return _parse_ends(value, *limits.STRENGTH)


def _parse_ends(value: Any, least: float, greatest: float) -> list[float]:
    low, high = (_parse_number(end, least, greatest) for end in value)
    if low is None or high is None or low > high:
        raise ValueError("no range")
    return [low, high]


def _parse_open_interval(value: Any) -> list[float | None]:
    """Parse an interval of which one end may be beyond what was tried, `None`."""
    low, high = (_parse_strength(end) for end in value)
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        raise ValueError("no interval")
    return [low, high]


def _parse_answer(value: Any) -> str | None:
    """Parse what a sweep found; `None` for a report of before there were answers."""
    if value is not None and value not in get_args(Answer):
        raise ValueError("no answer")
    return value


def _parse_rows(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_ROWS:
        raise TypeError("no list")
    return value
