"""Decides a sweep's verdict again, from its report alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.schema.errors import UserError
from core.sweep.decide import decide_verdict
from core.sweep.verdict import Verdict


def recompute_verdict(report: Mapping[str, Any]) -> Verdict:
    """Decide the verdict of a report by what it `measured`.

    `values` there is measure -> (strengths, prompts, seeds) and `noise_floors` is (prompts, seeds), as
    lists in which `None` was not measured. Raises `UserError` if they are missing or of another shape.
    """
    try:
        measured = report["measured"]
        shape = tuple(map(len, (measured["strengths"], report["prompts"], report["seeds"])))
        values = {name: _read_array(each, shape) for name, each in measured["values"].items()}
        curves = {name: curve for name, curve in values.items() if not np.isnan(curve).all()}
        if "effect" not in curves:
            raise ValueError("nothing was measured")
        strengths = [float(strength) for strength in measured["strengths"]]
        noise_floors = _read_array(measured["noise_floors"], shape[1:])
        level = float(report["thresholds"]["level"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            "report",
            "it lacks the measurements of each image; use the report.json in the zip of a new sweep.",
        ) from error
    return decide_verdict(strengths, curves, noise_floors, level)


def _read_array(values: Any, shape: Sequence[int]) -> np.ndarray:
    """Return nested lists as an array with NaN for `None`. Raises `ValueError` for another shape."""
    found = np.array(values, float)
    if found.shape != tuple(shape) or np.isinf(found).any():
        raise ValueError("not the shape of the sweep")
    return found
