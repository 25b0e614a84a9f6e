"""Whether a model is as it was: a mark of every weight and of what hangs on its layers, to compare later.

A weight's mark is the sum of its bits as whole numbers: the same on every device, and no more than a look at the memory.
"""

from collections.abc import Mapping

import torch
from diffusers import StableDiffusionXLPipeline

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
KINDS = (torch.nn.Linear, torch.nn.Conv2d)
"""The layers that a LoRA changes."""
Mark = tuple[str, int]
"""A weight's type and the sum of its bits, or a layer's class and how many hooks it has."""


@torch.no_grad()
def seal(pipeline: StableDiffusionXLPipeline) -> dict[str, Mark]:
    """Path of each weight and layer -> its mark."""
    marks: dict[str, Mark] = {}
    for part in PARTS:
        for name, weight in getattr(pipeline, part).named_parameters():
            marks[f"{part}.{name}"] = (str(weight.dtype), int(_bits(weight)))
        for name, layer in getattr(pipeline, part).named_modules():
            if isinstance(layer, KINDS):  # transformers hang hooks of their own on others
                marks[f"the layer {part}.{name}"] = (type(layer).__name__, len(layer._forward_hooks) + len(layer._forward_pre_hooks))
    return marks


def difference(pipeline: StableDiffusionXLPipeline, before: Mapping[str, Mark]) -> str | None:
    """The first weight or layer that is not as it was; `None` if all are."""
    now = seal(pipeline)
    changed = next((name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)), None)
    return changed and f"{changed} is {now.get(changed)} and was {before.get(changed)}"


def _bits(weight: torch.Tensor) -> torch.Tensor:
    raw = weight.detach().contiguous().flatten().view(torch.uint8)
    whole = raw.numel() % 8 == 0 and raw.storage_offset() % 8 == 0
    return (raw.view(torch.int64) if whole else raw).sum(dtype=torch.int64)
