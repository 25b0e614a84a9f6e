"""Helpers of the LoRA tests: a model's outputs, its weights, and files that change them."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

from core.lora import apply as lora
from core.lora.blocks import to_sai
from core.models import bases
from core.schema.types import LoraUse, Request

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1"]
RANK, ALPHA = 4, 2.0
REQUEST = Request(
    model="nano", prompt="1girl", negative="", width=64, height=64, steps=2, cfg=5.0, sampler="Euler", seed=7
)


def predict_noise(pipeline: StableDiffusionXLPipeline) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    ids = torch.tensor([[128, 128, 0, 0, 128, 128]])
    draws = [torch.randn(size, generator=rng) for size in ((1, 4, 16, 16), (1, 77, 160), (1, 96))]
    with torch.no_grad():
        return pipeline.unet(
            draws[0], 500, draws[1], added_cond_kwargs={"text_embeds": draws[2], "time_ids": ids}
        ).sample


def encode_text(pipeline: StableDiffusionXLPipeline) -> torch.Tensor:
    with torch.no_grad():
        return pipeline.encode_prompt("1girl, smile", do_classifier_free_guidance=False)[2]


def copy_weights(pipeline: StableDiffusionXLPipeline, component: str = "unet") -> dict[str, torch.Tensor]:
    layers = getattr(pipeline, component).named_modules()
    return {
        name: layer.weight.detach().clone()
        for name, layer in layers
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }


def compute_changes(uses: list[LoraUse]) -> dict[str, torch.Tensor]:
    """Return what the uses add to each weight of nano's U-Net."""
    ours = bases.load_model("nano")
    before = copy_weights(ours)
    with lora.apply_loras(ours, uses):
        return {name: weight - before[name] for name, weight in copy_weights(ours).items()}


def write_lora(file: Path, layer: str, **parts: torch.Tensor | float) -> LoraUse:
    """Write a file that changes one layer of the U-Net, named by its path with `__` for dots."""
    stem = f"lora_unet_{to_sai(layer.replace('.', '_'))}"
    named = {
        name.replace("__", "."): value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, value in parts.items()
    }
    save_file({f"{stem}.{name}": value.contiguous() for name, value in named.items()}, file)
    return LoraUse(path=str(file))


def assert_samples_are_alone(layer: torch.nn.Module, x: torch.Tensor, use: LoraUse) -> None:
    """Assert that a layer gives four samples, of two strengths, what each gets by itself."""
    with lora.apply_loras(bases.load_model("nano"), [use]) as worn, torch.no_grad():
        worn.set_strengths([[replace(use, strength=strength)] for strength in (1.0, -0.5)])
        together = layer(x)
        for i, strength in enumerate((1.0, -0.5, 1.0, -0.5)):
            worn.set_strengths([[replace(use, strength=strength)]])
            torch.testing.assert_close(together[i], layer(x[i : i + 1])[0], atol=1e-4, rtol=1e-4)
