"""diffusers' Euler a over the levels that the studio takes, as a reference for whole pictures."""

from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler

from core.generate.stages import schedules
from core.schema.samplers import AUTOMATIC


class EulerAncestral(EulerAncestralDiscreteScheduler):
    """diffusers' scheduler with A1111's spacing for Euler a, which none of its own settings gives."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Set the levels, and the timesteps that stand for them."""
        super().set_timesteps(num_inference_steps, device)
        model = schedules.find_model_levels(self.config)
        levels = schedules.build_levels("Euler a", AUTOMATIC, model, num_inference_steps)
        self.sigmas = torch.tensor(levels)
        times = [schedules.timestep_at(model, sigma) for sigma in levels[:-1]]
        self.timesteps = torch.tensor(times, device=device)


def make_euler_ancestral(config: Any) -> EulerAncestral:
    """Make the scheduler over a model's own noise (its scheduler's `config`)."""
    # With this spacing diffusers takes the first level itself for the noise, as A1111 does.
    made = EulerAncestral.from_config(config, timestep_spacing="trailing")
    assert isinstance(made, EulerAncestral)
    return made
