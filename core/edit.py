"""A LoRA's file rewritten: another alpha, fewer blocks; not a bit of its matrices is changed.

Strength s applies s * alpha / rank * up @ down. With alpha times m, strength 1 is what m was: so every program that stops
at 1 or 2 reaches a sweet spot at 2.75. The new file has kohya's layout, which all of them read with its alpha. A LoKr
without factors has no alpha that is read: its w1 is multiplied, in float32. With DoRA, alpha stands inside a norm and
scales nothing: blocks can be left out, but nothing be multiplied.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core.blocks import CONTENT, STYLE, block_of, to_sai, weights
from core.digest import content
from core.lorafile import LoraFile
from core.lorakeys import Module
from core.tensorfile import write_tensors
from core.types import UserError

MULTIPLY = (0.01, 100.0)
KEEP = {"all": None, "content": CONTENT, "style": STYLE}
NAMES = {"down": "lora_down.weight", "up": "lora_up.weight", "magnitude": "dora_scale"}
"""kohya's and LyCORIS' names of a change's parts; LoKr's are `lokr_` and the part."""
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata", "peft_adapter_config")
"""Metadata that does not hold for the new file."""
HISTORY = "sweetspot_rewritten_from"
"""Metadata: files of which this one is another writing -> their strength that is 1 here."""
GENERATIONS = 8


def edited(
    found: LoraFile,
    folder: Path,
    multiply: Any = None,
    blocks: str | None = None,
    keep: str | None = None,
    hint: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the LoRA anew into `folder` and return its path.

    `multiply`: the old strength that becomes 1.0. `blocks`: block weights as `lbw=` has them, a block of 0 is left out.
    `keep`: `all`, or the blocks of `content` or `style`. `hint` becomes modelspec's usage hint, `metadata` takes the
    place of the file's own.
    Raises `UserError` for what is not allowed, and where nothing would be left.
    """
    times = _times(multiply)
    shares = _shares(blocks, keep)
    if "DoRA" in found.kind and (times != 1 or set((shares or {}).values()) - {0, 1}):
        field = "multiply" if times != 1 else "blocks"
        raise UserError(f"{field}: {found.path.name} is a DoRA, which no alpha makes stronger or weaker; it takes multiply 1, and 0 and 1 for blocks.")
    kept = _kept(found, shares, times)
    told = {key: value for key, value in (found.metadata if metadata is None else metadata).items() if key not in STALE}
    told |= {"ss_network_alpha": f"{found.scale * found.rank * times:g}", "ss_network_dim": str(found.rank)}
    told.pop(HISTORY, None)
    if shares is None:  # what was measured of the old file holds for the new one
        told[HISTORY] = json.dumps(dict([*((own, strength * times) for own, strength in history(found).items()), (content(found.path), times)][-GENERATIONS:]))
    if hint:
        told["modelspec.usage_hint"] = hint
    named = "".join([f"-x{times:g}" if times != 1 else "", f"-{keep}" if keep in (*KEEP,)[1:] else "", "-blocks" if blocks else ""]) or "-kohya"
    file = folder / f"{found.path.stem[:100]}{named}.safetensors"
    write_tensors(file, kept, told)
    return file


def history(found: LoraFile) -> dict[str, float]:
    """The sha256 of each file that this one is another writing of -> its strength that is 1 here."""
    try:
        told = json.loads(found.metadata.get(HISTORY, "{}"))
        kept = {own: float(times) for own, times in told.items() if re.fullmatch(r"[0-9a-f]{64}", own)}
    except (ValueError, TypeError, AttributeError, RecursionError):  # somebody else's words
        return {}
    return {own: times for own, times in kept.items() if math.isfinite(times) and times > 0}


def combined(style: LoraFile, content: LoraFile, folder: Path) -> Path:
    """Write one file with the style block of a LoRA and the content block of another, each as strong as it was, into `folder`.

    As B-LoRA puts them together. Raises `UserError` if one has nothing in its block, or they are for different models.
    """
    if style.family != content.family:
        raise UserError(f"content: {content.path.name} is made for {content.family}, {style.path.name} for {style.family}; it takes two of one family.")
    kept = _kept(style, _shares(None, "style"), 1.0) | _kept(content, _shares(None, "content"), 1.0)
    triggers = ", ".join(dict.fromkeys(found.trigger for found in (content, style) if found.trigger))
    told = {"ss_network_dim": str(style.rank), **({"modelspec.trigger_phrase": triggers} if triggers else {})}
    told |= {name: style.metadata[name] for name in ("ss_base_model_version", "modelspec.architecture") if name in style.metadata}
    file = folder / f"{content.path.stem[:60]}-in-{style.path.stem[:60]}.safetensors"
    write_tensors(file, kept, told)
    return file


def _kept(found: LoraFile, shares: Mapping[str, float] | None, times: float) -> dict[str, torch.Tensor]:
    """What stays of a file, by kohya's keys; `shares` by block, `None` for all. Raises `UserError` if nothing does."""
    tensors, kept = found.tensors(), dict[str, torch.Tensor]()
    for module in found.modules:
        share = 1.0 if shares is None else shares.get(_block(module), 0.0)
        if share:
            kept |= {f"{_stem(found, module)}.{name}": value for name, value in _multiplied(module, tensors, times * share).items()}
    if not kept:
        raise UserError(f"keep: nothing of {found.path.name} is in the blocks that were chosen.")
    return kept


def _multiplied(module: Module, tensors: Mapping[str, torch.Tensor], times: float) -> dict[str, torch.Tensor]:
    """A module's parts and alpha, by kohya's names, so that strength 1 is what `times` was."""
    parts = {part: tensors[key] for part, key in module.keys.items()}
    if module.is_whole:
        parts["w1"] = parts["w1"].float() * times if times != 1 else parts["w1"]
        times = 1.0
    if module.magnitudes:
        many, along = module.magnitudes
        dimensions = max(2, *(value.ndim for value in parts.values()))
        parts["magnitude"] = parts["magnitude"].reshape([many if i == along else 1 for i in range(dimensions)])  # as LyCORIS has it
    named = {NAMES.get(part, f"lokr_{part}"): value for part, value in parts.items()}
    return {**named, "alpha": torch.tensor(module.scale * module.rank * times)}  # alpha / rank is the scale, also where it was alpha / sqrt(rank)


def sidecar(found: LoraFile, report: Mapping[str, Any], multiply: float = 1.0) -> dict[str, Any]:
    """A1111's `<name>.json` beside a LoRA: the weight it proposes, the words that call it, and what was measured.

    `multiply` is what the file's alpha was multiplied by after the sweep.
    """
    best = report["recommended"]
    return {
        "description": hint(report, multiply),
        "sd version": "SDXL" if found.family == "SDXL" else "Unknown",
        "activation text": found.trigger or "",
        "preferred weight": round(best / multiply, 3) if best else 0.0,
        "negative text": "",
        "notes": json.dumps({name: report[name] for name in ("model", "onset", "sweet_spot", "breakdown", "recommended", "confidence", "seeds")}),
    }


def hint(report: Mapping[str, Any], multiply: float = 1.0) -> str:
    """The measured range in a sentence, in the strengths of a file whose alpha was multiplied."""
    if not report["sweet_spot"]:
        return f"Measured on {report['model']}: {report['why']}"
    low, high = (end / multiply for end in report["sweet_spot"])
    return f"Strength {report['recommended'] / multiply:.3g}, sweet spot {low:.3g} to {high:.3g}, measured on {report['model']}."


def _times(multiply: Any) -> float:
    if multiply is None:
        return 1.0
    low, high = MULTIPLY
    if isinstance(multiply, bool) or not isinstance(multiply, int | float) or not low <= multiply <= high:  # false for NaN
        raise UserError(f"multiply: {str(multiply)[:40]} is not allowed; it takes a number from {low:g} to {high:g}.")
    return float(multiply)


def _shares(blocks: str | None, keep: str | None) -> Mapping[str, float] | None:
    """Block -> what its change is multiplied by; `None` for all of the file."""
    if keep not in (None, *KEEP):
        raise UserError(f"keep: {str(keep)[:40]!r} is not allowed; it takes {', '.join(KEEP)}.")
    chosen = KEEP[keep or "all"]
    try:
        by_block = weights(blocks) if blocks else None
    except ValueError as error:
        raise UserError(f"blocks: {str(blocks)[:60]!r} is not allowed: {error}.") from error
    if chosen is None:
        return by_block
    return {block: 1.0 if by_block is None else by_block[block] for block in chosen}


def _block(module: Module) -> str:
    return block_of(module.name) or "" if module.component == "unet" else "BASE"


def _stem(found: LoraFile, module: Module) -> str:
    """What the module's keys begin with: in kohya's file as it is, otherwise with the original's block names."""
    if found.format == "kohya":
        return module.stem
    if module.component == "unet":
        return f"{PREFIXES['unet']}{to_sai(module.name)}"
    own = module.name if module.name.startswith("text_projection") else f"text_model_{module.name}"
    return f"{PREFIXES[module.component]}{own}"
