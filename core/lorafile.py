"""A LoRA's file: what its header says, checked before anything is loaded.

Formats: kohya (`lora_unet_`, `lora_te1_`, `lora_te2_` with SAI or diffusers block names, LoCon's convolutions), diffusers
and PEFT (dotted names; alpha in `lora_adapter_metadata`); LyCORIS' DoRA and LoKr in kohya's layout.
"""

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from core.checks import FORBIDDEN
from core.digest import Identity, identity
from core.lorakeys import Module, modules
from core.memory import enough_memory, ran_out_of_memory
from core.types import UserError

LARGEST = 2 * 2**30  # bytes
LONGEST_METADATA = 2_000_000  # characters of one value that is read
LONGEST_HEADER = 16_000_000  # bytes; safetensors itself takes 100 MB, and what is read is kept in memory

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
UNKNOWN = {
    "hada_": "LoHa", "lokr_t": "LoKr with a core tensor", "oft_": "OFT", "lora_mid": "LoCon with a core tensor", ".diff": "a full difference",
}  # fmt: skip
FAMILIES = {2048: "SDXL", 768: "SD 1.5", 1024: "SD 2", 160: "nano"}
"""Width of the text that attn2's keys read."""
FOREIGN = {"double_blocks": "Flux", "single_blocks": "Flux", "single_transformer_blocks": "Flux", "joint_blocks": "SD 3", "diffusion_model.blocks": "Wan"}


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """What a file holds. Its tensors are read when they are asked for."""

    path: Path
    format: str
    """`kohya`, `diffusers` or `PEFT`."""
    modules: tuple[Module, ...]
    metadata: Mapping[str, str] = field(repr=False)
    state: Identity = field(repr=False)
    """Of the file when it was read and checked."""

    @property
    def family(self) -> str:
        """The base models it is made for, by the width of the text that its keys read; `unknown` if it changes no such layer."""
        widths = {module.shape[1] for module in self.modules if module.component == "unet" and re.search(r"attn2_to_[kv]$", module.name)}
        return FAMILIES.get(widths.pop(), "unknown") if len(widths) == 1 else "unknown"

    @property
    def kind(self) -> str:
        """`LoRA`, `DoRA`, `LoKr`, `LoKr with DoRA`; of a file that mixes them all that it has, the most common first."""
        return " and ".join(kind for kind, _ in Counter(module.kind for module in self.modules).most_common())

    @property
    def rank(self) -> int:
        """The most common rank."""
        return Counter(module.rank for module in self.modules).most_common(1)[0][0]

    @property
    def scale(self) -> float:
        """The most common alpha / rank."""
        return Counter(module.scale for module in self.modules).most_common(1)[0][0]

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(name for name in COMPONENTS if any(module.component == name for module in self.modules))

    @property
    def trigger(self) -> str | None:
        """The words that call it: modelspec's, else the folder name that kohya trained from."""
        if said := self.metadata.get("modelspec.trigger_phrase"):
            return _clean(said, 1000)
        folders = _json(self.metadata.get("ss_dataset_dirs"))
        names = [name.partition("_")[2] for name in folders if name.partition("_")[0].isdigit()]
        return _clean(names[0]) if names else None

    @property
    def tags(self) -> dict[str, int]:
        """How often each tag stood in the captions it was trained on, the most frequent first."""
        counts: Counter[str] = Counter()
        for folder in _json(self.metadata.get("ss_tag_frequency")).values():
            if isinstance(folder, dict):
                counts.update({_clean(tag): n for tag, n in folder.items() if isinstance(n, int) and 0 < n < 10**9})
        return {tag: n for tag, n in counts.most_common() if tag}

    def tensors(self) -> dict[str, torch.Tensor]:
        """All matrices, in the precision they are kept in; read anew each time, so that nothing large stays in memory.

        Raises `UserError` for a file that is no longer the one that was checked, and where memory runs out.
        """
        said = f"lora: {self.path.name}"
        with enough_memory(f"{said} does not fit into this machine's memory; use one of a lower rank."):
            try:
                with safe_open(self.path, framework="pt") as file:
                    tensors = {key: file.get_tensor(key) for module in self.modules for key in module.keys.values()}
                if identity(self.path) == self.state:
                    return tensors
            except (SafetensorError, OSError) as error:
                if ran_out_of_memory(error):
                    raise
        raise UserError(f"{said} was changed or removed while it was in use; choose it again.")


def read(path: Path) -> LoraFile:
    """Read and check a file. Raises `UserError` with the reason, before any model is touched."""
    said = f"lora: {path.name}"
    with enough_memory(f"{said} does not fit into this machine's memory; use one of a lower rank."):
        return _checked(path, said)


def _checked(path: Path, said: str) -> LoraFile:
    _opens(path, said)
    state = identity(path)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  (no dict)
            metadata = dict(file.metadata() or {})
            alphas = {key: file.get_tensor(key) for key in shapes if key.endswith(".alpha") and math.prod(shapes[key]) == 1}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{said} is not a whole safetensors file ({type(error).__name__}).") from error
    check_kind(shapes, said)
    adapter = _json(metadata.get("lora_adapter_metadata"))
    changes = tuple(modules(shapes, alphas, adapter, said))
    if not changes:
        raise UserError(f"{said} holds no LoRA that is known here; it takes kohya's, diffusers' and PEFT's for SDXL.")
    read_keys = {key for module in changes for key in module.keys.values()} | alphas.keys()
    if unread := shapes.keys() - read_keys:
        raise UserError(f"{said} holds {min(unread)[:80]!r}, which is not known here; applied without it, it would be another LoRA.")
    stem = changes[0].stem
    kind = "kohya" if stem.startswith("lora_") else "PEFT" if stem.startswith("base_model.") else "diffusers"
    found = LoraFile(path=path, format=kind, modules=changes, metadata=metadata, state=state)
    if found.family in ("SD 1.5", "SD 2"):
        raise UserError(f"{said} is made for {found.family}; it takes LoRAs for SDXL.")
    _sound(found, said)
    if identity(path) != state:
        raise UserError(f"{said} was changed while it was read; choose it again.")
    return found


def check_kind(keys: Iterable[str], said: str) -> None:
    """Raise `UserError` for the tensors of another kind of file, by their names alone; `said` begins the sentence."""
    for key in keys:
        for mark, kind in {**UNKNOWN, **FOREIGN}.items():
            if mark in key:
                raise UserError(f"{said} is {'made for ' + kind if mark in FOREIGN else kind}; it takes LoRA, LoCon, DoRA and LoKr for SDXL.")


def _opens(path: Path, said: str) -> None:
    """The length of the header against the length of the file, before anybody allocates it."""
    if not path.is_file():
        raise UserError(f"{said} is not there.")
    size = path.stat().st_size
    if size > LARGEST:
        raise UserError(f"{said} has {size:,} bytes; a LoRA has up to {LARGEST:,}.")
    with path.open("rb") as file:
        start = file.read(8)
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= header <= min(size - 8, LONGEST_HEADER):
        if start[:2] in (b"\x80\x02", b"\x80\x04", b"PK"):  # as a length, a header may begin so, too
            raise UserError(f"{said} is a pickle, which can hold code; it takes safetensors only.")
        raise UserError(f"{said} is not a whole safetensors file: its header would be {header:,} bytes long, the file has {size:,}.")


def _sound(found: LoraFile, said: str) -> None:
    """No number that is none, and something to add; one tensor in memory at a time."""
    filled: set[str] = set()
    with safe_open(found.path, framework="pt") as file:
        for key in (key for module in found.modules for key in module.keys.values()):
            tensor = file.get_tensor(key)
            if not torch.isfinite(tensor).all():
                raise UserError(f"{said}: {key[:80]!r} holds NaN or infinite numbers; the file is broken.")
            filled |= {key} if bool(tensor.any()) else set()
    if not any(module.magnitudes or filled.issuperset(module.keys.values()) for module in found.modules):  # what magnitudes change, only a model tells
        raise UserError(f"{said} changes nothing: in every layer a matrix is all zero, as before training.")


def _clean(text: object, longest: int = 60) -> str:
    """Text of a file's metadata as it may be shown: short, on one line, without halves of characters."""
    return " ".join(FORBIDDEN.sub("", str(text)[:longest]).split())


def _json(text: str | None) -> dict[str, Any]:
    """An object in a metadata value; nothing if it is none."""
    if text and len(text) > LONGEST_METADATA:
        return {}
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
