"""What is trained: PEFT's adapter on a twin of the model, its numbers in one flat vector.

The twin shares every weight with the pipeline it was made from, so that the pipeline itself stays what the Generate tab
has, and previews are made by it. In one vector, clipping, averaging, reducing over devices and saving are one operation.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoKrConfig, LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from core.blocks import block_of
from core.lorafile import COMPONENTS
from core.train.settings import TARGETS, Training

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_FEED_FORWARD = ("fc1", "fc2")


class Twin(StableDiffusionXLPipeline):
    """A pipeline around twins, which computes where its U-Net lies: the other parts may be elsewhere and come for their turn."""

    @property
    def _execution_device(self) -> torch.device:
        return self.unet.device


class Adapter:
    """A LoRA under way on a twin of `pipeline`, as it is before its first step."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, made: Training):
        self.settings = made
        self.trained = components_of(made)
        twins = {name: _twin(getattr(pipeline, name)) for name in self.trained}
        self.pipeline = Twin(**{**pipeline.components, **twins})
        self.ranks = {name: ranks(twin, name, made) for name, twin in twins.items()}
        device = next(twins["unet"].parameters()).device
        with torch.random.fork_rng(devices=[]):  # the matrices begin at random, by the run's own seed
            torch.manual_seed(made.seed)
            for name, twin in twins.items():
                twin.requires_grad_(False)
                twin.add_adapter(_config(made, self.ranks[name]))  # type: ignore[operator]
        self.parameters = {name: [p for p in twin.parameters() if p.requires_grad] for name, twin in twins.items()}
        every = [p for group in self.parameters.values() for p in group]
        self.values = torch.empty(sum(p.numel() for p in every), device=device)  # float32
        self.gradients = torch.zeros_like(self.values)
        place = 0
        for parameter in every:
            there = slice(place, place := place + parameter.numel())
            self.values[there] = parameter.detach().flatten()
            parameter.data = self.values[there].view_as(parameter)
            parameter.grad = self.gradients[there].view_as(parameter)
        for twin in twins.values():
            twin.train(made.dropout > 0)  # nothing else in these models differs between training and use

    def parts(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """For each trained component, its stretch of the vector as one parameter, with its gradient."""
        place = 0
        for name, group in self.parameters.items():
            there = slice(place, place := place + sum(p.numel() for p in group))
            part = torch.nn.Parameter(self.values[there])
            part.grad = self.gradients[there]
            yield name, part

    @contextmanager
    def holding(self, values: torch.Tensor | None) -> Iterator[None]:
        """The adapter with other numbers for a while; with its own for `None`."""
        if values is None:
            yield
            return
        own = self.values.clone()
        try:
            self.values.copy_(values)
            yield
        finally:
            self.values.copy_(own)

    def checkpointing(self, level: int) -> None:
        """How much of the U-Net's forward pass is computed twice instead of kept: 0 nothing, 1 its two heaviest blocks and the middle, 2 all."""
        unet = self.pipeline.unet
        unet.disable_gradient_checkpointing()
        if level:
            unet.enable_gradient_checkpointing()
        if level == 1:
            heavy = (unet.down_blocks[-1], unet.mid_block, unet.up_blocks[0])
            inside = {id(module) for block in heavy for module in block.modules()}
            for module in unet.modules():
                if getattr(module, "gradient_checkpointing", False) and id(module) not in inside:
                    module.gradient_checkpointing = False  # type: ignore[assignment]


def components_of(made: Training) -> tuple[str, ...]:
    """The components that a run trains."""
    return COMPONENTS if made.text_encoders else COMPONENTS[:1]


def _twin(model: torch.nn.Module) -> torch.nn.Module:
    """The same modules anew around the very same weights."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def ranks(model: torch.nn.Module, component: str, made: Training) -> dict[str, int]:
    """Path of each layer that is changed -> its rank."""
    wanted = TARGETS.index(made.targets)
    found = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) or isinstance(layer, BaseTunerLayer):
            continue
        inside = path.startswith(("down_blocks.", "mid_block.", "up_blocks.")) if component == "unet" else ".layers." in f".{path}"
        if component == "unet":
            least = 0 if path.endswith(ATTENTION) else 1 if ".attentions." in path else 2
        else:
            least = 0 if path.endswith(TEXT_ATTENTION) else 1 if path.endswith(TEXT_FEED_FORWARD) else 3
        block = block_of(path.replace(".", "_"))
        if inside and least <= wanted and (not made.block_ranks or block in made.block_ranks):
            found[path] = made.block_ranks.get(block or "", made.rank)
    return found


def _config(made: Training, by_path: dict[str, int]) -> LoraConfig | LoKrConfig:
    """Where blocks have ranks of their own, alpha / rank is the same in all of them."""
    others = {path: rank for path, rank in by_path.items() if rank != made.rank}
    patterns = {"rank_pattern": others, "alpha_pattern": {path: made.alpha / made.rank * rank for path, rank in others.items()}}
    if made.kind == "LoKr":
        return LoKrConfig(r=made.rank, alpha=made.alpha, target_modules=list(by_path), rank_dropout=made.dropout, **patterns)  # type: ignore[arg-type]
    dora = made.kind == "DoRA"
    return LoraConfig(r=made.rank, lora_alpha=made.alpha, lora_dropout=made.dropout, target_modules=list(by_path), use_dora=dora, **patterns)  # type: ignore[arg-type]
