"""A recipe and a person's words -> the prompt text. Pure text."""

import re

from core.types import Recipe

PLACES = 75
"""CLIP's places for tokens beside its start and end marks."""


def compose(recipe: Recipe, *, subject: str, character: str, general: str, quality: str) -> str:
    """The recipe's template with its parts filled in; a part left empty takes its comma along."""
    text = recipe.template.format(subject=subject, character=character, general=general, quality=quality)
    parts = (part.strip() for part in re.split(r",(?![^()]*\))", text))  # not inside (a, b:1.2)
    return ", ".join(part for part in parts if part)
