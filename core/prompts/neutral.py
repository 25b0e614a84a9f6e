"""A preset's neutral prompts, for sweeps and previews.

They are complete, different from each other and without a style.
"""

from core.prompts.grammar import compose_prompt
from core.schema.types import PromptPreset


def compose_neutral_prompts(recipe: PromptPreset) -> tuple[str, ...]:
    """Return the preset's own prompts for a sweep.

    They are complete, different from each other and without a style.
    """
    return tuple(
        compose_prompt(recipe, subject=recipe.subject, character="", general=general, quality=recipe.quality)
        for general in recipe.neutral
    )


def insert_trigger(prompt: str, trigger: str) -> str:
    """Return the prompt with the trigger after its subject."""
    subject, comma, rest = prompt.partition(", ")
    return f"{subject}, {trigger}{comma}{rest}" if trigger else prompt
