"""Finds the preset that is made for a model: its own, or that of its family."""

import re
from typing import NamedTuple

from safetensors import SafetensorError

from core.hub.preflight import NeedsJob
from core.models import catalogue, files
from core.models.base_families import FAMILIES, find_base_family, find_family, read_titles, simplify_name
from core.prompts.neutral import compose_neutral_prompts, insert_trigger
from core.schema import presets
from core.schema.types import Model, PromptPreset

MODEL_PATTERNS = {
    "Kohaku": ((r"baxl", "baxl-v3"),),
    "Illustrious": (
        (r"\bwai", "wai-illustrious"),
        (r"(illustrious|il ?xl)[a-z ]*2 ?0(?! ?\d)", "illustrious-xl-2.0"),
    ),
    "Animagine": ((r"animagine[a-z ]*4|anim4gine", "animagine-xl-4.0"),),
}
"""Family -> how names speak of models in it that have a preset for themselves, and that preset."""
V_PREDICTION = {"noobai-xl": "noobai-xl-vpred"}
"""Preset of a family -> that of its models that predict v."""


class PresetMatch(NamedTuple):
    """The preset that fits a model, and how that is known."""

    preset: str
    reason: str
    """The end of a sentence about the preset."""


def match_preset(model: Model) -> PresetMatch:
    """Return the preset for a model: its own, that of its family, or SDXL's if nothing names one."""
    for preset in presets.get_prompt_presets().values():
        if preset.model == model.name:
            return PresetMatch(preset.name, "made for this model")
    family, titles = find_base_family(model), read_titles(model)
    if family in (None, "SDXL"):
        return PresetMatch(FAMILIES["SDXL"].preset, "neither metadata nor name tells a family")
    if family == "nano":
        return PresetMatch(FAMILIES["nano"].preset, "as small as the embedded models")
    said = simplify_name(f"{titles} {model.title}")
    patterns = MODEL_PATTERNS.get(family, ())
    found = next((own for pattern, own in patterns if re.search(pattern, said)), FAMILIES[family].preset)
    reason = "the file's metadata names the family" if find_family(titles) == family else "by the name"
    return PresetMatch(V_PREDICTION.get(found, found) if _predicts_v(model) else found, reason)


def find_preset(model: str) -> PromptPreset:
    """Return the preset for the pictures of the model of that name.

    During preflight, a model of the Hub that is not here is known by its name alone. Raises `UserError`
    for a model that is unknown.
    """
    try:
        found = catalogue.find_model(model)
    except NeedsJob:
        found = Model(name=model, title=model, source=model, licence="unknown")
    return presets.get_prompt_preset(match_preset(found).preset)


def make_preview_prompts(model: str, trigger: str) -> tuple[str, ...]:
    """Return the first two neutral prompts for a model, with the trigger after the subject."""
    neutral = compose_neutral_prompts(find_preset(model))[:2]
    return tuple(insert_trigger(prompt, trigger) for prompt in neutral)


def _predicts_v(model: Model) -> bool:
    """Whether a model predicts v, by its files; by its table and name where they are not here."""
    source = files.find_on_disk(model)
    try:
        if source:
            return files.find_prediction(model, source).type == "v_prediction"
    except (OSError, ValueError, SafetensorError):
        pass  # opening it tells why
    return model.prediction_type == "v_prediction" or "vpred" in simplify_name(model.title).replace(" ", "")
