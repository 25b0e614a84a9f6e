"""Reads Fooocus' own JSON (`fooocus_scheme`: fooocus); its other scheme is A1111's text."""

import re
from collections.abc import Mapping
from typing import Any

from core.prompts.dialects import make_lora
from core.prompts.readers.json_text import get_list, get_size, get_text, list_unused, parse_table
from core.prompts.settings_text import SettingsText

NAMES = ("parameters", "UserComment", "Comment")
# Fooocus' key -> A1111's.
KEYS = {
    "steps": "Steps",
    "sampler": "Sampler",
    "scheduler": "Schedule type",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "base_model": "Model",
    "base_model_hash": "Model hash",
    "version": "Version",
}
# A key of RuinedFooocus and Fooocus-MRE -> Fooocus'.
OTHER_KEYS = {
    "negative": "negative_prompt",
    "cfg": "guidance_scale",
    "base_model_name": "base_model",
    "sampler_name": "sampler",
}
USED = {
    *(*KEYS, "prompt", "negative_prompt", "full_prompt", "full_negative_prompt"),
    *("resolution", "width", "height", "loras"),
}
LORA_KEY = re.compile(r"lora_(?:combined_)?\d{1,2}")
FIRST_STRENGTH = re.compile(r"(-?\d{1,2}(?:\.\d{1,4})?) - (.{1,200})")
"""A LoRA of RuinedFooocus, `0.8 - name`, after its hash."""


def read(texts: Mapping[str, str]) -> SettingsText | None:
    """Return what Fooocus or a kin of it wrote. Its styles, which add to the prompt, are left as unused.

    Fooocus before 2.2 has the words of its page for keys, such as `Guidance Scale`.
    """
    own = parse_table(next((texts[name] for name in NAMES if texts.get(name)), None)) or {}
    plain = {key.lower().replace(" ", "_"): value for key, value in own.items()}
    table = {OTHER_KEYS.get(key, key): value for key, value in plain.items()}
    if not {"base_model", "guidance_scale"} <= table.keys():
        return None
    size = re.fullmatch(r"\(?\s*(\d{1,5})\s*,\s*(\d{1,5})\s*\)?", get_text(table, "resolution"))
    numbered = [key for key in table if LORA_KEY.fullmatch(key)]
    combined = [get_text(table, key).rpartition(" : ") for key in numbered[:50]]
    return SettingsText(
        prompt=get_text(table, "prompt").strip(),
        negative=get_text(table, "negative_prompt").strip(),
        settings={
            **{ours: get_text(table, key) for key, ours in KEYS.items()},
            "Size": f"{size[1]}x{size[2]}" if size else get_size(table),
            **list_unused(table, {*USED, *numbered}),
        },
        tool="Fooocus",
        loras=tuple(
            _list_loras(table)
            or [make_lora(name, weight) for name, _, weight in combined if name not in ("", "None")]
        ),
    )


def _list_loras(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the LoRAs of `loras`: name and strength, or a hash and both in one text."""
    found = []
    for each in get_list(table, "loras")[:50]:
        if isinstance(each, list) and len(each) > 1:
            joined = FIRST_STRENGTH.fullmatch(each[1]) if isinstance(each[1], str) else None
            found.append(make_lora(joined[2], joined[1]) if joined else make_lora(str(each[0]), each[1]))
    return found
