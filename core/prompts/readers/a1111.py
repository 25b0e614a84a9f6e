"""Reads A1111's settings text, which many tools write."""

from collections.abc import Mapping
from dataclasses import replace

from core.prompts.settings_text import SettingsText, split_settings_text

NAMES = ("parameters", "UserComment", "Comment")
STABILITY_MATRIX = {"smproj", "parameters-json"}
"""What Stability Matrix writes beside it."""


def read(texts: Mapping[str, str]) -> SettingsText | None:
    """Return the first text that A1111's tools write, split. Raises `UserError` if it has no settings."""
    text = next((texts[name] for name in NAMES if texts.get(name)), "")
    if not text:
        return None
    tool = "Stability Matrix" if STABILITY_MATRIX & texts.keys() else "A1111"
    return replace(split_settings_text(text), tool=tool)
