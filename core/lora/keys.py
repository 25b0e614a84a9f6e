"""Parse the keys of a LoRA file: which layers they change and how.

Names and shapes alone decide it, before anything is loaded. Kinds: LoRA and LoCon (`lora_down`,
`lora_up`), LoHa (`hada_w1_a` ...), LoKr (`lokr_w1`, `lokr_w2`, each whole or in two factors), the
core of a Tucker decomposition in any of them, DoRA, which adds magnitudes (`dora_scale`), GLoRA
(`a1`, `a2`, `b1`, `b2`), OFT and BOFT (`oft_blocks`, perhaps with `rescale`; PEFT's and OneTrainer's
`oft_R`), IA3 (`weight`, `on_input`), full differences of a weight or a bias (`diff`, `diff_b`), and
norms (`w_norm`, `b_norm`).
"""

import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.lora.blocks import from_sai
from core.lora.rotation import InputTurn, read_peft_turn
from core.lora.shapes import Shape, infer_input_blocks, infer_magnitudes, infer_shape
from core.schema.errors import UserError

MAX_ALPHA = 1e6
COMPONENT_BY_PREFIX = {
    "lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lycoris_": "unet",
    "oft_unet_": "unet",
    "unet.": "unet", "text_encoder_2.": "text_encoder_2", "text_encoder.": "text_encoder",
    "base_model.model.unet.": "unet", "base_model.model.text_encoder_2.": "text_encoder_2",
    "base_model.model.text_encoder.": "text_encoder", "base_model.model.": "unet",
    "base_model_model_": "unet",
    "model.diffusion_model.": "unet", "diffusion_model.": "unet",
    "text_encoders.clip_l.transformer.": "text_encoder", "text_encoders.clip_l.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2", "text_encoders.clip_g.": "text_encoder_2",
}  # fmt: skip
"""The start of a key -> the component; of two that fit, the first. The last six are ComfyUI's.

`base_model_model_` is what diffusers' `convert_state_dict_to_kohya` makes of PEFT's.
"""
BARE_UNET_NAME = re.compile(
    r"(?:down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|time_embed\w*|add_embedding"
    r"|label_emb|conv_in|conv_out|out)[._]"
)
"""The start of a key that names a layer of the U-Net, and no component."""
PART_BY_SUFFIX = {
    **{f".{name}.weight": "down" for name in ("lora_down", "lora_A", "lora.down", "lora_linear_layer.down")},
    **{f".{name}.weight": "up" for name in ("lora_up", "lora_B", "lora.up", "lora_linear_layer.up")},
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_mid.weight": "mid",
    **{f".{part}.weight": part for part in ("a1", "a2", "b1", "b2", "bm")},
    ".oft_blocks": "rotation",
    ".rescale": "rescale",
    ".oft_R.weight": "vectors",
    **{f".lokr_{part}": part for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{
        f".{part}": part
        for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    },
    **{f".{part}": part for part in ("diff", "diff_b", "w_norm", "b_norm")},
    ".dora_scale": "magnitude",
    ".magnitude": "magnitude",
    **{f".lora_magnitude_vector{end}": "magnitude" for end in ("", ".weight", ".default", ".default.weight")},
}
"""The end of a key -> the part of a change that it holds."""
NAMED_ADAPTER = re.compile(r"\.(lora_A|lora_B|oft_R)\.[^.]+\.weight$")
"""The end of a key in which PEFT names the adapter, such as `default`."""
LOHA_PARTS = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
GLORA_PARTS = {"a1", "a2", "b1", "b2"}
ROTATION_PARTS = {"rotation", "butterfly"}
SCALED_FLAG = ".oft_R.scaled_oft"
"""The end of the key by which OneTrainer marks an OFT whose numbers are divided by 2 sqrt(size - 1)."""
GAIN_FLAG = ".on_input"
"""The end of the key that says along which dimension an IA3's gains lie."""
ADDED_PARTS = {"magnitude", "diff_b"}
"""Parts that go with any kind."""
COMPLETE_PARTS = (
    {"down", "up"},
    {"down", "up", "mid"},
    LOHA_PARTS,
    LOHA_PARTS | {"hada_t1", "hada_t2"},
    {"w1", "w2"},
    {"w1_a", "w1_b", "w2"},
    {"w1", "w2_a", "w2_b"},
    {"w1_a", "w1_b", "w2_a", "w2_b"},
    {"w1", "w2_a", "w2_b", "t2"},
    {"w1_a", "w1_b", "w2_a", "w2_b", "t2"},
    GLORA_PARTS,
    GLORA_PARTS | {"bm"},
    {"rotation"},
    {"rotation", "rescale"},
    {"butterfly"},
    {"butterfly", "rescale"},
    {"vectors"},
    {"gain"},
    {"diff"},
    {"w_norm"},
    {"b_norm"},
    {"w_norm", "b_norm"},
)

MARKS = {
    "hada_w1": "LoHa",
    "w2": "LoKr",
    "b1": "GLoRA",
    "rotation": "OFT",
    "vectors": "OFT",
    "butterfly": "BOFT",
    "gain": "IA3",
    "diff": "full difference",
    "diff_b": "bias",
}
"""A part, or its beginning, that no kind before it has -> the kind."""


@dataclass(frozen=True, kw_only=True)
class LoraModule:
    """One layer that a LoRA file changes."""

    component: str
    """`unet`, `text_encoder` or `text_encoder_2`."""
    name: str
    """The layer's flat name: its path in diffusers' (or transformers') model with `_` for `.`."""
    stem: str
    """The beginning that all of the module's keys in the file share."""
    keys: Mapping[str, str]
    """Part -> its key in the file.

    `down` (rank, in) or (rank, in, k, k) and `up` (out, rank) or (out, rank, 1, 1), with a core
    `mid` (rank, rank, k, k) `down` (rank, in, 1, 1); LoHa's four matrices; `w1` and `w2`, each whole
    or as `_a` and `_b`; GLoRA's `a1` (in, rank), `a2` (rank, in), `b1` (out, rank) and `b2` (rank,
    in), with a core `bm`; OFT's `rotation` (n, size, size), BOFT's `butterfly` (factors, n, size,
    size), perhaps with a `limit` and a `rescale` (out, 1, ...); an OFT of inputs' `vectors` (n, size *
    (size - 1) / 2); IA3's `gain`, one per output or input; `diff`, as the layer's weight; `w_norm`
    and `b_norm`, as a norm's. Any of them also with `diff_b`, as the layer's bias, and those of LoRA,
    LoHa, LoKr and `diff` with `magnitude`.
    """
    rank: int
    """For a LoKr without factors, the largest rank that its `w2` can have; 0 for what has no rank."""
    alpha: float
    scale: float
    """Factor of the product at strength 1: alpha / rank; alpha / sqrt(rank) if rank-stabilised."""
    shape: tuple[int, int]
    """Features out and in; for a LoKr or LoHa of unknown kernel, in times the kernel's area.

    In is 0 for a norm, and for a bias alone. An OFT knows only what it turns: out, or in times the
    kernel's area; the other is 0.
    """
    kernel: tuple[int, ...]
    """A convolution's height and width; empty for a linear layer, or if the file does not tell."""
    groups: tuple[int, int] = (1, 1)
    """Rows and columns of LoKr's `w1`: out and in are that many times those of `w2`."""
    magnitudes: tuple[int, int] | None = None
    """How many magnitudes a DoRA has, or gains an IA3, and along which dimension of the weight.

    0 is one per output, 1 one per input.
    """

    bias_size: int | None = None
    """How many numbers `diff_b` has."""
    block_size: int = 0
    """Outputs or inputs in a block that an OFT or BOFT turns; 0 for any other kind."""
    input_turn: InputTurn | None = None
    """How the turns of an OFT of inputs are made; `None` for any other kind."""

    @property
    def down(self) -> str:
        """The file's key of the matrix (rank, in) of a LoRA or DoRA."""
        return self.keys["down"]

    @property
    def up(self) -> str:
        """The file's key of the matrix (out, rank) of a LoRA or DoRA."""
        return self.keys["up"]

    @property
    def kind(self) -> str:
        """Its name, such as `LoRA`, `LoHa` or `norm`; `DoRA`, or another one ` with DoRA`."""
        if "down" in self.keys:
            return "LoRA" if self.magnitudes is None else "DoRA"
        plain = next(
            (kind for part, kind in MARKS.items() if part in self.keys or f"{part}_a" in self.keys), "norm"
        )
        return f"{plain} with DoRA" if "magnitude" in self.keys else plain

    @property
    def has_alpha(self) -> bool:
        """Whether alpha says how strong the change is; a difference is added as it is."""
        return self.rank > 0

    @property
    def is_full_lokr(self) -> bool:
        """Whether this is a LoKr without factors, whose alpha no program but PEFT reads."""
        return {"w1", "w2"} <= self.keys.keys()

    def can_change(self, weight_shape: Shape) -> bool:
        """Whether this module fits a layer's weight of shape (out, in) or (out, in, k, k)."""
        kernel, area = weight_shape[2:], math.prod(weight_shape[2:])
        if self.bias_size not in (None, weight_shape[0]):
            return False
        if "gain" in self.keys and self.magnitudes is not None:
            many, along = self.magnitudes
            return len(weight_shape) > 1 and many == weight_shape[along]
        if ROTATION_PARTS & self.keys.keys():
            return len(weight_shape) > 1 and self.shape[0] == weight_shape[0]
        if "vectors" in self.keys:
            inputs, shared = math.prod(weight_shape[1:]), self.shape[1] == self.block_size
            return inputs == self.shape[1] or (
                len(weight_shape) > 1 and shared and inputs % self.shape[1] == 0
            )
        if self.shape[1] == 0:
            return self.shape[0] == weight_shape[0] and ("diff_b" in self.keys or len(weight_shape) == 1)
        # A convolution's LoHa or LoKr may be flat, too.
        if self.rank and not {"down", "b1"} & self.keys.keys() and not self.kernel:
            same = (
                self.shape == (weight_shape[0], weight_shape[1] * area)
                and weight_shape[1] % self.groups[1] == 0
            )
        else:
            same = self.shape == weight_shape[:2] and (
                kernel == self.kernel or not set(kernel + self.kernel) - {1}
            )
        return same and (self.magnitudes is None or self.magnitudes[0] == weight_shape[self.magnitudes[1]])


def parse_modules(
    shapes: Mapping[str, Shape], scalars: Mapping[str, torch.Tensor], adapter: Mapping[str, Any], name: str
) -> Iterator[LoraModule]:
    """Yield the modules that a file's keys describe; `scalars` are its alphas and flags by key.

    Raises `UserError`, beginning with `where`, for a module that is incomplete or impossible.
    """
    stems: dict[str, dict[str, str]] = {}
    for key in shapes:
        if (found := _split_key(key, scalars)) is not None:
            stem, part = found
            part = "butterfly" if part == "rotation" and len(shapes[key]) == 4 else part
            stems.setdefault(stem, {})[part] = key
    for stem, keys in stems.items():
        yield _parse_module(stem, keys, shapes, scalars, adapter, f"{name}: {stem[:80]!r}")


def _split_key(key: str, scalars: Container[str]) -> tuple[str, str] | None:
    """Return the stem of a key and the part that it holds; `None` for a key that holds no part.

    A `weight` is a gain if one of the file's `scalars` is the flag that says along which dimension.
    """
    if end := next((end for end in PART_BY_SUFFIX if key.endswith(end)), None):
        return key.removesuffix(end), PART_BY_SUFFIX[end]
    if match := NAMED_ADAPTER.search(key):
        return key[: match.start()], PART_BY_SUFFIX[f".{match[1]}.weight"]
    if key.endswith(".weight") and f"{key.removesuffix('.weight')}{GAIN_FLAG}" in scalars:
        return key.removesuffix(".weight"), "gain"
    return None


def _parse_module(
    stem: str,
    keys: Mapping[str, str],
    shapes: Mapping[str, Shape],
    scalars: Mapping[str, torch.Tensor],
    adapter: Mapping[str, Any],
    where: str,
) -> LoraModule:
    prefix = _find_prefix(stem, where)
    _check_parts(stem, keys, where)
    component, name = COMPONENT_BY_PREFIX.get(prefix, "unet"), stem.removeprefix(prefix)
    told = {
        k.removeprefix(f"{component}."): v for k, v in adapter.items() if k.startswith(f"{component}.")
    } or adapter
    if keys.keys() & {*LOHA_PARTS, "w1", "w1_a"} and prefix.startswith("base_") and not told:
        raise UserError(
            "lora",
            f"{where} is in PEFT's own layout, which stores alpha in adapter_config.json. Use LyCORIS' or "
            "kohya's, or the folder with that file.",
        )
    parts = {part: shapes[key] for part, key in keys.items()}
    rank, shape, kernel, groups = infer_shape(parts, where)
    alpha, scale = _find_scale(keys, rank, scalars, f"{stem}.alpha", told, name, where)
    # diffusers before 0.21 kept a LoRA in the attention's processor.
    flat = re.sub(r"_to_out$", "_to_out_0", name.replace(".", "_").replace("_processor_", "_"))
    magnitudes = None
    if "gain" in parts:
        if (flag := float(scalars[f"{stem}{GAIN_FLAG}"])) not in (0, 1):
            raise UserError("lora", f"{where} has the flag on_input {flag:g}; it is 0 or 1.")
        magnitudes = (shape[0], int(flag))
    elif "magnitude" in parts:
        magnitudes = infer_magnitudes(parts["magnitude"], shape, keys, where)
    input_turn, block_size = None, 0
    if "vectors" in parts:
        count, block_size = infer_input_blocks(parts["vectors"], where)
        divisor = 2 * math.sqrt(block_size - 1) if f"{stem}{SCALED_FLAG}" in scalars else 1.0
        is_peft = bool(told) or prefix.startswith("base_")
        input_turn = (
            read_peft_turn(told, count, where) if is_peft else InputTurn(divisor=divisor, is_peft=False)
        )
    elif turned := ROTATION_PARTS & keys.keys():
        block_size = parts[turned.pop()][-1]
    if ROTATION_PARTS & keys.keys() and f"{stem}.alpha" in scalars:
        keys = {**keys, "limit": f"{stem}.alpha"}  # OFT's alpha limits the angle
    return LoraModule(
        component=component,
        # transformers 5 has `text_model` for the second encoder only.
        name=from_sai(flat) if component == "unet" else flat.removeprefix("text_model_"),
        stem=stem,
        keys=keys,
        rank=rank,
        alpha=alpha,
        scale=scale,
        shape=shape,
        kernel=kernel,
        groups=groups,
        magnitudes=magnitudes,
        bias_size=math.prod(parts["diff_b"]) if "diff_b" in parts else None,
        block_size=block_size,
        input_turn=input_turn,
    )


def _find_prefix(stem: str, where: str) -> str:
    """Return the key of `COMPONENT_BY_PREFIX` that a stem begins with; empty for a U-Net's bare names."""
    if prefix := next((prefix for prefix in COMPONENT_BY_PREFIX if stem.startswith(prefix)), None):
        return prefix
    if BARE_UNET_NAME.match(f"{stem}."):
        return ""
    raise UserError(
        "lora",
        f"{where} belongs to no part of SDXL. The known prefixes are lora_unet_, lora_te1_, lora_te2_, "
        "unet., text_encoder., text_encoder_2., diffusion_model. and text_encoders.",
    )


def _check_parts(stem: str, keys: Mapping[str, str], where: str) -> None:
    """Check that the parts of a module make a complete change of one kind."""
    kind = keys.keys() - ADDED_PARTS
    takes_magnitudes = bool(kind - {*ROTATION_PARTS, "rescale", "vectors", "gain", "w_norm", "b_norm"})
    if (kind not in COMPLETE_PARTS and not (kind == set() and "diff_b" in keys)) or (
        "magnitude" in keys and not takes_magnitudes
    ):
        held = ", ".join(key.removeprefix(f"{stem}.")[:40] for key in sorted(keys.values()))
        raise UserError(
            "lora",
            f"{where} is incomplete: it only has {held}."
            if kind not in COMPLETE_PARTS
            else f"{where} has magnitudes, which do not go with {held}.",
        )


def _find_scale(
    keys: Mapping[str, str],
    rank: int,
    alphas: Mapping[str, torch.Tensor],
    own: str,
    told: Mapping[str, Any],
    name: str,
    where: str,
) -> tuple[float, float]:
    """Return a module's alpha and its scale; `own` is the key of its alpha, `told` an adapter's settings."""
    if own in alphas and not abs(float(alphas[own])) <= MAX_ALPHA:  # true for NaN
        raise UserError("lora", f"{where} has an invalid alpha.")
    if {"w1", "w2"} <= keys.keys():
        # Where nothing of a LoKr has a rank, LyCORIS and all that read its files take 1, whatever alpha
        # says. PEFT's rank stands in its settings.
        if own in alphas or "r" not in told:
            return float(rank), 1.0
        rank_there = _read_setting(told, ("r",), "rank_pattern", name, rank)
        if not rank_there >= 1:  # true for NaN
            raise UserError("lora", f"{where} has an invalid rank in PEFT's settings.")
        rank = int(rank_there)
    if not rank:
        return 0.0, 1.0  # a difference is added as it is
    alpha = (
        float(alphas[own])
        if own in alphas
        else _read_setting(told, ("lora_alpha", "alpha"), "alpha_pattern", name, rank)
    )
    if not abs(alpha) <= MAX_ALPHA:
        raise UserError("lora", f"{where} has an invalid alpha.")
    if alpha == 0 and own in alphas:
        alpha = float(rank)  # as kohya's and LyCORIS' code reads it
    return alpha, alpha / (math.sqrt(rank) if told.get("use_rslora") is True else rank)


def _read_setting(
    adapter: Mapping[str, Any], names: Sequence[str], pattern_name: str, layer: str, default: int
) -> float:
    """Return a number of diffusers' or PEFT's settings of an adapter for a layer; NaN for what is none.

    It has one of `names`, unless the table `pattern_name` has one for the layer. Raises `UserError` for a
    pattern of layers' names that is more than a name.
    """
    patterns = adapter.get(pattern_name)
    said = next((adapter[name] for name in names if name in adapter), default)
    if isinstance(patterns, dict):
        said = next(
            (value for pattern, value in patterns.items() if _fits_pattern(pattern, layer, pattern_name)),
            said,
        )
    # Checked before the conversion, which fails for an integer of 400 digits.
    plain = isinstance(said, int | float) and abs(said) <= MAX_ALPHA
    return float(said) if plain else math.nan


def _fits_pattern(pattern: str, layer: str, table: str) -> bool:
    """Whether a key of PEFT's table of patterns means a layer: its whole name, or the end of it.

    PEFT takes any regular expression. Only `^`, `$` and escaped dots around a name are read: a
    stranger's expression could take any time.
    """
    plain = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if re.search(r"[\\*+?()\[\]{}|^$]", plain):
        raise UserError("lora", f"{table} has {pattern[:60]!r}; only names of layers are read.")
    return layer == plain or (not pattern.startswith("^") and layer.endswith(f".{plain}"))
