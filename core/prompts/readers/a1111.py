"""Reads A1111's settings text, which many tools write."""

from collections.abc import Mapping

from core.prompts.settings_text import SettingsText, split_settings_text

NAMES = ("parameters", "UserComment", "Comment")


def read(texts: Mapping[str, str]) -> SettingsText | None:
    """Return the first text that A1111's tools write, split. Raises `UserError` if it has no settings."""
    text = next((texts[name] for name in NAMES if texts.get(name)), "")
    return split_settings_text(text) if text else None
