"""Finds the preset that is made for a model: by the family that its metadata or its name tells."""

import re
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from core.models import catalogue, files
from core.prompts.neutral import compose_neutral_prompts, insert_trigger
from core.schema import presets
from core.schema.errors import UserError
from core.schema.types import Model, PromptPreset
from core.system import paths

TITLE_KEYS = ("modelspec.title", "ss_output_name", "ss_sd_model_name", "ss_base_model_version")
"""What of a file's metadata may name its family."""
MAX_METADATA_CHARACTERS = 2000
PRESET_PATTERNS = (
    (r"noob", "noobai-xl"),
    (r"(?<![a-z])wai", "wai-illustrious"),
    (r"animagine.*4|anim4gine", "animagine-xl-4.0"),
    (r"animagine", "animagine-xl-3.1"),
    (r"pony|(?<![a-z])pdxl|autismmix", "pony-v6"),
    (r"baxl|blue[ _-]?archive", "baxl-v3"),
    (r"kohaku", "kohaku-xl-delta"),
    (r"(illustrious|ilxl)[a-z _-]*2[._]?0(?!\d)", "illustrious-xl-2.0"),
    (r"illustrious|ilxl|(?<![a-z])il(v?\d|(?![a-z]))", "illustrious-xl"),
)
"""Pattern of a name in lower case, and the preset that it speaks of; the first that fits counts."""
V_PREDICTION = {"noobai-xl": "noobai-xl-vpred"}
"""Preset of a family -> that of its models that predict v."""
DEFAULT_PRESET = "sdxl-base"


class PresetMatch(NamedTuple):
    """The preset that fits a model, and how that is known."""

    preset: str
    reason: str
    """The end of a sentence about the preset."""


def match_preset(model: Model) -> PresetMatch:
    """Return the preset for a model: its own, that of its family, or SDXL's if nothing names one.

    A single file's metadata counts before its name.
    """
    for preset in presets.get_prompt_presets().values():
        if preset.model == model.name:
            return PresetMatch(preset.name, "made for this model")
    title, velocity = _read_header(model)
    for text, reason in ((title, "the file's metadata names the family"), (model.title, "by the name")):
        said = text.lower()
        if found := next((preset for pattern, preset in PRESET_PATTERNS if re.search(pattern, said)), None):
            return PresetMatch(V_PREDICTION.get(found, found) if velocity else found, reason)
    return PresetMatch(DEFAULT_PRESET, "neither metadata nor name tells a family")


def find_preset(model: str) -> PromptPreset:
    """Return the preset for the pictures of the model of that name."""
    return presets.get_prompt_preset(match_preset(catalogue.find_model(model)).preset)


def make_preview_prompts(model: str, trigger: str, count: int = 2) -> tuple[str, ...]:
    """Return the first `count` neutral prompts for a model, with the trigger after the subject."""
    return tuple(
        insert_trigger(prompt, trigger) for prompt in compose_neutral_prompts(find_preset(model))[:count]
    )


def _read_header(model: Model) -> tuple[str, bool]:
    """Return what a local model's metadata says of its family, and whether it predicts v.

    A model that is not on this machine, or that cannot be read, says nothing: opening it tells why.
    """
    if model.revision is not None:
        return "", model.prediction_type == "v_prediction"
    source = paths.locate(model.source)
    try:
        velocity = files.find_prediction(model, source).type == "v_prediction"
        return _read_titles(source), velocity
    except (OSError, ValueError, SafetensorError, UserError):
        return "", False


def _read_titles(source: Path) -> str:
    """Return what a checkpoint's metadata says of its name and its base."""
    if source.is_dir():
        return ""
    with safe_open(source, framework="pt") as opened:
        metadata = opened.metadata() or {}
    return " ".join(metadata.get(key, "") for key in TITLE_KEYS)[:MAX_METADATA_CHARACTERS]
