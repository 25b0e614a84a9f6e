"""Reads Fooocus' own JSON (`fooocus_scheme`: fooocus); its other scheme is A1111's text."""

import re
from collections.abc import Mapping

from core.prompts.dialects import make_lora
from core.prompts.readers.json_text import get_list, get_text, list_unused, parse_table
from core.prompts.settings_text import SettingsText

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
USED = {*KEYS, "prompt", "negative_prompt", "full_prompt", "full_negative_prompt", "resolution", "loras"}


def read(texts: Mapping[str, str]) -> SettingsText | None:
    """Return what Fooocus wrote. Its styles, which add to the prompt, are left as unused."""
    table = parse_table(texts.get("parameters") or texts.get("UserComment"))
    if table is None or not {"base_model", "guidance_scale"} <= table.keys():
        return None
    size = re.fullmatch(r"\(?\s*(\d{1,5})\s*,\s*(\d{1,5})\s*\)?", get_text(table, "resolution"))
    loras = [each for each in get_list(table, "loras")[:50] if isinstance(each, list) and len(each) > 1]
    combined = [get_text(table, key).rpartition(" : ") for key in table if key.startswith("lora_combined_")]
    return SettingsText(
        prompt=get_text(table, "prompt").strip(),
        negative=get_text(table, "negative_prompt").strip(),
        settings={
            **{ours: get_text(table, key) for key, ours in KEYS.items()},
            "Size": f"{size[1]}x{size[2]}" if size else "",
            **list_unused(table, {*USED, *(key for key in table if key.startswith("lora_combined_"))}),
        },
        tool="Fooocus",
        loras=tuple(
            [make_lora(str(name), weight) for name, weight, *_ in loras]
            or [make_lora(name, weight) for name, _, weight in combined[:50] if name not in ("", "None")]
        ),
    )
