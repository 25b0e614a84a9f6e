"""What other tools call A1111's settings, samplers, schedules and models."""

import json
import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from core.prompts.settings_text import SettingsText

MAX_RESOURCES = 50
"""Entries of `Civitai resources` that are read."""
DEFAULT_UPSCALER = "Latent"
"""A1111's, where a text says only by how much the picture was enlarged."""
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".gguf")

SAME_NAMES = ("Use same", "Default")
"""How the names begin that A1111 and SD.Next write where a second pass has none of its own."""
PLAIN_RESIZE = "Lanczos"
"""How A1111 enlarges with the upscaler `None`."""

# Lower-case key of SD.Next, ComfyUI's savers and Fooocus -> A1111's.
KEYS = {
    "cfg scale": "CFG scale",
    "guidance scale": "CFG scale",
    "sampler sigma": "Schedule type",
    "scheduler": "Schedule type",
    "hires scale": "Hires upscale",
    "hires strength": "Denoising strength",
    "hires cfg scale": "Hires CFG Scale",
    "hires cfg": "Hires CFG Scale",
    "cfg rescale": "RescaleCFG",
    "base model": "Model",
    "checkpoint": "Model",
}
# A sampler as `_normalise_name` writes it -> A1111's name.
SAMPLER_NAMES = {
    name.lower(): name
    for name in (
        *("Euler", "Euler a", "Heun", "LMS", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ 2M", "DPM++ SDE"),
        *("DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE", "DPM fast", "DPM adaptive", "UniPC", "DDIM"),
        *("DDIM CFG++", "PLMS", "LCM", "Restart", "Euler CFG++", "Euler a CFG++", "DEIS", "DDPM"),
    )
} | {"pndm": "PLMS"}
SCHEDULE_NAMES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm uniform": "SGM Uniform",
    "simple": "Simple",
    "normal": "Normal",
    "native": "Normal",  # NovelAI's
    "beta": "Beta",
    "ddim uniform": "DDIM",
    "uniform": "Uniform",
    "ddim": "DDIM",
    "kl optimal": "KL Optimal",
    "align your steps": "Align Your Steps",
    "ays": "Align Your Steps",
    "automatic": "Automatic",
    "default": "Automatic",
}


def translate_settings(text: SettingsText) -> SettingsText:
    """Return the text in A1111's words, with the name of the tool that wrote it.

    The studio's own texts stay as they are.
    """
    if "Sweetspot" in text.settings:
        return replace(text, tool="Sweetspot")
    settings = {key: value for key, value in text.settings.items() if value or text.tool == "A1111"}
    for key in [*settings]:
        if (known := KEYS.get(key.lower(), key)) != key and known not in settings:
            settings[known] = settings.pop(key)
    lost, named = list(text.lost), settings.pop("Sampler", "")
    sampler, schedule = translate_names(named, settings.pop("Schedule type", ""))
    if named and not sampler:
        lost.append(f"sampler: {named[:40]!r} names none.")
    settings |= {
        key: value for key, value in {"Sampler": sampler, "Schedule type": schedule}.items() if value
    }
    _translate_hires_sampler(settings)
    if model := settings.get("Model"):
        settings["Model"] = name_weights(model)
    loras = [*_take_resources(settings, lost), *_take_lora_weights(settings), *_take_numbered_loras(settings)]
    if "<lora:" in text.prompt:  # the tool lists again what its prompt names, under other names
        loras = []
    _complete_hires(settings)
    return replace(
        text,
        settings=settings,
        tool=_name_tool(text.settings) if text.tool == "A1111" else text.tool,
        loras=(*text.loras, *loras),
        lost=tuple(lost),
    )


def translate_names(sampler: str, schedule: str = "") -> tuple[str, str]:
    """Return A1111's names of a sampler and its schedule: `Euler a`, `Karras` for `euler_ancestral_karras`.

    What is not known stays as it is; `schedule` counts before one in the sampler's name. A sampler that
    its tool does not name is empty.
    """
    plain = _normalise_name(sampler)
    schedule = SCHEDULE_NAMES.get(schedule.lower().replace("_", " "), schedule)
    if plain in ("undefined", "none", "unknown", "default"):
        return "", ""
    if plain in SAMPLER_NAMES:
        return SAMPLER_NAMES[plain], schedule
    for suffix, name in SCHEDULE_NAMES.items():
        if (first := plain.removesuffix(f" {suffix}")) in SAMPLER_NAMES:
            return SAMPLER_NAMES[first], schedule or name
    return sampler, schedule


def _normalise_name(name: str) -> str:
    """Return the name of a sampler in lower case, spelled as A1111 spells it."""
    plain = re.sub(r"[\s_]+", " ", name.lower()).strip()
    plain = plain.replace("dpmpp", "dpm++").replace(" pp", "++").removeprefix("sample ").removeprefix("k ")
    plain = re.sub(r" gpu\b", "", plain.replace("ancestral", "a")).removesuffix(" v3")
    plain = re.sub(r" k$", " karras", plain)  # InvokeAI's ending
    plain = re.sub(r"^k?dpm 2\b", "dpm2", plain).replace("uni pc", "unipc").replace("unipc bh2", "unipc")
    return re.sub(r"^dpm\+\+ 2s(?= karras|$)", "dpm++ 2s a", plain)  # there is no other


def _translate_hires_sampler(settings: dict[str, str]) -> None:
    """Write the second pass's sampler and schedule in A1111's words, unless they are the first's."""
    keys = "Hires sampler", "Hires schedule type"
    named = ["" if (text := settings.pop(key, "")).startswith(SAME_NAMES) else text for key in keys]
    sampler, schedule = translate_names(*named)
    schedule = "Normal" if schedule == "Uniform" else schedule  # two names of one in A1111
    settings |= {key: name for key, name in zip(keys, (sampler, schedule), strict=True) if name}


def name_weights(name: str) -> str:
    """Return the name of a weights file without folder and ending."""
    plain = PurePosixPath(name.replace("\\", "/")).name
    suffix = next((suffix for suffix in WEIGHT_SUFFIXES if plain.lower().endswith(suffix)), "")
    return plain[: len(plain) - len(suffix)]


def _name_tool(settings: dict[str, str]) -> str:
    version = settings.get("Version", "")
    if any(key.startswith("Civitai") for key in settings) or "Created Date" in settings:
        return "Civitai"
    if settings.get("App") == "SD.Next" or {"Parser", "Sampler sigma", "Hires scale"} & settings.keys():
        return "SD.Next"
    for tool in ("Fooocus", "ComfyUI", "Stability Matrix", "SwarmUI"):
        if version.lower().startswith((tool.lower(), tool.replace(" ", "").lower())):
            return tool
    if re.match(r"f\d|neo|classic", version) or "Module 1" in settings or "Distilled CFG Scale" in settings:
        return "Forge"
    return "A1111"


def _take_resources(settings: dict[str, str], lost: list[str]) -> list[dict[str, Any]]:
    """Return the LoRAs of `Civitai resources`; its checkpoint becomes `Model`, embeddings `TI hashes`."""
    try:
        entries = json.loads(settings.pop("Civitai resources", "[]"))
    except (ValueError, RecursionError):
        lost.append("Civitai resources cannot be read: it is not JSON.")
        return []
    loras, words = [], []
    known = entries[:MAX_RESOURCES] if isinstance(entries, list) else []
    for entry in (each for each in known if isinstance(each, dict)):
        name, kind = str(entry.get("modelName") or entry.get("modelVersionId") or ""), entry.get("type")
        name = re.sub(r"\s+", " ", name).strip()[:200]
        if kind in ("lora", "lycoris", "locon", "dora"):
            loras.append(make_lora(name, entry.get("weight")))
        elif kind in ("embed", "embedding", "textualinversion"):
            words.append(f"{re.sub('[:,]', '', name)}:")
        elif name:
            settings.setdefault("Model", name)
    if words and "TI hashes" not in settings:
        settings["TI hashes"] = ", ".join(words)
    return loras


def _take_lora_weights(settings: dict[str, str]) -> list[dict[str, Any]]:
    """Return the LoRAs of Fooocus' `Lora weights: "name: 0.5, other: 1"`."""
    parts = filter(None, settings.pop("Lora weights", "").split(",")[:MAX_RESOURCES])
    return [make_lora(name.strip(), weight) for name, _, weight in (part.rpartition(":") for part in parts)]


def _take_numbered_loras(settings: dict[str, str]) -> list[dict[str, Any]]:
    """Return the LoRAs of a saver of ComfyUI: `Lora_0 Model name: x, Lora_0 Strength model: 0.5`."""
    names = [key for key in settings if re.fullmatch(r"Lora_\d{1,2} Model name", key)]
    return [
        make_lora(
            settings.pop(name),
            settings.pop(name.replace("Model name", "Strength model"), None),
            settings.pop(name.replace("Model name", "Strength clip"), None),
        )
        for name in names
    ]


def make_lora(name: str, strength: Any = None, text_strength: Any = None) -> dict[str, Any]:
    """Return a LoRA as `/generate` takes one; a strength that is no number is 1."""
    made = {"lora": name_weights(name), "strength": _read_strength(strength, 1.0)}
    text = _read_strength(text_strength, made["strength"])
    return made if text == made["strength"] else {**made, "text_strength": text}


def _read_strength(value: Any, default: float) -> float:
    try:
        strength = float(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return strength if abs(strength) <= 100 else default  # false for NaN


def _complete_hires(settings: dict[str, str]) -> None:
    """Write what A1111 leaves to its defaults, and the factor for `Hires resize`."""
    sides = re.compile(r"(\d{1,5})x(\d{1,5})")
    size, target = (sides.fullmatch(settings.get(key, "")) for key in ("Size", "Hires resize"))
    if size and target and "Hires upscale" not in settings and int(size[1]) and int(size[2]):
        factor = max(int(target[1]) / int(size[1]), int(target[2]) / int(size[2]))
        settings["Hires upscale"] = f"{factor:.4g}"
        del settings["Hires resize"]
    if "Hires upscale" in settings:
        settings.setdefault("Hires upscaler", DEFAULT_UPSCALER)
    if settings.get("Hires upscaler") == "None":
        settings["Hires upscaler"] = PLAIN_RESIZE
    if settings.get("Hires steps") == "0":
        del settings["Hires steps"]
    if settings.get("Hires upscaler", "").startswith("Latent ("):  # other ways to enlarge latents
        settings["Hires upscaler"] = DEFAULT_UPSCALER
