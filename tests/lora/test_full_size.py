"""Every layer of the full-size model that a LoRA of the field changes is found, in every layout.

The model stands on torch's meta device, where its 3.4 billion weights take no memory.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from core.lora import apply as lora
from core.lora import file as lora_file
from core.lora.blocks import to_sai
from tests.models.parts import build_full_size_parts

SHORT_NAMES = {"text_encoder": "te1", "text_encoder_2": "te2"}
COMFY_NAMES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def name_with_sai_blocks(part: str, path: str) -> str:
    flat = path.replace(".", "_")
    return f"lora_unet_{to_sai(flat)}" if part == "unet" else f"lora_{SHORT_NAMES[part]}_{flat}"


def name_with_diffusers_blocks(part: str, path: str) -> str:
    return f"lora_{SHORT_NAMES.get(part, 'unet')}_{path.replace('.', '_')}"


def name_as_comfyui(part: str, path: str) -> str:
    if part != "unet":
        return f"text_encoders.{COMFY_NAMES[part]}.transformer.{path}"
    _, inner = re.split(r"attentions\.\d+\.|(?<=mid_block)\.attentions\.0\.", path, maxsplit=1)
    block = to_sai(path.replace(".", "_")).removesuffix(inner.replace(".", "_")).strip("_")
    return f"diffusion_model.{re.sub(r'_(?=[0-9])', '.', block)}.{inner}"


LAYOUTS: dict[str, tuple[Callable[[str, str], str], str, str]] = {
    "kohya, SAI's blocks": (name_with_sai_blocks, "lora_down", "lora_up"),
    "kohya, diffusers' blocks": (name_with_diffusers_blocks, "lora_down", "lora_up"),
    "diffusers": (lambda part, path: f"{part}.{path}", "lora_A", "lora_B"),
    "PEFT": (lambda part, path: f"base_model.model.{part}.{path}", "lora_A", "lora_B"),
    "ComfyUI": (name_as_comfyui, "lora_down", "lora_up"),
    "OneTrainer's original": (
        lambda part, path: name_as_comfyui(part, path).removeprefix("diffusion_model."),
        "lora_A",
        "lora_B",
    ),
    "LyCORIS on diffusers": (lambda _, path: f"lycoris_{path.replace('.', '_')}", "lora_down", "lora_up"),
}


UNET_ONLY = {"OneTrainer's original", "LyCORIS on diffusers"}


@pytest.fixture(scope="module")
def layers() -> dict[tuple[str, str], torch.nn.Module]:
    """Return the layers that kohya trains, by part and path: of attention and of feed-forward nets."""
    found = {}
    for part, model in build_full_size_parts().items():
        for path, layer in model.named_modules():
            inside = "attentions" in path if part == "unet" else ".layers." in path
            if part != "vae" and inside and isinstance(layer, torch.nn.Linear):
                # transformers 5 has no `text_model` in the first encoder; files have it in both.
                named = f"text_model.{path.removeprefix('text_model.')}" if part != "unet" else path
                found[part, named] = layer
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layer_is_found(layout: str, layers: dict, tmp_path: Path) -> None:
    make_stem, down, up = LAYOUTS[layout]
    tensors = {}
    chosen = {key: layer for key, layer in layers.items() if key[0] == "unet" or layout not in UNET_ONLY}
    many = 722 if layout in UNET_ONLY else 722 + 264
    for (part, path), layer in chosen.items():
        stem = make_stem(part, path)
        tensors[f"{stem}.{down}.weight"] = torch.ones(1, layer.in_features, dtype=torch.float16)
        tensors[f"{stem}.{up}.weight"] = torch.ones(layer.out_features, 1, dtype=torch.float16)
    assert len(tensors) == 2 * many, "two layers have one name"
    save_file(tensors, tmp_path / "whole.safetensors")
    found = lora_file.read_lora_file(tmp_path / "whole.safetensors")
    assert found.family == "SDXL"
    model = SimpleNamespace(**build_full_size_parts())
    pairs = lora.match_layers(model, found)  # type: ignore[arg-type]  (the parts are all that it reads)
    assert len({id(layer) for _, layer in pairs}) == many
