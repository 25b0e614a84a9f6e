"""A preset's neutral prompts, for sweeps and previews.

They are complete, different from each other and without a style.
"""

from core.prompts.grammar import compose_prompt
from core.schema import presets
from core.schema.types import PromptPreset


def compose_neutral_prompts(recipe: PromptPreset) -> tuple[str, ...]:
    """Return the preset's own prompts for a sweep.

    They are complete, different from each other and without a style.
    """
    return tuple(
        compose_prompt(recipe, subject=recipe.subject, character="", general=general, quality=recipe.quality)
        for general in recipe.neutral
    )


def find_preset(model: str) -> PromptPreset:
    """Return the preset for a model's pictures, or the first preset if none names the model."""
    return next(
        (recipe for recipe in presets.get_prompt_presets().values() if recipe.model == model),
        next(iter(presets.get_prompt_presets().values())),
    )


def make_preview_prompts(model: str, trigger: str, count: int = 2) -> tuple[str, ...]:
    """Return the first `count` neutral prompts for a model, with the trigger after the subject."""
    return tuple(
        insert_trigger(prompt, trigger) for prompt in compose_neutral_prompts(find_preset(model))[:count]
    )


def insert_trigger(prompt: str, trigger: str) -> str:
    """Return the prompt with the trigger after its subject."""
    subject, comma, rest = prompt.partition(", ")
    return f"{subject}, {trigger}{comma}{rest}" if trigger else prompt
