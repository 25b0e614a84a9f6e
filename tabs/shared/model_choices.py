"""The base models that a list of the page offers: of the table, and a person's own checkpoints."""

from core.models import catalogue
from core.models.preset_match import match_preset
from core.schema import presets
from core.schema.types import PromptPreset
from core.system.markdown import escape_markdown
from tabs.shared.checks import translate_errors

HOME_FROM_FILE = "auto (from file)"
"""The choice that leaves it to a LoRA's file to say what it was trained on."""
PRESET_MODEL = ""
"""The choice that leaves the model to the preset."""


def list_model_choices() -> list[tuple[str, str]]:
    """List titles and names."""
    return [(model.title, model.name) for model in catalogue.list_models().values()]


def list_optional_models() -> list[tuple[str, str]]:
    """List the choice that leaves the model to the preset, then titles and names."""
    return [("the preset's", PRESET_MODEL), *list_model_choices()]


def list_home_choices() -> list[str]:
    """List what a LoRA may have been trained on, by name."""
    return [HOME_FROM_FILE, *catalogue.list_models()]


def name_model(model: str, preset: str) -> str:
    """Return the name of the chosen model, or of the preset's where the choice is left to it."""
    return model or presets.get_prompt_preset(preset).model


def find_fitting_preset(model: str) -> tuple[PromptPreset, str]:
    """Return the preset that fits a model, and the sentence that says so."""
    with translate_errors():
        match = match_preset(catalogue.find_model(model))
    preset = presets.get_prompt_preset(match.preset)
    return preset, f"Preset: {escape_markdown(preset.title)} ({match.reason})."
