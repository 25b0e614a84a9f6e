"""Reads what lies beside a LoRA: notes of A1111, Civitai's helpers and ComfyUI's Lora Manager.

Anybody may have written them, so they are small JSON files of which only known fields are read.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from core.hub import client as hub
from core.hub.names import read_hub_name
from core.prompts.grammar import EXTRA_NETWORK
from core.schema.bounds import FORBIDDEN_CHARACTERS, is_number
from core.schema.limits import STRENGTH
from core.system.device import is_space

MAX_SIDECAR_BYTES = 2_000_000
MAX_TRIGGER_LENGTH = 500
"""Characters of a trigger."""
MAX_WORDS = 20
"""Trained words that are kept."""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What the files beside a LoRA say of it; `None` and empty is what none of them says."""

    base: str | None = None
    """What it was trained on, in the words of the file."""
    trigger: str | None = None
    """The text that belongs into a prompt."""
    words: tuple[str, ...] = ()
    """Words that it was trained with, to choose from."""
    strength: float | None = None
    interval: tuple[float, float] | None = None
    """Strengths between which it works, the lower first."""
    model: str | None = None
    """The base model on which strength and interval were measured."""


def find_beside(lora: Path, suffix: str) -> Path | None:
    """Return the file that has a LoRA's name with another ending; `None` if there is none.

    It lies beside the LoRA, or came with it from its repository. On a Space no link is followed.
    """
    if lora.is_file() and (origin := hub.find_origin(lora)):
        named = read_hub_name(origin)
        told = str(PurePosixPath(named.file).with_suffix(suffix)) if named.file else ""
        return hub.find_cached_file(named.repo, named.commit, told) if named.commit and told else None
    file = lora.with_name(lora.stem + suffix)
    # `is_file` raises for a name that is too long.
    return file if os.path.isfile(file) and not (is_space() and file.is_symlink()) else None  # noqa: PTH113


def read_sidecar(lora: Path) -> Sidecar:
    """Return what the files beside a LoRA say, the first that says something of each.

    They are A1111's `NAME.json`, Lora Manager's `NAME.metadata.json` and Civitai's `NAME.civitai.info`.
    """
    found = [
        parse(_read_table(lora, suffix))
        for suffix, parse in (
            (".json", _parse_a1111),
            (".metadata.json", _parse_lora_manager),
            (".civitai.info", _parse_civitai),
        )
    ]
    strength = next((each for each in found if each.strength is not None), Sidecar())
    first = {
        field.name: next((value for each in found if (value := getattr(each, field.name))), field.default)
        for field in fields(Sidecar)
    }
    return Sidecar(
        **{**first, **{name: getattr(strength, name) for name in ("strength", "interval", "model")}}
    )


def _read_table(lora: Path, suffix: str) -> Mapping[str, Any]:
    """Return the JSON object of a sidecar; empty without one, and for what is none or too large."""
    if (file := find_beside(lora, suffix)) is None:
        return {}
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_SIDECAR_BYTES + 1)
    except OSError:  # it went meanwhile, or is somebody else's
        return {}
    return _parse_table(text if len(text) <= MAX_SIDECAR_BYTES else b"")


def _parse_a1111(table: Mapping[str, Any]) -> Sidecar:
    """Read A1111's notes; Sweetspot's own have what was measured in `notes`."""
    strength, measured = parse_strength(table.get("preferred weight")), _parse_table(table.get("notes"))
    if strength is None or strength != parse_strength(measured.get("recommended")):
        measured = {}  # of another file, before its alpha was changed
    return Sidecar(
        base=clean_text(table.get("sd version")),
        trigger=clean_text(table.get("activation text"), MAX_TRIGGER_LENGTH),
        strength=strength,
        interval=parse_interval(measured.get("sweet_spot")),
        model=clean_text(measured.get("model")),
    )


def _parse_civitai(table: Mapping[str, Any]) -> Sidecar:
    words = table.get("trainedWords")
    cleaned = [clean_text(word, MAX_TRIGGER_LENGTH) for word in words] if isinstance(words, list) else []
    kept = tuple(word for word in cleaned if word)[:MAX_WORDS]
    return Sidecar(
        base=clean_text(table.get("baseModel")), trigger=kept[0] if len(kept) == 1 else None, words=kept
    )


def _parse_lora_manager(table: Mapping[str, Any]) -> Sidecar:
    tips = _parse_table(table.get("usage_tips"))
    civitai = table.get("civitai")
    inner = _parse_civitai(civitai if isinstance(civitai, dict) else {})
    return Sidecar(
        base=clean_text(table.get("base_model")) or inner.base,
        trigger=inner.trigger,
        words=inner.words,
        strength=parse_strength(tips.get("strength")),
        interval=parse_interval([tips.get("strength_min"), tips.get("strength_max")]),
    )


def _parse_table(text: object) -> Mapping[str, Any]:
    """Return the JSON object that a text holds; an empty one if it is anything else."""
    if not isinstance(text, str | bytes):
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def parse_strength(value: object) -> float | None:
    """Return a strength that a picture may have; `None` for 0, which stands for no advice, and the rest."""
    return (round(value, 4) or None) if _is_strength(value) else None


def parse_interval(value: object) -> tuple[float, float] | None:
    """Return two rising strengths; `None` for anything else."""
    if not isinstance(value, list) or len(value) != 2 or not all(map(_is_strength, value)):
        return None
    return (value[0], value[1]) if value[0] <= value[1] else None


def _is_strength(value: object) -> TypeGuard[float]:
    low, high = STRENGTH
    return isinstance(value, int | float) and is_number(value) and low <= value <= high  # false for NaN


def clean_text(value: object, max_length: int = 60) -> str | None:
    """Return text as it may be shown: short, on one line, without tags of a prompt; `None` if it is none."""
    if not isinstance(value, str):
        return None
    plain = FORBIDDEN_CHARACTERS.sub("", value[: 4 * max_length])
    while (bare := EXTRA_NETWORK.sub("", plain)) != plain:  # around a tag within a tag, one is left
        plain = bare
    return " ".join(plain.split())[:max_length].strip(" ,") or None
