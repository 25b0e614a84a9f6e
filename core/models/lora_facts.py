"""What a person should know of a LoRA before using it: kind, rank, family, trigger, strength, picture.

A fact comes from the header, from files beside it, or from own sweeps, and the strength says which.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from core.hub import client as hub
from core.lora.file import MAX_METADATA_LENGTH, LoraState, identify_lora, read_lora_header
from core.models import bases
from core.models.base_families import choose_family, find_base_family, is_related
from core.models.lora_sidecars import (
    MAX_TRIGGER_LENGTH,
    Sidecar,
    clean_text,
    parse_interval,
    parse_strength,
    read_sidecar,
)
from core.models.lora_thumbnails import find_preview, shrink_embedded
from core.models.measured_strengths import find_strength
from core.system.concurrency import BoundedDict
from core.system.tensor_files import is_settled

_NUMBER = r"(-?\d(?:\.\d{1,4})?)(?![\d.]*\d)"
HINT_STRENGTH = re.compile(
    rf"(?:strength|weight)\D{{0,20}}?{_NUMBER}(?:\s*(?:-|\u2013|to)\s*{_NUMBER})?", re.I
)
HINT_INTERVAL = re.compile(rf"sweet spot\s+{_NUMBER}\s+to\s+{_NUMBER}")
"""How modelspec's `usage_hint` tells a strength; people write it freely."""
MAX_HINT_LENGTH = 1000
BASE_KEYS = ("ss_sd_model_name", "modelspec.architecture", "ss_base_model_version")
"""Metadata that tell what a LoRA was trained on."""


@dataclass(frozen=True, kw_only=True)
class LoraStrength:
    """A strength to use a LoRA at, and who says so."""

    value: float
    interval: tuple[float, float] | None = None
    """Strengths between which it works."""
    works: bool = True
    """Whether it works there; else it changes pictures there, and nobody knows whether as it should."""
    source: str
    """Where it comes from, such as `measured here on nano`."""
    action: float | None = None
    """How far the LoRA moves a picture there, in seed units; `None` if it was not measured here."""
    consistency: float | None = None
    """How alike its changes are, -1 to 1; `None` if it was not measured here."""


@dataclass(frozen=True, kw_only=True)
class LoraFacts:
    """What is known of a LoRA without reading its matrices; `None` is what nobody tells."""

    kind: str
    rank: int
    """0 if its kind has none."""
    family: str | None
    """The family of base models that it was made for (`core.models.base_families`)."""
    trigger: str | None
    """The text that belongs into a prompt, where its maker says so."""
    words: tuple[str, ...] = ()
    """Words that it was trained with, to choose from."""
    strength: LoraStrength | None
    thumbnail: str | None
    """A data URI of a small JPEG."""


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What is kept of a file's header."""

    kind: str
    rank: int
    root: str | None
    """The family that its shapes tell; `None` if they tell nothing."""
    base_names: tuple[str, ...]
    trigger: str | None
    hint: str
    thumbnail: str | None
    """The one in its metadata, as a data URI of a small JPEG."""


_headers: BoundedDict[LoraState, _Header] = BoundedDict(256)


def read_lora_facts(path: Path, model: str | None = None) -> LoraFacts:
    """Return what is known of a LoRA; of its strength what was measured on `model`, if it was.

    Only its header is read, and kept until the file changes. Raises `UserError` for a file whose
    header tells that it cannot be used.
    """
    header, sidecar = _read_header(path), read_sidecar(path)
    return LoraFacts(
        kind=header.kind,
        rank=header.rank,
        family=_choose_family(header, sidecar),
        trigger=sidecar.trigger or header.trigger,
        words=sidecar.words,
        strength=_choose_strength(path, model, sidecar, header.hint),
        thumbnail=find_preview(path) or header.thumbnail,
    )


def describe_mismatch(path: Path, model: str) -> str | None:
    """Return a sentence if a LoRA was made for another family than a base model is of.

    `None` if they belong together, or one of the families is unknown. Raises `UserError` as
    `read_lora_facts` does.
    """
    family, base = _choose_family(_read_header(path), read_sidecar(path)), bases.find_model(model)
    own = find_base_family(base)
    if family is None or own is None or is_related(family, own):
        return None
    return (
        f"{path.stem} is made for {family}, but {base.title} is of the family {own}: it may do little there."
    )


def _read_header(path: Path) -> _Header:
    """Return what is kept of a file's header, read once for each state of the file."""
    state = identify_lora(path) if path.is_file() else None
    if state is not None and (known := _headers.get(state)):
        return known
    found = read_lora_header(path)
    said = {key: value for key, value in found.metadata.items() if len(value) <= MAX_METADATA_LENGTH}
    header = _Header(
        kind=found.kind,
        rank=found.rank,
        root=None if found.family == "unknown" else found.family,
        base_names=tuple(said[key][:1000] for key in BASE_KEYS if key in said),
        trigger=clean_text(said.get("modelspec.trigger_phrase"), MAX_TRIGGER_LENGTH),
        hint=said.get("modelspec.usage_hint", "")[:MAX_HINT_LENGTH],
        thumbnail=shrink_embedded(said.get("modelspec.thumbnail", "")),
    )
    if all(map(is_settled, found.state)):
        _headers[found.state] = header
    return header


def _choose_family(header: _Header, sidecar: Sidecar) -> str | None:
    return choose_family(header.root, [*([sidecar.base] if sidecar.base else []), *header.base_names])


def _choose_strength(path: Path, model: str | None, sidecar: Sidecar, hint: str) -> LoraStrength | None:
    """Return the strength that is known best: measured, noted beside the file, or in its metadata."""
    if measured := find_strength(path, model):
        return LoraStrength(
            value=measured.recommended,
            interval=measured.interval,
            works=measured.works,
            source=f"measured here on {measured.model}",
            action=measured.action,
            consistency=measured.consistency,
        )
    if sidecar.strength is not None:
        place = f"from its {'card on Hugging Face' if hub.find_origin(path) else 'sidecar'}"
        measured_on = f", measured on {sidecar.model}" if sidecar.model else ""
        return LoraStrength(value=sidecar.strength, interval=sidecar.interval, source=place + measured_on)
    return _read_hint(hint)


def _read_hint(hint: str) -> LoraStrength | None:
    """Return the strength that modelspec's `usage_hint` tells, the middle of a range that it names."""
    found = None if hint.startswith("Measured on") else HINT_STRENGTH.search(hint)
    if found is None:
        return None
    spot = HINT_INTERVAL.search(hint)
    ends = [float(end) for end in (spot.groups() if spot else found.groups()) if end is not None]
    interval = parse_interval(ends)
    value = sum(interval) / 2 if interval and found[2] else float(found[1])
    strength = parse_strength(value)
    return (
        None if strength is None else LoraStrength(value=strength, interval=interval, source="from modelspec")
    )
