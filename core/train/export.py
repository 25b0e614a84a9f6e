"""A trained adapter as one file that every program reads at the strength at which it was trained.

kohya's keys with the true alpha; `ss_*` as kohya's trainer writes them, modelspec, and PEFT's adapter metadata, without which
diffusers takes alpha for the rank. DoRA and LoKr are named as LyCORIS names them. No path, no user's name, no token.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import get_peft_model_state_dict

from core.blocks import to_sai
from core.data.dataset import Dataset
from core.tensorfile import write_tensors
from core.train.adapter import Adapter
from core.train.metadata import told_of
from core.train.run import Run

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
PARTS = {
    "lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight", "lora_magnitude_vector": "dora_scale", "lora_magnitude_vector.weight": "dora_scale",
    "lokr_w1": "lokr_w1", "lokr_w1_a": "lokr_w1_a", "lokr_w1_b": "lokr_w1_b", "lokr_w2": "lokr_w2", "lokr_w2_a": "lokr_w2_a", "lokr_w2_b": "lokr_w2_b",
}  # fmt: skip
"""PEFT's names of an adapter's parts and those of kohya and LyCORIS."""
CONFIG = {"diffusers": "lora_adapter_metadata", "kohya": "peft_adapter_config"}
"""Layout -> the key of PEFT's configuration. Under its own key, diffusers refuses a file that has alphas, too ("Both `network_alphas` and `metadata`")."""


def export(adapter: Adapter, run: Run, dataset: Dataset, step: int, file: Path, buckets: Mapping[tuple[int, int], int]) -> None:
    """Write the adapter as it is after `step` into `file`; `buckets` are the pictures in each."""
    made = run.settings
    kept = torch.float32 if made.precision == "float32" else torch.float16  # what was computed in half is not worth more
    states = {name: get_peft_model_state_dict(getattr(adapter.pipeline, name), adapter_name="default") for name in adapter.trained}
    if made.layout == "kohya":
        tensors = {key: value for name, state in states.items() for key, value in _kohya(state, name, adapter, kept).items()}
    else:
        # PEFT's own names: diffusers' older ones are for attention alone, and of a file that has both it passes over those.
        tensors = {f"{name}.{key}": value.half() for name, state in states.items() for key, value in state.items()}
    told = {**told_of(run, dataset, step, buckets), CONFIG[made.layout]: json.dumps(_adapter(adapter), sort_keys=True)}
    digest = hashlib.sha256(b"".join(tensors[key].detach().cpu().contiguous().numpy().tobytes() for key in sorted(tensors))).hexdigest()
    told |= {"format": "pt", "sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    write_tensors(file, tensors, told)


def _kohya(state: Mapping[str, torch.Tensor], component: str, adapter: Adapter, kept: torch.dtype) -> dict[str, torch.Tensor]:
    rank = max(adapter.ranks[component].values())
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        part = next(part for part in sorted(PARTS, key=len, reverse=True) if key.endswith(f".{part}"))
        modules.setdefault(key.removesuffix(f".{part}"), {})[PARTS[part]] = value.float()
    found = {}
    for path, parts in modules.items():
        flat = path.replace(".", "_")
        own = to_sai(flat) if component == "unet" else flat if flat.startswith("text_") else f"text_model_{flat}"
        parts = _balanced(_filled(parts, rank)) if "lora_down.weight" in parts else parts
        stem, scale = f"{PREFIXES[component]}{own}", adapter.settings.alpha / adapter.settings.rank
        if "dora_scale" in parts:  # one for each output, by its shape
            parts["dora_scale"] = parts["dora_scale"].reshape(-1, *[1] * (parts["lora_down.weight"].ndim - 1))
        if {"lokr_w1", "lokr_w2"} <= parts.keys():  # of whole factors nobody but PEFT reads the alpha
            parts["lokr_w1"] = parts["lokr_w1"] * scale
        # In half, what a magnitude changes would mostly be rounding.
        found |= {f"{stem}.{part}": value if part == "dora_scale" else value.to(kept) for part, value in parts.items()}
        found[f"{stem}.alpha"] = torch.tensor(scale * (rank if "lora_down.weight" in parts else adapter.ranks[component][path]))
    return found


def _filled(parts: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """Both matrices with zeros up to the largest rank of the file: diffusers reads one alpha where a file has several."""
    down, up = parts["lora_down.weight"], parts["lora_up.weight"]
    more = rank - len(down)
    filled = {
        "lora_down.weight": torch.cat([down, down.new_zeros(more, *down.shape[1:])]),
        "lora_up.weight": torch.cat([up, up.new_zeros(len(up), more, *up.shape[2:])], 1),
    }
    return {**parts, **filled}


def _balanced(parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Both matrices of like size, by a power of two that goes from one into the other: so half precision keeps what is small."""
    down, up = parts["lora_down.weight"], parts["lora_up.weight"]
    sizes = [float(matrix.abs().max()) for matrix in (down, up)]
    shift = round(float(torch.tensor(sizes[0] / sizes[1]).log2()) / 2) if all(sizes) else 0
    return {**parts, "lora_down.weight": down * 2.0**-shift, "lora_up.weight": up * 2.0**shift}


def _adapter(adapter: Adapter) -> dict[str, Any]:
    """PEFT's configuration of each component, as diffusers keeps it in a file."""
    found = {}
    for key, config in _collate_lora_metadata({name: getattr(adapter.pipeline, name) for name in adapter.trained}).items():
        component = key.removesuffix("_lora_adapter_metadata")
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items() if _is_plain(value)}
        found |= {f"{component}.{name}": value for name, value in plain.items()}
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | set | list | dict) and value not in ([], {})
