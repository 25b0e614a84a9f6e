"""Reads SwarmUI's JSON, `sui_image_params`."""

from collections.abc import Mapping
from itertools import zip_longest

from core.prompts.dialects import make_lora, name_weights
from core.prompts.readers.json_text import get_list, get_size, get_table, get_text, list_unused, parse_table
from core.prompts.settings_text import SettingsText

# SwarmUI's parameter -> A1111's key.
KEYS = {
    "steps": "Steps",
    "sampler": "Sampler",
    "scheduler": "Schedule type",
    "cfgscale": "CFG scale",
    "seed": "Seed",
    "model": "Model",
    "vae": "VAE",
}
USED = {*KEYS, "prompt", "negativeprompt", "width", "height", "loras", "loraweights", "clipstopatlayer"}
# Of its refiner.
HIRES_KEYS = {
    "refinerupscale": "Hires upscale",
    "refinercontrolpercentage": "Denoising strength",
    "refinersteps": "Hires steps",
    "refinersampler": "Hires sampler",
    "refinerscheduler": "Hires schedule type",
    "refinercfgscale": "Hires CFG Scale",
}
REFINER = {*HIRES_KEYS, "refinerupscalemethod", "refinermethod"}
DEFAULT_SAMPLER = "euler"
"""What SwarmUI takes, and does not write, where nobody chose one."""


def read(texts: Mapping[str, str]) -> SettingsText | None:
    """Return what SwarmUI wrote. Its refiner with an upscale is a hires pass."""
    outer = parse_table(texts.get("parameters") or texts.get("UserComment"))
    table = get_table(outer or {}, "sui_image_params")
    if not table:
        return None
    settings = {ours: get_text(table, key) for key, ours in KEYS.items()}
    hires = get_text(table, "refinerupscale") not in ("", "1", "1.0")
    if hires:
        settings |= {ours: get_text(table, key) for key, ours in HIRES_KEYS.items()}
        settings["Hires upscaler"] = _name_upscaler(get_text(table, "refinerupscalemethod"))
    weights = get_list(table, "loraweights")
    loras = zip_longest(get_list(table, "loras")[:50], weights[:50])
    return SettingsText(
        prompt=get_text(table, "prompt").strip(),
        negative=get_text(table, "negativeprompt").strip(),
        settings={
            **settings,
            "Sampler": settings["Sampler"] or DEFAULT_SAMPLER,
            "VAE": name_weights(settings["VAE"]),
            "Size": get_size(table),
            "Sweetspot clip skip": "1" if get_text(table, "clipstopatlayer") == "-1" else "",
            **list_unused(table, USED | REFINER if hires else USED),
        },
        tool="SwarmUI",
        loras=tuple(make_lora(str(name), weight) for name, weight in loras if isinstance(name, str)),
    )


def _name_upscaler(method: str) -> str:
    """Return A1111's name of `pixel-lanczos`, `latent-bilinear`, `model-4x-UltraSharp.pth`."""
    kind, _, name = method.partition("-")
    return {"latent": "Latent", "pixel": "Lanczos"}.get(kind, name_weights(name))
