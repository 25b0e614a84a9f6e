"""A LoRA's file: what its header says, checked before anything is loaded.

Formats: kohya (`lora_unet_`, `lora_te1_`, `lora_te2_` with SAI or diffusers block names, LoCon's convolutions), diffusers
and PEFT (dotted names; alpha in `lora_adapter_metadata`). The change of a weight is W = strength * alpha / rank * up @ down.
"""

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from core.blocks import from_sai
from core.limits import FORBIDDEN
from core.types import UserError

LARGEST = 2 * 2**30  # bytes
LONGEST_METADATA = 2_000_000  # characters of one value that is read
LARGEST_ALPHA = 1e6
LONGEST_HEADER = 16_000_000  # bytes; safetensors itself takes 100 MB, and what is read is kept in memory
RANKS = (1, 4096)

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
PREFIXES = {
    "lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "unet.": "unet", "text_encoder_2.": "text_encoder_2", "text_encoder.": "text_encoder",
    "base_model.model.": "unet",
}  # fmt: skip
DOWN = re.compile(r"(.+)\.(?:lora_down|lora_A(?:\.default)?|lora\.down|lora_linear_layer\.down)\.weight")
UP = {"lora_down": "lora_up", "lora_A": "lora_B", "lora.down": "lora.up", "lora_linear_layer.down": "lora_linear_layer.up"}
UNKNOWN = {
    "hada_": "LoHa", "lokr_": "LoKr", "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "oft_": "OFT", "lora_mid": "LoCon with a core tensor",
    ".diff": "a full difference",
}  # fmt: skip
FAMILIES = {2048: "SDXL", 768: "SD 1.5", 1024: "SD 2", 160: "nano"}
"""Width of the text that attn2's keys read."""
FOREIGN = {"double_blocks": "Flux", "single_blocks": "Flux", "single_transformer_blocks": "Flux", "joint_blocks": "SD 3", "diffusion_model.blocks": "Wan"}


@dataclass(frozen=True, kw_only=True)
class Module:
    """One changed layer."""

    component: str
    """`unet`, `text_encoder` or `text_encoder_2`."""
    name: str
    """Its flat name: the path in diffusers' (or transformers') model with `_` for `.`."""
    down: str
    """The key of the first matrix, (rank, in) or (rank, in, k, k)."""
    up: str
    """The key of the second, (out, rank) or (out, rank, 1, 1)."""
    rank: int
    alpha: float
    scale: float
    """What strength 1 multiplies up @ down by: alpha / rank, or alpha / sqrt(rank) for a rank-stabilised one."""
    shape: tuple[int, int]
    """Features out and in."""
    kernel: tuple[int, ...]
    """Of a convolution: height and width; empty for a linear layer."""


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """What a file holds. Its tensors are read when they are asked for."""

    path: Path
    format: str
    """`kohya`, `diffusers` or `PEFT`."""
    modules: tuple[Module, ...]
    metadata: Mapping[str, str] = field(repr=False)

    @property
    def family(self) -> str:
        """The base models it is made for, by the width of the text that its keys read; `unknown` if it changes no such layer."""
        widths = {module.shape[1] for module in self.modules if module.component == "unet" and re.search(r"attn2_to_[kv]$", module.name)}
        return FAMILIES.get(widths.pop(), "unknown") if len(widths) == 1 else "unknown"

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
        """All matrices, in the precision they are kept in; read anew each time, so that nothing large stays in memory."""
        with safe_open(self.path, framework="pt") as file:
            return {key: file.get_tensor(key) for module in self.modules for key in (module.down, module.up)}


def norm(module: Module, down: torch.Tensor, up: torch.Tensor) -> float:
    """Frobenius norm of a module's change at strength 1, without ever forming it: |up down|^2 = <up' up, down down'>."""
    down, up = down.float().flatten(1), up.float().flatten(1)
    return abs(module.scale) * float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())


def read(path: Path) -> LoraFile:
    """Read and check a file. Raises `UserError` with the reason, before any model is touched."""
    said = f"lora: {path.name}"
    _opens(path, said)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  (no dict)
            metadata = dict(file.metadata() or {})
            alphas = {key: file.get_tensor(key) for key in shapes if key.endswith(".alpha") and math.prod(shapes[key]) == 1}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{said} is not a whole safetensors file ({type(error).__name__}).") from error
    for key in shapes:
        for mark, kind in {**UNKNOWN, **FOREIGN}.items():
            if mark in key:
                raise UserError(f"{said} is {'made for ' + kind if mark in FOREIGN else kind}; it takes LoRA and LoCon for SDXL.")
    adapter = _json(metadata.get("lora_adapter_metadata"))
    modules = tuple(_module(key, shapes, alphas, adapter, said) for key in shapes if DOWN.fullmatch(key))
    if not modules:
        raise UserError(f"{said} holds no LoRA that is known here; it takes kohya's, diffusers' and PEFT's for SDXL.")
    read_keys = {key for module in modules for key in (module.down, module.up)} | alphas.keys()
    if unread := shapes.keys() - read_keys:
        raise UserError(f"{said} holds {min(unread)[:80]!r}, which is not known here; applied without it, it would be another LoRA.")
    kind = "kohya" if modules[0].down.startswith("lora_") else "PEFT" if modules[0].down.startswith("base_model.") else "diffusers"
    found = LoraFile(path=path, format=kind, modules=modules, metadata=metadata)
    if found.family in ("SD 1.5", "SD 2"):
        raise UserError(f"{said} is made for {found.family}; it takes LoRAs for SDXL.")
    _sound(found, said)
    return found


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


def _module(key: str, shapes: Mapping[str, tuple[int, ...]], alphas: Mapping[str, torch.Tensor], adapter: Mapping[str, Any], said: str) -> Module:
    match = DOWN.fullmatch(key)
    assert match is not None
    stem, kind = match[1], key[len(match[1]) + 1 : -len(".weight")].removesuffix(".default")
    up = f"{stem}.{UP[kind]}{'.default' if '.default' in key else ''}.weight"
    prefix = next((prefix for prefix in PREFIXES if stem.startswith(prefix)), None)
    if prefix is None:
        raise UserError(f"{said}: {key[:80]!r} belongs to no part of SDXL; it takes lora_unet_, lora_te1_, lora_te2_, unet., text_encoder. and text_encoder_2.")
    if up not in shapes:
        raise UserError(f"{said}: {stem[:80]!r} has one matrix of two.")
    component, name = PREFIXES[prefix], stem.removeprefix(prefix)
    first, second = shapes[key], shapes[up]
    rank = first[0] if first else 0
    if (
        len(first) not in (2, 4)
        or len(second) != len(first)
        or second[1] != rank
        or set(second[2:]) - {1}
        or not RANKS[0] <= rank <= RANKS[1]
        or 0 in first + second
    ):
        raise UserError(f"{said}: {stem[:80]!r} has matrices of {first} and {second}; rank must be from {RANKS[0]} to {RANKS[1]} and the same in both.")
    told = {k.removeprefix(f"{component}."): v for k, v in adapter.items() if k.startswith(f"{component}.")} or adapter
    own = f"{stem}.alpha"
    alpha = float(alphas.get(own, math.nan)) if own in shapes else _told_alpha(told, name, rank)
    if not abs(alpha) <= LARGEST_ALPHA:  # true for NaN
        raise UserError(f"{said}: the alpha of {stem[:80]!r} is not a number that alpha can be.")
    scale = alpha / (math.sqrt(rank) if told.get("use_rslora") is True else rank)
    flat = name.replace(".", "_")
    flat = from_sai(flat) if component == "unet" else flat.removeprefix("text_model_")  # which transformers 5 has for the second encoder only
    return Module(component=component, name=flat, down=key, up=up, rank=rank, alpha=alpha, scale=scale, shape=(second[0], first[1]), kernel=tuple(first[2:]))


def _told_alpha(told: Mapping[str, Any], name: str, rank: int) -> float:
    """Alpha as diffusers' and PEFT's adapter metadata tell it; without them, the rank."""
    patterns = told.get("alpha_pattern")
    said = told.get("lora_alpha", rank)
    if isinstance(patterns, dict):
        said = next((value for pattern, value in patterns.items() if name == pattern or name.endswith(f".{pattern}")), said)
    plain = isinstance(said, int | float) and abs(said) <= LARGEST_ALPHA  # before a whole number of 400 digits becomes a float
    return float(said) if plain else math.nan


def _sound(found: LoraFile, said: str) -> None:
    """No number that is none, and something to add; one tensor in memory at a time."""
    filled: set[str] = set()
    with safe_open(found.path, framework="pt") as file:
        for key in (key for module in found.modules for key in (module.down, module.up)):
            tensor = file.get_tensor(key)
            if not torch.isfinite(tensor).all():
                raise UserError(f"{said}: {key[:80]!r} holds NaN or infinite numbers; the file is broken.")
            filled |= {key} if bool(tensor.any()) else set()
    if not any({module.down, module.up} <= filled for module in found.modules):
        raise UserError(f"{said} changes nothing: its up matrices are all zero, as before training.")


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
