"""Finished cells on disk, by the hash of their request: a grid that was stopped goes on, and another one takes what it shares."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from core import hub, models, paths
from core.atomic import replacing
from core.device import this_machine
from core.digest import content
from core.events import Look, Spread
from core.types import Request

FOLDER = paths.CELLS
ENGINE = 1
"""Counts up when the same request makes another picture or is looked at in another way."""
SWEPT = "disk: pictures of this study were swept away before it ended, as the disk was full; begin again, and what is still there is found."


def key(request: Request) -> str:
    """The hash of everything that a cell's picture, its infotext and its look depend on: of a LoRA its content, and the name and origin that are written.

    The prompt is in it as it is written: a tag that the model never hears of would be somebody else's words in a picture that others take.
    """
    told = asdict(request)
    told["loras"] = [{**asdict(use), "path": _file(Path(use.path))} for use in request.loras if use.strength or use.text_strength]
    made = {"engine": ENGINE, "precision": str(this_machine().dtype), "device": this_machine().device, "model": models.fingerprint(request.model), **told}
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def picture(name: str) -> Path:
    """Where the picture of a cell lies, or will lie."""
    return FOLDER / name[:2] / f"{name}.png"


def look(name: str, eye: str) -> Look | None:
    """An eye's look at a cell that is finished; `None` if it is not, or cannot be read."""
    try:
        with np.load(_look_file(name, eye), allow_pickle=False) as kept:
            levels, echo = (_unpacked(kept, prefix) for prefix in ("level", "echo"))
            found = Look(levels=levels, echo=echo or None, latents=kept.get("latents"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # not there, or torn: it is made again
        return None
    if not picture(name).exists():
        return None
    use(name, eye)
    return found


def use(name: str, eye: str) -> None:
    """Say that a cell is in use: what nobody has used for long is swept away."""
    with suppress(OSError):  # gone, or a disk that is only read from
        for file in (picture(name), _look_file(name, eye)):
            os.utime(file)


def keep(name: str, eye: str, seen: Look) -> None:
    """Write a look beside its picture; a cell counts as finished from then on."""
    kept: dict[str, np.ndarray] = {}
    for prefix, levels in (("level", seen.levels), ("echo", seen.echo or ())):
        for i, (mean, deviation) in enumerate(levels):
            kept |= {f"{prefix}_{i}_mean": mean, f"{prefix}_{i}_deviation": deviation}
    if seen.latents is not None:
        kept["latents"] = seen.latents
    file = _look_file(name, eye)
    with replacing(file) as unfinished, unfinished.open("xb") as out:
        np.savez(out, **kept)  # type: ignore[arg-type]


def _file(lora: Path) -> list[str | None]:
    """What an infotext depends on of a LoRA's file."""
    return [content(lora), lora.stem, hub.origin(lora)]


def _look_file(name: str, eye: str) -> Path:
    return FOLDER / name[:2] / f"{name}-{eye.replace(' ', '-')}.npz"


def _unpacked(kept: np.lib.npyio.NpzFile, prefix: str) -> tuple[Spread, ...]:
    many = sum(name.startswith(f"{prefix}_") for name in kept) // 2
    return tuple((kept[f"{prefix}_{i}_mean"], kept[f"{prefix}_{i}_deviation"]) for i in range(many))
