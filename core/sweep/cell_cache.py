"""Finished cells on disk, keyed by the hash of their request; and what probes found, by that of theirs.

A sweep that was stopped continues from them, and another sweep reuses the cells that both share.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from core.generate.probe import Probe
from core.hub import client as hub
from core.lora.file import find_adapter_config
from core.models import bases
from core.schema.events import Features, LevelStatistics
from core.schema.types import LoraUse, Request
from core.system import paths
from core.system.atomic_files import replace_file
from core.system.device import detect_machine
from core.system.tensor_files import calculate_sha256

FOLDER = paths.CELL_CACHE
ENGINE_VERSION = 2
"""Goes up when a request gives another picture or its features are extracted differently."""
CELLS_GONE = (
    "images of this study were deleted before it ended because the disk was full. "
    "Start again; the images that remain are reused."
)


def hash_request(request: Request) -> str:
    """Return the SHA-256 (hex) of all that a cell's picture, infotext and features depend on.

    A LoRA contributes the hash of its content, and the name and origin that are written into the
    infotext; an embedding the hash of its content, and its name.

    The prompt counts as it is written: a tag that never reaches the model would otherwise put
    somebody else's words into a picture that others reuse.
    """
    told = asdict(request)
    told["loras"] = _describe_uses(request.loras)
    del told["hires_loras"]
    if request.hires_loras is not None:  # left out otherwise, as embeddings are
        told["hires_loras"] = _describe_uses(request.hires_loras)
    named = [{key: value for key, value in use.items() if key != "path"} for use in told.pop("embeddings")]
    if named:  # left out otherwise, so that cells from before there were embeddings are found
        told["embeddings"] = named
    made = {
        "engine": ENGINE_VERSION,
        "precision": str(detect_machine().dtype),
        "device": detect_machine().device,
        "model": bases.fingerprint_model(request.model),
        **told,
    }
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def picture_path(key: str) -> Path:
    """Return the file of a cell's picture, whether or not it exists yet."""
    return FOLDER / key[:2] / f"{key}.png"


def load_features(key: str, feature_extractor: str) -> Features | None:
    """Return the features of a finished cell; `None` if they are missing or cannot be read."""
    try:
        with np.load(_features_path(key, feature_extractor), allow_pickle=False) as kept:
            levels, echo = (_unpack_levels(kept, prefix) for prefix in ("level", "echo"))
            found = Features(levels=levels, vae_roundtrip=echo or None, latents=kept.get("latents"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # missing or torn: made again
        return None
    if not picture_path(key).exists():
        return None
    touch_cell(key, feature_extractor)
    return found


def touch_cell(key: str, feature_extractor: str) -> None:
    """Mark a cell as in use: cells that nobody has used for a long time are deleted."""
    with suppress(OSError):  # deleted meanwhile, or a read-only disk
        for file in (picture_path(key), _features_path(key, feature_extractor)):
            os.utime(file)


def save_features(key: str, feature_extractor: str, features: Features) -> None:
    """Write features beside their picture; from then on the cell counts as finished."""
    kept: dict[str, np.ndarray] = {}
    for prefix, levels in (("level", features.levels), ("echo", features.vae_roundtrip or ())):
        for i, (mean, deviation) in enumerate(levels):
            kept |= {f"{prefix}_{i}_mean": mean, f"{prefix}_{i}_deviation": deviation}
    if features.latents is not None:
        kept["latents"] = features.latents
    file = _features_path(key, feature_extractor)
    with replace_file(file) as unfinished, unfinished.open("xb") as out:
        np.savez(out, **kept)  # type: ignore[arg-type]


def hash_probe(probe: Probe) -> str:
    """Return the SHA-256 (hex) of all that a probe's answer depends on."""
    told = [*map(hash_request, probe.requests), *map(str, probe.changes)]
    return hashlib.sha256(" ".join(told).encode()).hexdigest()


def load_changes(key: str) -> dict[float, float]:
    """Return what a probe found, the change at each strength; empty if that is missing or cannot be read."""
    file = _changes_path(key)
    try:
        os.utime(file)  # in use
        return {float(strength): float(change) for strength, change in json.loads(file.read_bytes())}
    except (OSError, ValueError, TypeError):  # missing or torn: asked again
        return {}


def save_changes(key: str, changes: Mapping[float, float]) -> None:
    """Write what a probe found, so that the next sweep of the LoRA has the same strengths."""
    with replace_file(_changes_path(key)) as unfinished:
        unfinished.write_text(json.dumps([*changes.items()]), encoding="utf-8")


def _changes_path(key: str) -> Path:
    return FOLDER / key[:2] / f"{key}.json"


def _describe_uses(uses: Sequence[LoraUse]) -> list[dict[str, Any]]:
    return [
        {**asdict(use), "path": _describe_lora(Path(use.path))}
        for use in uses
        if use.strength or use.text_strength
    ]


def _describe_lora(lora: Path) -> list[str | None]:
    """Return what a cell depends on in a LoRA: its SHA-256, name and origin, and PEFT's settings' SHA-256."""
    settings = find_adapter_config(lora)
    told = [calculate_sha256(lora), lora.stem, hub.find_origin(lora)]
    return told + ([calculate_sha256(settings)] if settings else [])


def _features_path(key: str, feature_extractor: str) -> Path:
    return FOLDER / key[:2] / f"{key}-{feature_extractor.replace(' ', '-')}.npz"


def _unpack_levels(archive: np.lib.npyio.NpzFile, prefix: str) -> tuple[LevelStatistics, ...]:
    many = sum(name.startswith(f"{prefix}_") for name in archive) // 2
    return tuple((archive[f"{prefix}_{i}_mean"], archive[f"{prefix}_{i}_deviation"]) for i in range(many))
