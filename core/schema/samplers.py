"""Samplers under the names that people know, as diffusers' schedulers."""

from typing import Any

NO_KARRAS = {"use_karras_sigmas": False}  # overrides whatever a model's own config says

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "Euler": ("EulerDiscreteScheduler", NO_KARRAS),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", NO_KARRAS),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **NO_KARRAS}),
    "DPM++ 2M SDE Karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "Heun": ("HeunDiscreteScheduler", NO_KARRAS),
    "DPM2": ("KDPM2DiscreteScheduler", NO_KARRAS),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", NO_KARRAS),
    "UniPC": ("UniPCMultistepScheduler", NO_KARRAS),
}
"""Name -> diffusers' class, and how it differs from the model's own schedule.

The first is the default.
"""


def make_scheduler(name: str, config: Any) -> Any:
    """Make a new scheduler over a model's own noise schedule (its scheduler's `config`)."""
    import diffusers  # late: `SAMPLERS` is also imported where torch is not

    kind, differences = SAMPLERS[name]
    return getattr(diffusers, kind).from_config(config, **differences)
