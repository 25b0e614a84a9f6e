"""JSON from strangers, in bounded time and depth."""

import json
from collections.abc import Collection, Mapping
from typing import Any

MAX_JSON = 4_000_000
"""Characters of one text; a large graph of ComfyUI has a tenth."""
MAX_UNUSED = 100
"""Settings that are kept as unused, and characters of each."""


def parse_table(text: str | None) -> dict[str, Any] | None:
    """Return the JSON object of a text; `None` if it is none, too long or nested too deeply."""
    if not text or len(text) > MAX_JSON or not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def get_text(table: Mapping[str, Any], name: str) -> str:
    """Return a value as text: a number as it stands, nothing for a table or what is missing."""
    value = table.get(name)
    return str(value) if isinstance(value, str | int | float) and not is_huge(value) else ""


def get_table(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a table inside a table; an empty one if there is none."""
    value = table.get(name)
    return value if isinstance(value, dict) else {}


def get_list(table: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list inside a table; an empty one if there is none."""
    value = table.get(name)
    return value if isinstance(value, list) else []


def get_size(table: Mapping[str, Any]) -> str:
    """Return `width` and `height` as A1111 writes a size; empty if one is missing."""
    sides = get_text(table, "width"), get_text(table, "height")
    return "x".join(sides) if all(sides) else ""


def list_unused(table: Mapping[str, Any], used: Collection[str]) -> dict[str, str]:
    """Return what a reader leaves, as text: no tables, no lists, nothing empty or off."""
    found = {
        str(key)[:MAX_UNUSED]: get_text(table, key)[:MAX_UNUSED]
        for key, value in table.items()
        if key not in used and value not in (None, "", False, 0, "None", [])
    }
    return dict([(key, text) for key, text in found.items() if text][:MAX_UNUSED])


def is_huge(value: Any) -> bool:
    """Whether a whole number is beyond 64 bits; Python refuses to write out a huge one."""
    return isinstance(value, int) and abs(value) >= 2**64
