"""The base models that a list of the page offers: of the table, and a person's own checkpoints."""

from core.models import catalogue

HOME_FROM_FILE = "auto (from file)"
"""The choice that leaves it to a LoRA's file to say what it was trained on."""


def list_model_choices() -> list[tuple[str, str]]:
    """List titles and names."""
    return [(model.title, model.name) for model in catalogue.list_models().values()]


def list_home_choices() -> list[str]:
    """List what a LoRA may have been trained on, by name."""
    return [HOME_FROM_FILE, *catalogue.list_models()]
