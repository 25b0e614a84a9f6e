"""Remembers at which strengths a person's own sweeps found that a LoRA works, and how it acts there.

A small JSON file for each LoRA, named by the bytes and the hash of its tensors, so that a copy under
another name is known, too. Nothing is kept on a Space, where one visitor's figures are not another's.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from core.models.lora_sidecars import parse_interval, parse_strength
from core.schema.bounds import is_number
from core.system import paths
from core.system.atomic_files import replace_file
from core.system.device import is_space
from core.system.tensor_files import calculate_payload_sha256

MAX_RECORD_BYTES = 1_000_000
MAX_ACTION = 1e6

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MeasuredStrength:
    """What a sweep found for a LoRA on one base model."""

    model: str
    recommended: float
    interval: tuple[float, float]
    """The sweet spot."""
    works: bool = True
    """Whether it was held against what is wanted; else it is where the LoRA changes pictures."""
    action: float | None = None
    """How far the LoRA moves a picture, in seed units; `None` if a sweep from before did not measure it."""
    consistency: float | None = None
    """How alike its changes are, -1 to 1: the mean cosine of two pictures' changes."""


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
            "works": report.works,
            "action": report.action,
            "consistency": report.consistency,
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
            return MeasuredStrength(
                model=own,
                recommended=recommended,
                interval=interval,
                works=found.get("works") is not False,
                action=_parse_number(found.get("action"), 0, MAX_ACTION),
                consistency=_parse_number(found.get("consistency"), -1, 1),
            )
    return None


def find_strengths(loras: Iterable[Path]) -> dict[Path, MeasuredStrength]:
    """Return what was measured last for each of many LoRAs; those that never were are left out.

    Of the others, only the length of the header is read.
    """
    sizes = {file.name.partition("-")[0] for file in paths.MEASURED.glob("*.json")}
    found: dict[Path, MeasuredStrength] = {}
    for lora in loras if sizes and not is_space() else ():
        with suppress(OSError):  # gone meanwhile, or not readable: whoever chooses it is told so
            if str(_count_payload(lora)) in sizes and (measured := find_strength(lora, None)):
                found[lora] = measured
    return found


def _parse_number(value: object, low: float, high: float) -> float | None:
    return value if isinstance(value, int | float) and is_number(value) and low <= value <= high else None


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
