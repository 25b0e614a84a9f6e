"""Says how far the thresholds of a verdict can be relied on for a base model."""

from core.schema import presets


def describe_calibration(model: str) -> str | None:
    """Return what a person should know of the thresholds on this model; `None` for nano and its descendants.

    It can go once reports of full SDXL models hold checks by people's eyes: docs/measuring.md says how
    thresholds follow them.
    """
    known = presets.get_models().get(model)
    if known is not None and known.is_nano:
        return None
    return "The verdict's thresholds are calibrated on the built-in model only."
