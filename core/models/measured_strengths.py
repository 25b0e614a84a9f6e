"""Remembers at which strengths a person's own sweeps found that a LoRA works.

A small JSON file for each LoRA, named by the bytes and the hash of its tensors, so that a copy under
another name is known, too. Nothing is kept on a Space, where one visitor's figures are not another's.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from core.models.lora_sidecars import parse_interval, parse_strength
from core.system import paths
from core.system.atomic_files import replace_file
from core.system.device import is_space
from core.system.tensor_files import calculate_payload_sha256

MAX_RECORD_BYTES = 1_000_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MeasuredStrength:
    """What a sweep found for a LoRA on one base model."""

    model: str
    recommended: float
    interval: tuple[float, float]
    """The sweet spot."""


def record_strength(lora: Path, report: MeasuredStrength) -> None:
    """Keep what a sweep found; it replaces what one on the same model found before.

    A disk that takes no more is a warning in the log: the sweep itself has succeeded.
    """
    if is_space():
        return
    try:
        file = paths.MEASURED / f"{_count_payload(lora)}-{calculate_payload_sha256(lora)}.json"
        records = dict(_read_records(file))
        records.pop(report.model, None)  # the last is the newest
        records[report.model] = {
            "recommended": report.recommended,
            "sweet_spot": list(report.interval),
            "date": date.today().isoformat(),
        }
        with replace_file(file) as unfinished:
            unfinished.write_text(json.dumps(records, indent=1), encoding="utf-8")
    except OSError as error:
        log.warning("the strength of %s was not kept: %s", lora.name, error.strerror)


def find_strength(lora: Path, model: str | None) -> MeasuredStrength | None:
    """Return what was measured for a LoRA: on `model`, else on the model that was measured last.

    The LoRA's tensors are only hashed if one of the same size was measured.
    """
    if is_space() or not any(paths.MEASURED.glob(f"{_count_payload(lora)}-*.json")):
        return None
    name = f"{_count_payload(lora)}-{calculate_payload_sha256(lora)}.json"
    records = _read_records(paths.MEASURED / name)
    for own in (model, *reversed([*records])):
        found = records.get(own) if own is not None else None
        if not isinstance(found, dict):
            continue
        recommended = parse_strength(found.get("recommended"))
        interval = parse_interval(found.get("sweet_spot"))
        if own is not None and recommended is not None and interval is not None:
            return MeasuredStrength(model=own, recommended=recommended, interval=interval)
    return None


def _count_payload(lora: Path) -> int:
    """Return the bytes of a safetensors file's tensors, that is of what follows its header."""
    with lora.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
        return os.fstat(opened.fileno()).st_size - 8 - header


def _read_records(file: Path) -> Mapping[str, Any]:
    """Return model -> record of a file; empty if there is none that can be read."""
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(MAX_RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
