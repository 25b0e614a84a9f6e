"""How long a sweep takes on this machine, as the last one with the same model tells."""

import json
import logging
from collections.abc import Mapping

from core.system import paths
from core.system.atomic_files import replace_file
from core.system.device import is_space

FILE_NAME = "pace.json"
MIN_PICTURES = 8
"""Fewer pictures tell more of loading the model than of its pace."""

log = logging.getLogger(__name__)


def record_pace(model: str, pixel_steps: float, pictures: int, seconds: float) -> None:
    """Keep how long a model took for pictures of so many pixels times steps; a Space's machines differ."""
    if is_space() or pictures < MIN_PICTURES:
        return
    paces = dict(_read_paces())
    paces[model] = seconds / (pictures * pixel_steps)
    try:
        with replace_file(paths.MEASURED / FILE_NAME) as unfinished:
            unfinished.write_text(json.dumps(paces, indent=1), encoding="utf-8")
    except OSError as error:
        log.warning("the pace of %s was not kept: %s", model, error.strerror)


def estimate_seconds(model: str, pixel_steps: float, pictures: int) -> float | None:
    """Return how long the pictures will take; `None` where no sweep with this model told."""
    pace = None if is_space() else _read_paces().get(model)
    return pace and pace * pictures * pixel_steps


def _read_paces() -> Mapping[str, float]:
    """Return model -> seconds a pixel and step; empty if the file is missing or damaged."""
    try:
        found = json.loads((paths.MEASURED / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    told = found.items() if isinstance(found, dict) else ()
    return {model: pace for model, pace in told if isinstance(pace, float) and 0 < pace < 1}
