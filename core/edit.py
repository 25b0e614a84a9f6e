"""A LoRA's file rewritten: another alpha, fewer blocks; not a bit of its matrices is changed.

Strength s applies s * alpha / rank * up @ down. With alpha times m, strength 1 is what m was: so every program that stops
at 1 or 2 reaches a sweet spot at 2.75. The new file has kohya's layout, which all of them read with its alpha.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import save_file

from core.blocks import CONTENT, STYLE, block_of, to_sai, weights
from core.lorafile import DOWN, LoraFile, Module
from core.types import UserError

MULTIPLY = (0.01, 100.0)
KEEP = {"all": None, "content": CONTENT, "style": STYLE}
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata")
"""Metadata that does not hold for the new file."""


def edited(found: LoraFile, folder: Path, multiply: Any = None, blocks: str | None = None, keep: str | None = None, hint: str | None = None) -> Path:
    """Write the LoRA anew into `folder` and return its path.

    `multiply`: the old strength that becomes 1.0. `blocks`: block weights as `lbw=` has them, a block of 0 is left out.
    `keep`: `all`, or the blocks of `content` or `style`. `hint` becomes modelspec's usage hint.
    Raises `UserError` for what is not allowed, and where nothing would be left.
    """
    times = _times(multiply)
    shares = _shares(blocks, keep)
    tensors, kept = found.tensors(), dict[str, torch.Tensor]()
    for module in found.modules:
        share = 1.0 if shares is None else shares.get(_block(module), 0.0)
        if not share:
            continue
        stem = _stem(found, module)
        alpha = module.scale * module.rank * times * share  # alpha / rank is the scale, also where it was alpha / sqrt(rank)
        kept |= {f"{stem}.lora_down.weight": tensors[module.down], f"{stem}.lora_up.weight": tensors[module.up], f"{stem}.alpha": torch.tensor(alpha)}
    if not kept:
        raise UserError(f"keep: nothing of {found.path.name} is in the blocks that were chosen.")
    told = {key: value for key, value in found.metadata.items() if key not in STALE}
    told |= {"ss_network_alpha": f"{found.scale * found.rank * times:g}", "ss_network_dim": str(found.rank)}
    if hint:
        told["modelspec.usage_hint"] = hint
    named = "".join([f"-x{times:g}" if times != 1 else "", f"-{keep}" if keep in (*KEEP,)[1:] else "", "-blocks" if blocks else ""]) or "-kohya"
    file = folder / f"{found.path.stem[:100]}{named}.safetensors"
    unfinished = file.with_name(f".{uuid4().hex}.tmp")
    try:
        save_file({key: value.contiguous() for key, value in kept.items()}, unfinished, told)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return file


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
        match = DOWN.fullmatch(module.down)
        assert match is not None
        return match[1]
    if module.component == "unet":
        return f"{PREFIXES['unet']}{to_sai(module.name)}"
    own = module.name if module.name.startswith("text_projection") else f"text_model_{module.name}"
    return f"{PREFIXES[module.component]}{own}"
