"""What is trained: PEFT's adapter on a twin of the model, its numbers in one flat vector.

The twin shares every weight with the pipeline that it was made from, so that the pipeline itself
stays what the Generate tab has, and makes the previews. With one vector, clipping, averaging,
reducing over devices and saving are one operation each.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoKrConfig, LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from core.lora.blocks import find_block
from core.lora.file import COMPONENTS
from core.train.trainer.settings import TARGETS, TrainingSettings

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_FEED_FORWARD = ("fc1", "fc2")


class TwinPipeline(StableDiffusionXLPipeline):
    """A pipeline around twins, which computes on its U-Net's device.

    The other parts may be elsewhere and are moved there for their turn.
    """

    @property
    def _execution_device(self) -> torch.device:
        return self.unet.device


class Adapter:
    """A LoRA under training, on a twin of `pipeline`, created as it is before its first step."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, settings: TrainingSettings):
        self.settings = settings
        self.components = get_trained_components(settings)
        twins = {name: _clone_module(getattr(pipeline, name)) for name in self.components}
        self.pipeline = TwinPipeline(**{**pipeline.components, **twins})
        self.ranks = {name: assign_ranks(twin, name, settings) for name, twin in twins.items()}
        device = next(twins["unet"].parameters()).device
        with torch.random.fork_rng(devices=[]):  # matrices start at random, from the run's own seed
            torch.manual_seed(settings.seed)
            for name, twin in twins.items():
                twin.requires_grad_(False)
                twin.add_adapter(_build_peft_config(settings, self.ranks[name]))  # type: ignore[operator]
        self.parameters = {
            name: [p for p in twin.parameters() if p.requires_grad] for name, twin in twins.items()
        }
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
            twin.train(settings.dropout > 0)  # only dropout differs between training and use here

    def iter_flat_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield each trained component with its stretch of the vector as one parameter.

        The parameter has its gradient.
        """
        place = 0
        for name, group in self.parameters.items():
            there = slice(place, place := place + sum(p.numel() for p in group))
            part = torch.nn.Parameter(self.values[there])
            part.grad = self.gradients[there]
            yield name, part

    @contextmanager
    def swap_values(self, values: torch.Tensor | None) -> Iterator[None]:
        """Give the adapter other numbers while the context lasts; `None` keeps its own."""
        if values is None:
            yield
            return
        own = self.values.clone()
        try:
            self.values.copy_(values)
            yield
        finally:
            self.values.copy_(own)

    def set_checkpointing_level(self, level: int) -> None:
        """Set how much of the U-Net's forward pass is computed twice instead of kept.

        0 is nothing, 1 its two heaviest blocks and the middle one, 2 everything.
        """
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


def get_trained_components(settings: TrainingSettings) -> tuple[str, ...]:
    """Return the components that a run trains."""
    return COMPONENTS if settings.text_encoders else COMPONENTS[:1]


def _clone_module(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of the modules around the very same weights."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def assign_ranks(model: torch.nn.Module, component: str, settings: TrainingSettings) -> dict[str, int]:
    """Return the path of each layer that is trained -> its rank."""
    wanted = TARGETS.index(settings.targets)
    found = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) or isinstance(layer, BaseTunerLayer):
            continue
        inside = (
            path.startswith(("down_blocks.", "mid_block.", "up_blocks."))
            if component == "unet"
            else ".layers." in f".{path}"
        )
        if component == "unet":
            least = 0 if path.endswith(ATTENTION) else 1 if ".attentions." in path else 2
        else:
            least = 0 if path.endswith(TEXT_ATTENTION) else 1 if path.endswith(TEXT_FEED_FORWARD) else 3
        block = find_block(path.replace(".", "_"))
        if inside and least <= wanted and (not settings.block_ranks or block in settings.block_ranks):
            found[path] = settings.block_ranks.get(block or "", settings.rank)
    return found


def _build_peft_config(settings: TrainingSettings, by_path: dict[str, int]) -> LoraConfig | LoKrConfig:
    """Return PEFT's configuration of a component.

    Where blocks have ranks of their own, alpha / rank is the same in all of them.
    """
    others = {path: rank for path, rank in by_path.items() if rank != settings.rank}
    patterns = {
        "rank_pattern": others,
        "alpha_pattern": {path: settings.alpha / settings.rank * rank for path, rank in others.items()},
    }
    if settings.kind == "LoKr":
        return LoKrConfig(
            r=settings.rank,
            alpha=settings.alpha,  # type: ignore[arg-type]
            target_modules=list(by_path),
            rank_dropout=settings.dropout,
            **patterns,
        )
    dora = settings.kind == "DoRA"
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=list(by_path),
        use_dora=dora,
        **patterns,
    )
