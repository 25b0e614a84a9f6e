"""Rewrite a LoRA file with another alpha or fewer blocks, without changing a bit of its matrices.

Strength s applies s * alpha / rank * up @ down. With alpha multiplied by m, strength 1 is what
strength m was, so that programs that stop at 1 or 2 reach a sweet spot at 2.75. The new file has
kohya's layout, which all of them read with its alpha. Nobody reads the alpha of a LoKr without
factors, so its w1 is multiplied instead, in float32. In a DoRA, alpha stands inside a norm, and in
an OFT it limits an angle: blocks can be left out, but nothing can be multiplied. A difference, a
norm and an IA3 have no alpha, and are multiplied themselves, in float32. PEFT's OFT becomes
OneTrainer's, whose turns are the series that PEFT takes unless a setting says otherwise; with another
setting it stays as it is.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core.lora.blocks import CONTENT_BLOCKS, STYLE_BLOCKS, BlockWeights, parse_block_weights, to_sai
from core.lora.file import LoraFile
from core.lora.keys import SCALED_FLAG, LoraModule
from core.lora.rotation import NEUMANN_TERMS
from core.schema.bounds import format_value
from core.schema.errors import UserError
from core.system.tensor_files import calculate_sha256, write_tensors

MULTIPLY_RANGE = (0.01, 100.0)
KEEP_CHOICES = {"all": None, "content": CONTENT_BLOCKS, "style": STYLE_BLOCKS}
PART_NAMES = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    "mid": "lora_mid.weight",
    "magnitude": "dora_scale",
    **{f"w{part}": f"lokr_w{part}" for part in ("1", "1_a", "1_b", "2", "2_a", "2_b")},
    "t2": "lokr_t2",
    **{part: f"{part}.weight" for part in ("a1", "a2", "b1", "b2", "bm")},
    "rotation": "oft_blocks",
    "butterfly": "oft_blocks",
    "vectors": "oft_R.weight",
    "limit": "alpha",
    "gain": "weight",
}
"""kohya's and LyCORIS' names of a change's parts, where they differ from ours."""
PREFIX_BY_COMPONENT = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
CONVOLUTION = re.compile(r"(?:^|_)conv(?:[12]|_shortcut|_in|_out)?$")
"""The end of the flat name of a convolution of the U-Net."""
STALE_METADATA = (
    "sshs_model_hash",
    "sshs_legacy_hash",
    "modelspec.hash_sha256",
    "lora_adapter_metadata",
    "peft_adapter_config",
)
"""Metadata keys that are not true of the new file."""
HISTORY_KEY = "sweetspot_rewritten_from"
"""Metadata key: sha256 of files that this one was made from -> their strength that is 1 here."""
MAX_HISTORY = 8


def rewrite_lora(
    lora_file: LoraFile,
    folder: Path,
    multiply: Any = None,
    blocks: str | None = None,
    keep: str | None = None,
    hint: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a changed copy of the LoRA into `folder` and return its path.

    `multiply` is the old strength that becomes 1.0. `blocks` are block weights as in `lbw=`; a
    block of weight 0 is left out. `keep` is `all`, or the blocks of `content` or `style`. `hint`
    becomes modelspec's usage hint, and `metadata` replaces the file's own.
    Raises `UserError` for a value that is not allowed, and if nothing would be left.
    """
    times = _parse_multiplier(multiply)
    shares = _parse_shares(blocks, keep)
    fixed = [kind for kind in ("DoRA", "BOFT", "OFT") if kind in lora_file.kind]
    if fixed and (times != 1 or (shares and set(shares.by_block.values()) - {0, 1})):
        field = "multiply" if times != 1 else "blocks"
        raise UserError(
            field,
            f"{lora_file.path.name} has layers of {fixed[0]}, whose strength does not depend on alpha. "
            "Use multiply 1, and 0 or 1 for blocks.",
        )
    kept = _select_tensors(lora_file, shares, times)
    told = {
        key: value
        for key, value in (lora_file.metadata if metadata is None else metadata).items()
        if key not in STALE_METADATA
    }
    if lora_file.rank:
        told |= {
            "ss_network_alpha": f"{lora_file.scale * lora_file.rank * times:g}",
            "ss_network_dim": str(lora_file.rank),
        }
    told.pop(HISTORY_KEY, None)
    if shares is None:  # measurements of the old file hold for the new one
        told[HISTORY_KEY] = json.dumps(
            dict(
                [
                    *((own, strength * times) for own, strength in read_history(lora_file).items()),
                    (calculate_sha256(lora_file.path), times),
                ][-MAX_HISTORY:]
            )
        )
    if hint:
        told["modelspec.usage_hint"] = hint
    named = (
        "".join(
            [
                f"-x{times:g}" if times != 1 else "",
                f"-{keep}" if keep in (*KEEP_CHOICES,)[1:] else "",
                "-blocks" if blocks else "",
            ]
        )
        or "-kohya"
    )
    file = folder / f"{lora_file.path.stem[:100]}{named}.safetensors"
    write_tensors(file, kept, told)
    return file


def read_history(lora_file: LoraFile) -> dict[str, float]:
    """Return the sha256 of files that this one was rewritten from -> their strength that is 1 here.

    Empty if the metadata has no such table or a malformed one.
    """
    try:
        told = json.loads(lora_file.metadata.get(HISTORY_KEY, "{}"))
        kept = {own: float(times) for own, times in told.items() if re.fullmatch(r"[0-9a-f]{64}", own)}
    except (ValueError, TypeError, AttributeError, RecursionError):  # the metadata may be anybody's
        return {}
    return {own: times for own, times in kept.items() if math.isfinite(times) and times > 0}


def combine_loras(style: LoraFile, content: LoraFile, folder: Path) -> Path:
    """Write a file into `folder` with the style block of one LoRA and the content block of another.

    Each block stays as strong as it was, as B-LoRA combines them. Returns the file's path.
    Raises `UserError` if one of the LoRAs has nothing in its block, or if they are made for
    different models.
    """
    if style.family != content.family:
        raise UserError(
            "content",
            f"{content.path.name} is made for {content.family}, {style.path.name} for "
            f"{style.family}. Use two of the same family.",
        )
    kept = _select_tensors(style, _parse_shares(None, "style"), 1.0) | _select_tensors(
        content, _parse_shares(None, "content"), 1.0
    )
    triggers = ", ".join(dict.fromkeys(found.trigger for found in (content, style) if found.trigger))
    told = {"ss_network_dim": str(style.rank), **({"modelspec.trigger_phrase": triggers} if triggers else {})}
    told |= {
        name: style.metadata[name]
        for name in ("ss_base_model_version", "modelspec.architecture")
        if name in style.metadata
    }
    file = folder / f"{content.path.stem[:60]}-in-{style.path.stem[:60]}.safetensors"
    write_tensors(file, kept, told)
    return file


def _select_tensors(
    lora_file: LoraFile, shares: BlockWeights | None, factor: float
) -> dict[str, torch.Tensor]:
    """Return the scaled tensors of a file by kohya's keys; `shares` by block, `None` for all of it.

    Its embeddings stay as they are. Raises `UserError` if nothing is left, and for an OFT of inputs that
    only PEFT's settings describe.
    """
    turns = {module.input_turn for module in lora_file.modules if module.input_turn is not None}
    if any((turn.terms, turn.limit) != (NEUMANN_TERMS, None) for turn in turns):
        raise UserError(
            "lora",
            f"{lora_file.path.name} is PEFT's OFT with turns that no other layout has; it cannot be written "
            f"anew. Only a series of {NEUMANN_TERMS} terms without coft can.",
        )
    tensors, kept = lora_file.load_tensors(), dict[str, torch.Tensor]()
    for module in lora_file.modules:
        share = 1.0 if shares is None else shares.get_weight(module.component, module.name)
        if share:
            kept |= {
                f"{_make_key_stem(lora_file, module)}.{name}": value
                for name, value in _scale_module(module, tensors, factor * share).items()
            }
    if not kept:
        raise UserError("keep", f"{lora_file.path.name} has nothing in the chosen blocks.")
    return kept | {key: tensors[key] for key in lora_file.embedding_keys}


def _scale_module(
    module: LoraModule, tensors: Mapping[str, torch.Tensor], factor: float
) -> dict[str, torch.Tensor]:
    """Return a module's parts and alpha by kohya's names; strength 1 is what `factor` was."""
    parts = {part: tensors[key] for part, key in module.keys.items()}
    if module.is_full_lokr and factor * module.scale != 1:
        parts["w1"] = parts["w1"].float() * (factor * module.scale)
    if factor != 1:  # what no alpha scales is multiplied itself
        for part in parts.keys() & {"diff", "diff_b", "w_norm", "b_norm", "gain"}:
            parts[part] = parts[part].float() * factor
    if module.input_turn is not None and module.input_turn.is_peft and CONVOLUTION.search(module.name):
        parts["vectors"] = -parts["vectors"]  # OneTrainer turns its weight the other way round
    if "magnitude" in parts and module.magnitudes:
        many, along = module.magnitudes
        dimensions = max(2, *(value.ndim for value in parts.values()))
        # The shape that LyCORIS uses.
        parts["magnitude"] = parts["magnitude"].reshape(
            [many if i == along else 1 for i in range(dimensions)]
        )
    named = {PART_NAMES.get(part, part): value for part, value in parts.items()}
    if "gain" in parts and module.magnitudes:
        named["on_input"] = torch.tensor(module.magnitudes[1])
    if module.input_turn is not None and module.input_turn.divisor != 1:
        named[SCALED_FLAG.removeprefix(".")] = torch.tensor(True)
    if not module.has_alpha:
        return named
    # alpha / rank is the scale, also where it was alpha / sqrt(rank).
    scale = 1.0 if module.is_full_lokr else module.scale * factor
    return {**named, "alpha": torch.tensor(scale * module.rank)}


def build_sidecar(lora_file: LoraFile, report: Mapping[str, Any], multiply: float = 1.0) -> dict[str, Any]:
    """Build A1111's `<name>.json` beside a LoRA.

    It has the preferred weight, the trigger words and what was measured. `multiply` is the factor
    by which the file's alpha was multiplied after the sweep.
    """
    best = report["recommended"]
    return {
        "description": format_usage_hint(report, multiply),
        "sd version": "SDXL" if lora_file.family == "SDXL" else "Unknown",
        "activation text": lora_file.trigger or "",
        "preferred weight": round(best / multiply, 3) if best and _works(report) else 0.0,
        "negative text": "",
        "notes": json.dumps(
            {
                name: report[name]
                for name in (
                    "model",
                    "onset",
                    "sweet_spot",
                    "breakdown",
                    "recommended",
                    "confidence",
                    "seeds",
                )
            }
        ),
    }


def format_usage_hint(report: Mapping[str, Any], multiply: float = 1.0) -> str:
    """Return the measured range as a sentence, in strengths of the file with multiplied alpha."""
    if not report["sweet_spot"]:
        return f"Measured on {report['model']}: {report['why']}"
    low, high = (end / multiply for end in report["sweet_spot"])
    if not _works(report):
        return f"Measured on {report['model']}: changes images from {low:.3g} to {high:.3g}."
    return (
        f"Strength {report['recommended'] / multiply:.3g}, sweet spot {low:.3g} to {high:.3g}, "
        f"measured on {report['model']}."
    )


def _works(report: Mapping[str, Any]) -> bool:
    """Whether the sweet spot was held against what is wanted; reports from before do not say."""
    return (report.get("answer") or "works") == "works"


def _parse_multiplier(multiply: Any) -> float:
    if multiply is None:
        return 1.0
    low, high = MULTIPLY_RANGE
    # The comparison is false for NaN.
    if isinstance(multiply, bool) or not isinstance(multiply, int | float) or not low <= multiply <= high:
        raise UserError(
            "multiply", f"{format_value(multiply)} is not valid. Use a number from {low:g} to {high:g}."
        )
    return float(multiply)


def _parse_shares(blocks: Any, keep: Any) -> BlockWeights | None:
    """Return the factor of each block that is kept; `None` for the whole file unchanged."""
    if blocks is not None and not isinstance(blocks, str):
        raise UserError("blocks", f"{format_value(blocks)} is not text, such as STYLE or 12 block weights.")
    if keep is not None and (not isinstance(keep, str) or keep not in KEEP_CHOICES):
        raise UserError("keep", f"{str(keep)[:40]!r} is not valid. Use one of: {', '.join(KEEP_CHOICES)}.")
    chosen = KEEP_CHOICES[keep or "all"]
    try:
        weights = parse_block_weights(blocks) if blocks else None
    except ValueError as error:
        raise UserError("blocks", f"{str(blocks)[:60]!r} is not valid: {error}.") from error
    if chosen is None:
        return weights
    return BlockWeights(
        {block: 1.0 if weights is None else weights.by_block.get(block, 0.0) for block in chosen}, 0.0
    )


def _make_key_stem(lora_file: LoraFile, module: LoraModule) -> str:
    """Return the start of a module's keys in the new file.

    A file in kohya's layout keeps its own; any other gets the original's (SAI) block names.
    """
    if lora_file.format == "kohya":
        return module.stem
    if module.component == "unet":
        return f"{PREFIX_BY_COMPONENT['unet']}{to_sai(module.name)}"
    own = module.name if module.name.startswith("text_projection") else f"text_model_{module.name}"
    return f"{PREFIX_BY_COMPONENT[module.component]}{own}"
