"""Reports as a client gives them back -> reports that can be printed: their own fields alone, numbers that are numbers, short texts."""

import math
import re
from collections.abc import Mapping
from typing import Any

from core.checks import FORBIDDEN
from core.types import UserError

TEXT = 2000  # characters of one text
ROWS = 4096  # of one list
CURVE = ("strength", "effect", "effect_low", "effect_high", "style", "composition", "prompt", "detail", "saturation")
KNEES = ("onset", "sweet_spot_low", "sweet_spot_high", "breakdown")
PAIR = ("sweet_spot", "recommended", "needs_times", "share")
VERDICTS = ("full", "partial", "none", None)


def sweep(said: Any, sha256: str, history: Mapping[str, float] | None = None) -> dict[str, Any]:
    """A sweep's report of the file with this hash, or of one in its `history`: hash -> its strength that is 1 in this file.

    Raises `UserError` for anything else: figures of another file are worse than none.
    """
    known = {sha256: 1.0, **(history or {})}
    try:
        own = said["sha256"] in known
        found = {
            "lora": _text(said["lora"]),
            "sha256": sha256,
            "model": _text(said["model"]),
            "why": _text(said["why"]),
            "noise_floor": _number(said["noise_floor"]),
            **{name: _number(said[name]) for name in ("onset", "breakdown", "recommended")},
            "sweet_spot": _range(said["sweet_spot"]),
            "confidence": _number(said["confidence"]) or 0.0,
            "intervals": {name: _range(said["intervals"][name]) for name in KNEES if said["intervals"].get(name)},
            "curve": [_curve(row) for row in _rows(said["curve"])],
            "prompts": [_text(prompt) for prompt in _rows(said["prompts"])],
            "seeds": [int(_number(seed) or 0) for seed in _rows(said["seeds"])],
            "eye": _text(said["eye"]),
            "cells": [_cell(cell) for cell in _rows(said.get("cells", []))],
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError("sweep: it takes the report of a sweep, as the Sweep tab or /sweep gives it.") from error
    if not own:
        raise UserError(f"sweep: {found['lora'][:60]} was measured, which is another file than the one to publish; measure this one.")
    times = known[said["sha256"]]
    return found if times == 1 else _rescaled(found, times)


def _rescaled(report: dict[str, Any], times: float) -> dict[str, Any]:
    """The report in the strengths of a file whose 1 was `times`."""
    made = dict(report)
    made |= {name: round(made[name] / times, 4) for name in ("onset", "breakdown", "recommended") if made[name] is not None}
    made |= {"sweet_spot": _divided(made["sweet_spot"], times), "intervals": {name: _divided(ends, times) for name, ends in made["intervals"].items()}}
    made |= {name: [{**row, "strength": round((row["strength"] or 0) / times, 4)} for row in made[name]] for name in ("curve", "cells")}
    made["why"] = f"Measured before alpha was multiplied by {times:g}, strengths divided by it. Then: {report['why']}"
    return made


def _divided(ends: list[float] | None, times: float) -> list[float] | None:
    return ends and [round(end / times, 4) for end in ends]


def transfer(said: Any, sha256: str) -> dict[str, Any]:
    """A transfer study's report that has the whole file with this hash in it: its rows. Raises `UserError` as `sweep`."""
    try:
        own = {name for name, hashed in said["sha256"].items() if hashed == sha256}
        if "parts" not in said:
            raise UserError("transfer: the report is an older one, which does not say whether whole files were measured; measure again.")
        names = own - dict(said["parts"]).keys()  # a row of some blocks says nothing of the file
        found = {
            "rule": _text(said["rule"]),
            "models": [_text(model) for model in _rows(said["models"])],
            "seeds": [int(_number(seed) or 0) for seed in _rows(said["seeds"])],
            "prompts": [_text(prompt) for prompt in _rows(said["prompts"])],
            "per_pair": [_pair(pair) for pair in _rows(said["per_pair"]) if pair["lora"] in names],
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError("transfer: it takes the report of a transfer study, as the Transfer tab or /transfer gives it.") from error
    if own and not names:
        raise UserError("transfer: only parts of the file to publish were measured, some of its blocks; measure the whole of it.")
    if not names:
        raise UserError("transfer: the file to publish is not among those that were measured; measure this one.")
    return found


def _curve(said: Mapping[str, Any]) -> dict[str, Any]:
    """A strength's row; what is drawn as a line with its interval is there."""
    found = {name: _number(said.get(name)) for name in CURVE}
    if any(found[name] is None for name in CURVE[:4]):
        raise ValueError("no interval")
    return found


def _cell(said: Mapping[str, Any]) -> dict[str, Any]:
    """A picture's place, and the key by which it is kept here."""
    key = _text(said.get("key", ""))
    told = {"strength": _number(said["strength"]), "seed": int(_number(said["seed"]) or 0), "prompt": _text(said["prompt"])}
    return {**told, "key": key if re.fullmatch(r"[0-9a-f]{64}", key) else ""}


def _pair(said: Mapping[str, Any]) -> dict[str, Any]:
    if said["verdict"] not in VERDICTS:
        raise ValueError("no verdict")
    numbers = {name: _range(said[name]) if name == "sweet_spot" else _number(said[name]) for name in PAIR}
    return {"lora": _text(said["lora"]), "model": _text(said["model"]), "verdict": said["verdict"], "why": _text(said["why"]), **numbers}


def _text(said: Any) -> str:
    if not isinstance(said, str):
        raise TypeError("no text")
    return FORBIDDEN.sub("", said[:TEXT])


def _number(said: Any) -> float | None:
    if said is None:
        return None
    if isinstance(said, bool) or not isinstance(said, int | float) or not math.isfinite(said):
        raise TypeError("no number")
    return said


def _range(said: Any) -> list[float] | None:
    if said is None:
        return None
    low, high = (_number(end) for end in said)
    if low is None or high is None:
        raise ValueError("half a range")
    return [low, high]


def _rows(said: Any) -> list[Any]:
    if not isinstance(said, list) or len(said) > ROWS:
        raise TypeError("no list")
    return said
