"""Samplers and noise schedules under the names that people know, those of A1111."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from core.schema.bounds import OneOf

AUTOMATIC = "Automatic"
"""The schedule that A1111 takes for a sampler."""


class Sampler(NamedTuple):
    """What A1111 does around a sampler's solver."""

    schedule: str = "Normal"
    """What `Automatic` stands for: a schedule's name, or the sampler's own spacing."""
    skips_level: bool = False
    """Whether one level more is planned, and the last but one left out."""
    unit_noise: bool = False
    """Whether it starts as a picture in the model's own scale, with a deviation of 1."""
    calls_per_step: int = 1
    """How often it asks the model in a step; A1111 counts a prompt's changes in these calls."""
    unguided: bool = False
    """Whether it goes on in the direction of the prediction without guidance, and needs one at CFG 1, too."""


SAMPLERS: dict[str, Sampler] = {
    "Euler a": Sampler(),
    "Euler": Sampler(),
    "DPM++ 2M": Sampler("Karras"),
    "DPM++ SDE": Sampler("Karras", calls_per_step=2),
    "DPM++ 2M SDE": Sampler("Exponential"),
    "DPM++ 2M SDE Heun": Sampler("Exponential"),
    "DPM++ 3M SDE": Sampler("Exponential", skips_level=True),
    "DPM++ 2S a": Sampler("Karras", calls_per_step=2),
    "Heun": Sampler(calls_per_step=2),
    "LMS": Sampler(),
    "DPM2": Sampler("Karras", skips_level=True, calls_per_step=2),
    "DPM2 a": Sampler("Karras", skips_level=True, calls_per_step=2),
    "UniPC": Sampler("UniPC", unit_noise=True),
    "DDIM": Sampler("DDIM", unit_noise=True),
    "LCM": Sampler("LCM"),
    "Restart": Sampler("Karras", calls_per_step=2),
    "Euler CFG++": Sampler(unguided=True),
    "Euler a CFG++": Sampler(unguided=True),
}
"""The first is the default."""

NO_KARRAS = {"use_karras_sigmas": False}  # overrides whatever a model's own config says
KARRAS = {"use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
OLD_SCHEDULES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "Sweetspot 0.1": {
        "Euler a": ("EulerAncestralDiscreteScheduler", {}),
        "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
        "Euler": ("EulerDiscreteScheduler", NO_KARRAS),
        "DPM++ 2M": ("DPMSolverMultistepScheduler", NO_KARRAS),
        "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {**SDE, **NO_KARRAS}),
        "Heun": ("HeunDiscreteScheduler", NO_KARRAS),
        "DPM2": ("KDPM2DiscreteScheduler", NO_KARRAS),
        "DPM2 a": ("KDPM2AncestralDiscreteScheduler", NO_KARRAS),
        "UniPC": ("UniPCMultistepScheduler", NO_KARRAS),
    },
    "Sweetspot 0.1 Karras": {
        "DPM++ 2M": ("DPMSolverMultistepScheduler", KARRAS),
        "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {**SDE, **KARRAS}),
    },
}
"""How this studio's pictures were made before version 0.2: schedule -> sampler -> diffusers' class, and
how it differs from the model's own schedule."""

SCHEDULES: tuple[str, ...] = (
    AUTOMATIC,
    "Karras",
    "Exponential",
    "Polyexponential",
    "SGM Uniform",
    "Simple",
    "Normal",
    "Beta",
    "DDIM",
    "Align Your Steps",
    *OLD_SCHEDULES,
)


def split_sampler(name: str) -> tuple[str, str | None]:
    """Split `DPM++ 2M Karras`, as A1111 named it before 1.9, into sampler and schedule.

    The schedule is `None` if the name ends in none, or what is left is no sampler.
    """
    for schedule in SCHEDULES:
        sampler = name.removesuffix(f" {schedule}")
        if sampler != name and sampler in SAMPLERS:
            return sampler, schedule
    return name, None


def make_scheduler(sampler: str, schedule: str, config: Any) -> Any:
    """Make diffusers' scheduler of an old schedule over a model's own (its scheduler's `config`)."""
    import diffusers  # late: this file is also imported where torch is not

    kind, differences = OLD_SCHEDULES[schedule][sampler]
    return getattr(diffusers, kind).from_config(config, **differences)


@dataclass(frozen=True)
class SamplerName(OneOf):
    """A sampler, alone or with its schedule in one name, `DPM++ 2M Karras`."""

    names: tuple[str, ...] = tuple(SAMPLERS)

    def validate(self, value: Any) -> str:
        if isinstance(value, str) and split_sampler(value)[1]:
            return value
        return super().validate(value)
