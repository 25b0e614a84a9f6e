"""The keys of a LoRA's file: which layers they change and how, told by names and shapes alone, before anything is loaded.

Kinds: LoRA and LoCon (`lora_down`, `lora_up`), LoKr (`lokr_w1`, `lokr_w2`, each whole or in two factors), and DoRA, which
adds magnitudes (`dora_scale`) to either.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from core.blocks import from_sai
from core.types import UserError

LARGEST_ALPHA = 1e6
RANKS = (1, 4096)
PREFIXES = {
    "lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "unet.": "unet", "text_encoder_2.": "text_encoder_2", "text_encoder.": "text_encoder",
    "base_model.model.": "unet",
}  # fmt: skip
PARTS = {
    **{f".{name}.weight": "down" for name in ("lora_down", "lora_A", "lora_A.default", "lora.down", "lora_linear_layer.down")},
    **{f".{name}.weight": "up" for name in ("lora_up", "lora_B", "lora_B.default", "lora.up", "lora_linear_layer.up")},
    **{f".lokr_{part}": part for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    ".dora_scale": "magnitude",
    **{f".lora_magnitude_vector{end}": "magnitude" for end in ("", ".weight", ".default", ".default.weight")},
}
"""How a key ends -> the part of a change that it is."""
WHOLE = ({"down", "up"}, {"w1", "w2"}, {"w1_a", "w1_b", "w2"}, {"w1", "w2_a", "w2_b"}, {"w1_a", "w1_b", "w2_a", "w2_b"})

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Module:
    """One changed layer."""

    component: str
    """`unet`, `text_encoder` or `text_encoder_2`."""
    name: str
    """Its flat name: the path in diffusers' (or transformers') model with `_` for `.`."""
    stem: str
    """What its keys in the file begin with."""
    keys: Mapping[str, str]
    """Part -> its key: `down` (rank, in) or (rank, in, k, k) and `up` (out, rank) or (out, rank, 1, 1); or `w1` and `w2`,
    each whole or as `_a` and `_b`; with DoRA, `magnitude`."""
    rank: int
    """Of a LoKr without factors: the largest that its `w2` can have."""
    alpha: float
    scale: float
    """What strength 1 multiplies the product by: alpha / rank, or alpha / sqrt(rank) for a rank-stabilised one."""
    shape: tuple[int, int]
    """Features out and in; of a LoKr whose kernel is not told, in times the kernel's area."""
    kernel: tuple[int, ...]
    """Of a convolution: height and width; empty for a linear layer, and where the file does not tell it."""
    groups: tuple[int, int] = (1, 1)
    """Rows and columns of LoKr's `w1`: out and in are that many times those of `w2`."""
    magnitudes: tuple[int, int] | None = None
    """Of a DoRA: how many, and along which dimension: 0 for one an output, 1 for one an input."""

    @property
    def down(self) -> str:
        return self.keys["down"]

    @property
    def up(self) -> str:
        return self.keys["up"]

    @property
    def kind(self) -> str:
        plain = "LoRA" if "down" in self.keys else "LoKr"
        return plain if self.magnitudes is None else "DoRA" if plain == "LoRA" else "LoKr with DoRA"

    @property
    def is_whole(self) -> bool:
        """Whether it is a LoKr without factors, whose alpha no program reads."""
        return {"w1", "w2"} <= self.keys.keys()

    def fits(self, weight: Shape) -> bool:
        """Whether a layer's weight of this shape, (out, in) or (out, in, k, k), is what is changed."""
        kernel, area = weight[2:], math.prod(weight[2:])
        if "down" not in self.keys and not self.kernel:  # of a convolution, too
            same = self.shape == (weight[0], weight[1] * area) and weight[1] % self.groups[1] == 0
        else:
            same = self.shape == weight[:2] and (kernel == self.kernel or not set(kernel + self.kernel) - {1})
        return same and (self.magnitudes is None or self.magnitudes[0] == weight[self.magnitudes[1]])


def modules(shapes: Mapping[str, Shape], alphas: Mapping[str, torch.Tensor], adapter: Mapping[str, Any], said: str) -> Iterator[Module]:
    """The changes that a file's keys tell. Raises `UserError`, beginning with `said`, for one that is not whole or not possible."""
    stems: dict[str, dict[str, str]] = {}
    for key in shapes:
        end = next((end for end in PARTS if key.endswith(end)), None)
        if end is not None:
            stems.setdefault(key.removesuffix(end), {})[PARTS[end]] = key
    for stem, keys in stems.items():
        yield _module(stem, keys, shapes, alphas, adapter, f"{said}: {stem[:80]!r}")


def _module(
    stem: str, keys: Mapping[str, str], shapes: Mapping[str, Shape], alphas: Mapping[str, torch.Tensor], adapter: Mapping[str, Any], said: str
) -> Module:
    prefix = next((prefix for prefix in PREFIXES if stem.startswith(prefix)), None)
    if prefix is None:
        raise UserError(f"{said} belongs to no part of SDXL; it takes lora_unet_, lora_te1_, lora_te2_, unet., text_encoder. and text_encoder_2.")
    if keys.keys() - {"magnitude"} not in WHOLE:
        held = ", ".join(key.removeprefix(f"{stem}.")[:40] for key in sorted(keys.values()))
        raise UserError(f"{said} is not a whole change: all it has is {held}.")
    if "down" not in keys and not prefix.startswith("lora_"):
        raise UserError(f"{said} is a LoKr in PEFT's own layout, which does not tell its alpha; it takes LyCORIS' and kohya's.")
    parts = {part: shapes[key] for part, key in keys.items()}
    rank, shape, kernel, groups = _pair(parts, said) if "down" in keys else _product(parts, said)
    component, name = PREFIXES[prefix], stem.removeprefix(prefix)
    told = {k.removeprefix(f"{component}."): v for k, v in adapter.items() if k.startswith(f"{component}.")} or adapter
    own = f"{stem}.alpha"
    alpha = float(alphas.get(own, math.nan)) if own in shapes else _told_alpha(told, name, rank)
    if not abs(alpha) <= LARGEST_ALPHA:  # true for NaN
        raise UserError(f"{said} has an alpha that is not a number that alpha can be.")
    scale = alpha / (math.sqrt(rank) if told.get("use_rslora") is True else rank)
    if {"w1", "w2"} <= keys.keys():
        alpha, scale = float(rank), 1.0  # where nothing has a rank, LyCORIS and all that read its files take 1, whatever alpha says
    flat = name.replace(".", "_")
    return Module(
        component=component,
        name=from_sai(flat) if component == "unet" else flat.removeprefix("text_model_"),  # which transformers 5 has for the second encoder only
        stem=stem,
        keys=keys,
        rank=rank,
        alpha=alpha,
        scale=scale,
        shape=shape,
        kernel=kernel,
        groups=groups,
        magnitudes=_magnitudes(parts["magnitude"], shape, keys, said) if "magnitude" in parts else None,
    )


def _pair(parts: Mapping[str, Shape], said: str) -> tuple[int, tuple[int, int], Shape, tuple[int, int]]:
    """Rank, shape, kernel and groups of up @ down."""
    first, second = parts["down"], parts["up"]
    rank = first[0] if first else 0
    if (
        len(first) not in (2, 4)
        or len(second) != len(first)
        or second[1] != rank
        or set(second[2:]) - {1}
        or not RANKS[0] <= rank <= RANKS[1]
        or 0 in first + second
    ):
        raise UserError(f"{said} has matrices of {first} and {second}; rank must be from {RANKS[0]} to {RANKS[1]} and the same in both.")
    return rank, (second[0], first[1]), tuple(first[2:]), (1, 1)


def _product(parts: Mapping[str, Shape], said: str) -> tuple[int, tuple[int, int], Shape, tuple[int, int]]:
    """Rank, shape, kernel and groups of the Kronecker product of `w1` (rows, columns) and `w2` (rows, columns[, k, k])."""
    ranks: set[int] = set()
    sound, factors = True, []
    for name in ("w1", "w2"):
        first, second = (parts[name], None) if name in parts else (parts[f"{name}_a"], parts[f"{name}_b"])
        sound &= 0 not in first and len(first) in ((2, 4) if (name, second) == ("w2", None) else (2,))
        if second is not None:
            sound &= 0 not in second and len(second) == 2 and first[1:] == second[:1]
            ranks |= {*first[1:2], *second[:1]}
        factors.append(first if second is None else (*first[:1], *second[1:]))
    if not sound or len(ranks) > 1 or any(not RANKS[0] <= rank <= RANKS[1] for rank in ranks):
        shown = ", ".join(f"{part} {shape}" for part, shape in sorted(parts.items()) if part != "magnitude")
        raise UserError(f"{said} has matrices that make no Kronecker product: {shown}; a rank must be from {RANKS[0]} to {RANKS[1]} and the same in all.")
    w1, w2 = factors
    rank = ranks.pop() if ranks else min(w2[0], math.prod(w2[1:]))
    return rank, (w1[0] * w2[0], w1[1] * w2[1]), tuple(w2[2:]), (w1[0], w1[1])


def _magnitudes(found: Shape, shape: tuple[int, int], keys: Mapping[str, str], said: str) -> tuple[int, int]:
    """How many and along which dimension: (out, 1, ...) or (1, in, ...), LyCORIS has both; PEFT has one an output, as a row."""
    many, long = math.prod(found), shape[1]
    if many == shape[0] and (found[:1] == (many,) or "dora_scale" not in keys["magnitude"]):
        return many, 0
    is_flat = "w2_b" in keys  # in times a kernel that is not told
    if len(found) > 1 and found[1] == many and (many == long or (is_flat and many and long % many == 0)):
        return many, 1
    raise UserError(f"{said} has magnitudes of {found} for a layer of {shape}; DoRA has one for each output, ({shape[0]}, 1), or each input, (1, {shape[1]}).")


def _told_alpha(told: Mapping[str, Any], name: str, rank: int) -> float:
    """Alpha as diffusers' and PEFT's adapter metadata tell it; without them, the rank."""
    patterns = told.get("alpha_pattern")
    said = told.get("lora_alpha", rank)
    if isinstance(patterns, dict):
        said = next((value for pattern, value in patterns.items() if name == pattern or name.endswith(f".{pattern}")), said)
    plain = isinstance(said, int | float) and abs(said) <= LARGEST_ALPHA  # before a whole number of 400 digits becomes a float
    return float(said) if plain else math.nan
