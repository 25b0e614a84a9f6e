"""Optimisers and rates by the names people know them by, and an optimiser's memory as plain tensors.

The rate of a step is a function of the step alone, diffusers' own: nothing of a scheduler is saved, and a run that goes
on with another rate has that rate from its next step on.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from core.train.adapter import Adapter
from core.train.settings import Training

CHOSEN = ("lr", "initial_rate", "weight_decay")
"""Numbers of an optimiser's groups that the run's settings say."""


def optimizer(adapter: Adapter, made: Training) -> torch.optim.Optimizer:
    """The optimiser over the adapter's numbers, with a rate for each component in `initial_rate`."""
    whole = made.optimizer != "Adafactor"  # which looks at rows and columns; to the others a number is a number
    parts = {name: [part] for name, part in adapter.parts()} if whole else adapter.parameters
    groups = [{"params": part, "initial_rate": made.rate if name == "unet" else made.own_text_rate} for name, part in parts.items()]
    usual: dict[str, Any] = {"lr": made.rate, "weight_decay": made.weight_decay}
    match made.optimizer:
        case "AdamW":
            return torch.optim.AdamW(groups, betas=made.betas, fused=True, **usual)
        case "AdamW8bit":
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(groups, betas=made.betas, **usual)
        case "Lion8bit":
            from bitsandbytes.optim import Lion8bit

            return Lion8bit(groups, betas=made.betas, **usual)
        case "Adafactor":
            from transformers.optimization import Adafactor

            return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False, **usual)
        case _:
            from prodigyopt import Prodigy

            return Prodigy(groups, betas=made.betas, decouple=True, use_bias_correction=True, **usual)


def factor(made: Training) -> Callable[[int], float]:
    """Steps that are done -> what the rates are multiplied by in the next one."""
    nothing = torch.optim.SGD([torch.zeros(1)], lr=made.rate)  # `polynomial` ends at a rate, not at a share of it
    options = {"step_rules": made.step_rules or None, "num_warmup_steps": made.warmup, "num_training_steps": made.steps, "num_cycles": made.cycles}
    return get_scheduler(made.scheduler, nothing, **options).lr_lambdas[0]  # type: ignore[arg-type]


def set_rates(made: torch.optim.Optimizer, times: float) -> float:
    """Give each group its rate for the next step; returns the first group's."""
    for group in made.param_groups:
        group["lr"] = group["initial_rate"] * times
    return made.param_groups[0]["lr"]


def remembered(made: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What the optimiser has to be given back: tensors by name, and plain numbers for the JSON beside them.

    Its memory itself, not its `state_dict`, which bitsandbytes folds for its own ends.
    """
    entries = {f"{i}.{name}": value for i, p in enumerate(_parameters(made)) for name, value in made.state[p].items()}
    tensors = {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}
    numbers = {name: value for name, value in entries.items() if isinstance(value, int | float)}
    groups = [{name: value for name, value in group.items() if isinstance(value, int | float)} for group in made.param_groups]
    return tensors, {"numbers": numbers, "groups": groups}


def restore(made: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], told: Mapping[str, Any]) -> None:
    """Give back what `remembered` told. What a run chooses stays the run's own; what the optimiser has found, such as Prodigy's `d`, comes back."""
    for i, parameter in enumerate(_parameters(made)):
        entries = {**tensors, **told["numbers"]}
        mine = {key.partition(".")[2]: value for key, value in entries.items() if key.partition(".")[0] == str(i)}
        made.state[parameter] = {name: value.to(parameter.device) if isinstance(value, torch.Tensor) else value for name, value in mine.items()}
    for group, kept in zip(made.param_groups, told["groups"], strict=True):
        group.update({name: value for name, value in kept.items() if name not in CHOSEN})


def _parameters(made: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in made.param_groups for parameter in group["params"]]
