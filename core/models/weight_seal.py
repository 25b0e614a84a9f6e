"""Checks that a model is as it was: seals every weight and the hooks on its layers, to compare.

A weight's mark is the sum of its bits as whole numbers: it is the same on every device, and costs
no more than one read of the memory.
"""

from collections.abc import Mapping

import torch
from diffusers import StableDiffusionXLPipeline

WEIGHT_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
LAYER_TYPES = (torch.nn.Linear, torch.nn.Conv2d)
"""The layers that a LoRA changes."""
WeightMark = tuple[str, int]
"""A weight's dtype and the sum of its bits, or a layer's class and its number of hooks."""


@torch.no_grad()
def seal_weights(pipeline: StableDiffusionXLPipeline) -> dict[str, WeightMark]:
    """Return path -> mark, for each weight and layer of the pipeline."""
    marks: dict[str, WeightMark] = {}
    for part in WEIGHT_PARTS:
        for name, weight in getattr(pipeline, part).named_parameters():
            marks[f"{part}.{name}"] = (str(weight.dtype), int(_sum_bits(weight)))
        for name, layer in getattr(pipeline, part).named_modules():
            if isinstance(layer, LAYER_TYPES):  # transformers puts hooks of its own on others
                marks[f"the layer {part}.{name}"] = (
                    type(layer).__name__,
                    len(layer._forward_hooks) + len(layer._forward_pre_hooks),
                )
    return marks


def find_difference(pipeline: StableDiffusionXLPipeline, sealed: Mapping[str, WeightMark]) -> str | None:
    """Describe the first weight or layer that is not as it was sealed; `None` if all are."""
    now = seal_weights(pipeline)
    changed = next(
        (name for name in sorted(sealed.keys() | now.keys()) if sealed.get(name) != now.get(name)), None
    )
    return changed and f"{changed} is {now.get(changed)} and was {sealed.get(changed)}"


def _sum_bits(weight: torch.Tensor) -> torch.Tensor:
    raw = weight.detach().contiguous().flatten().view(torch.uint8)
    whole = raw.numel() % 8 == 0 and raw.storage_offset() % 8 == 0
    return (raw.view(torch.int64) if whole else raw).sum(dtype=torch.int64)
