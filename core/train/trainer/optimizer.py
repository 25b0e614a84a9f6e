"""Optimisers and learning rates by their usual names, and an optimiser's state as plain tensors.

The rate of a step is a function of the step alone, diffusers' own: no scheduler state is saved, and
a run that continues with another rate has that rate from its next step on.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from core.train.trainer.adapter import Adapter
from core.train.trainer.settings import TrainingSettings

SETTINGS_KEYS = ("lr", "initial_rate", "weight_decay")
"""Numbers in an optimiser's groups that come from the run's settings."""


def create_optimizer(adapter: Adapter, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Create the optimiser over the adapter's numbers.

    Each group has the learning rate of its component in `initial_rate`.
    """
    # Adafactor looks at rows and columns; to the others a number is a number.
    whole = settings.optimizer != "Adafactor"
    parts = {name: [part] for name, part in adapter.iter_flat_parameters()} if whole else adapter.parameters
    groups = [
        {
            "params": part,
            "initial_rate": settings.learning_rate if name == "unet" else settings.effective_text_encoder_lr,
        }
        for name, part in parts.items()
    ]
    usual: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    match settings.optimizer:
        case "AdamW":
            return torch.optim.AdamW(groups, betas=settings.betas, fused=True, **usual)
        case "AdamW8bit":
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(groups, betas=settings.betas, **usual)
        case "Lion8bit":
            from bitsandbytes.optim import Lion8bit

            return Lion8bit(groups, betas=settings.betas, **usual)
        case "Adafactor":
            from transformers.optimization import Adafactor

            return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False, **usual)
        case _:
            from prodigyopt import Prodigy

            return Prodigy(groups, betas=settings.betas, decouple=True, use_bias_correction=True, **usual)


def make_lr_schedule(settings: TrainingSettings) -> Callable[[int], float]:
    """Return a function: steps done -> what the rates are multiplied by in the next step."""
    # `polynomial` ends at a rate, not at a share of it, so it needs an optimiser with that rate.
    nothing = torch.optim.SGD([torch.zeros(1)], lr=settings.learning_rate)
    options = {
        "step_rules": settings.step_rules or None,
        "num_warmup_steps": settings.lr_warmup_steps,
        "num_training_steps": settings.steps,
        "num_cycles": settings.cycles,
    }
    return get_scheduler(settings.scheduler, nothing, **options).lr_lambdas[0]  # type: ignore[arg-type]


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set each group's rate for the next step; returns the rate of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_rate"] * factor
    return optimizer.param_groups[0]["lr"]


def get_optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what the optimiser has to be given back: tensors by name, and numbers for the JSON.

    It is the optimiser's memory itself, not its `state_dict`, which bitsandbytes packs for its own
    purposes.
    """
    entries = {
        f"{i}.{name}": value
        for i, p in enumerate(_list_parameters(optimizer))
        for name, value in optimizer.state[p].items()
    }
    tensors = {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}
    numbers = {name: value for name, value in entries.items() if isinstance(value, int | float)}
    groups = [
        {name: value for name, value in group.items() if isinstance(value, int | float)}
        for group in optimizer.param_groups
    ]
    return tensors, {"numbers": numbers, "groups": groups}


def restore_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], extras: Mapping[str, Any]
) -> None:
    """Restore what `get_optimizer_state` returned.

    Settings of the run stay its own; what the optimiser has found, such as Prodigy's `d`, is
    restored.
    """
    for i, parameter in enumerate(_list_parameters(optimizer)):
        entries = {**tensors, **extras["numbers"]}
        mine = {
            key.partition(".")[2]: value for key, value in entries.items() if key.partition(".")[0] == str(i)
        }
        optimizer.state[parameter] = {
            name: value.to(parameter.device) if isinstance(value, torch.Tensor) else value
            for name, value in mine.items()
        }
    for group, kept in zip(optimizer.param_groups, extras["groups"], strict=True):
        group.update({name: value for name, value in kept.items() if name not in SETTINGS_KEYS})


def _list_parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
