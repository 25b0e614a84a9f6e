"""What the tests of LoRAs share: a model's answers, its weights, and files that change them."""

from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

from core import lora, models
from core.blocks import to_sai
from core.types import LoraUse, Request

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1"]
RANK, ALPHA = 4, 2.0
REQUEST = Request(model="nano", prompt="1girl", negative="", width=64, height=64, steps=2, cfg=5.0, sampler="Euler", seed=7)


def noise_of(pipeline: StableDiffusionXLPipeline) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    ids = torch.tensor([[128, 128, 0, 0, 128, 128]])
    draws = [torch.randn(size, generator=rng) for size in ((1, 4, 16, 16), (1, 77, 160), (1, 96))]
    with torch.no_grad():
        return pipeline.unet(draws[0], 500, draws[1], added_cond_kwargs={"text_embeds": draws[2], "time_ids": ids}).sample


def text_of(pipeline: StableDiffusionXLPipeline) -> torch.Tensor:
    with torch.no_grad():
        return pipeline.encode_prompt("1girl, smile", do_classifier_free_guidance=False)[2]


def weights_of(pipeline: StableDiffusionXLPipeline, component: str = "unet") -> dict[str, torch.Tensor]:
    layers = getattr(pipeline, component).named_modules()
    return {name: layer.weight.detach().clone() for name, layer in layers if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)}


def changes_of(uses: list[LoraUse]) -> dict[str, torch.Tensor]:
    """What the uses add to each weight of nano's U-Net."""
    ours = models.load("nano")
    before = weights_of(ours)
    with lora.loaded(ours, uses):
        return {name: weight - before[name] for name, weight in weights_of(ours).items()}


def made(into: Path, layer: str, **parts: torch.Tensor | float) -> LoraUse:
    """A file that changes one layer of the U-Net, named by its path; `__` stands for a dot."""
    stem = f"lora_unet_{to_sai(layer.replace('.', '_'))}"
    named = {name.replace("__", "."): value if isinstance(value, torch.Tensor) else torch.tensor(value) for name, value in parts.items()}
    save_file({f"{stem}.{name}": value.contiguous() for name, value in named.items()}, into)
    return LoraUse(path=str(into))
