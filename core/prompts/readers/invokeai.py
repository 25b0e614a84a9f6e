"""Reads InvokeAI's JSON: `invokeai_metadata`, `sd-metadata` of version 2; emphasis becomes A1111's."""

import re
from collections.abc import Mapping
from typing import Any

from core.prompts.dialects import make_lora
from core.prompts.readers.json_text import get_list, get_size, get_table, get_text, list_unused, parse_table
from core.prompts.settings_text import SettingsText

# InvokeAI's key -> A1111's.
KEYS = {
    "steps": "Steps",
    "scheduler": "Sampler",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "cfg_rescale_multiplier": "RescaleCFG",
    "app_version": "Version",
}
PROMPTS = {"positive_prompt", "negative_prompt", "positive_style_prompt", "negative_style_prompt"}
USED = {*KEYS, *PROMPTS, "width", "height", "model", "loras", "vae"}
NEGATIVE = re.compile(r"\[([^\[\]]*+)\]")
# A closing bracket with a number or signs, or a word with plus signs; a minus ends words by itself.
EMPHASIS = re.compile(
    r"((?<!\\)\))(\d\.\d{1,4}|\d|\+{1,9}|-{1,9})(?![\w.+-])|\b(\w{1,99}+)(\+{1,9})(?![\w+])"
)


def read(texts: Mapping[str, str]) -> SettingsText | None:
    """Return what InvokeAI wrote. SDXL's style prompt follows the prompt, as both are encoded together."""
    if (old := parse_table(texts.get("sd-metadata"))) is not None:
        return _read_version_2(old)
    table = parse_table(texts.get("invokeai_metadata"))
    if table is None:
        return None
    settings = {ours: get_text(table, key) for key, ours in KEYS.items()}
    if settings["RescaleCFG"] in ("0", "0.0"):
        del settings["RescaleCFG"]
    loras = [each for each in get_list(table, "loras")[:50] if isinstance(each, dict)]
    return SettingsText(
        prompt=_join_prompts(table, "positive"),
        negative=_join_prompts(table, "negative"),
        settings={
            **settings,
            "Model": _name_model(get_table(table, "model")),
            "VAE": _name_model(get_table(table, "vae")),
            "Size": get_size(table),
            **list_unused(table, USED),
        },
        tool="InvokeAI",
        loras=tuple(
            make_lora(_name_model(get_table(each, "model") or get_table(each, "lora")), each.get("weight"))
            for each in loras
        ),
    )


def _read_version_2(table: Mapping[str, Any]) -> SettingsText:
    """Return what InvokeAI 2 wrote, whose negative stands in square brackets in the prompt."""
    image = get_table(table, "image")
    parts = [get_text(each, "prompt") for each in get_list(image, "prompt")[:20] if isinstance(each, dict)]
    whole = get_text(image, "prompt") or "\n".join(parts)
    return SettingsText(
        prompt=convert_emphasis(NEGATIVE.sub("", whole).strip()),
        negative=convert_emphasis(", ".join(NEGATIVE.findall(whole))),
        settings={
            **{ours: get_text(image, key) for key, ours in KEYS.items()},
            "Sampler": get_text(image, "sampler"),
            "Model": get_text(table, "model_weights"),
            "Version": get_text(table, "app_version"),
            "Size": get_size(image),
        },
        tool="InvokeAI",
    )


def _join_prompts(table: Mapping[str, Any], side: str) -> str:
    parts = [get_text(table, f"{side}_{kind}").strip() for kind in ("prompt", "style_prompt")]
    return "\n".join(convert_emphasis(part) for part in dict.fromkeys(parts) if part)


def convert_emphasis(prompt: str) -> str:
    """Write `(tag)1.3`, `(tag)++` and `tag+` as `(tag:1.3)`, `(tag:1.21)` and `(tag:1.1)`."""

    def weigh(match: re.Match[str]) -> str:
        text, mark = match[1] or match[3], match[2] or match[4]
        weight = mark if mark[0] not in "+-" else f"{(1.1 if mark[0] == '+' else 0.9) ** len(mark):.4g}"
        return f":{weight})" if text == ")" else f"({text}:{weight})"

    return EMPHASIS.sub(weigh, prompt)


def _name_model(table: Mapping[str, Any]) -> str:
    return get_text(table, "name") or get_text(table, "model_name")
