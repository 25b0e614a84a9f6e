"""The samplers by the names that people know them by, as diffusers' schedulers."""

from typing import Any

PLAIN = {"use_karras_sigmas": False}  # whatever a model's own config says

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "Euler": ("EulerDiscreteScheduler", PLAIN),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", PLAIN),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **PLAIN}),
    "DPM++ 2M SDE Karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    "Heun": ("HeunDiscreteScheduler", PLAIN),
    "DPM2": ("KDPM2DiscreteScheduler", PLAIN),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", PLAIN),
    "UniPC": ("UniPCMultistepScheduler", PLAIN),
}
"""Name -> diffusers' class and what differs from the model's own schedule; the first is the default."""


def make(name: str, config: Any) -> Any:
    """A fresh scheduler of that name over a model's own noise schedule (its scheduler's `config`)."""
    import diffusers  # late: the names are needed where torch is not

    kind, differences = SAMPLERS[name]
    return getattr(diffusers, kind).from_config(config, **differences)
