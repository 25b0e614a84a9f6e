"""Reads NovelAI's JSON, `Comment`, and writes its emphasis as A1111 does."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from core.prompts.readers.json_text import get_list, get_size, get_table, get_text, list_unused, parse_table
from core.prompts.settings_text import SettingsText

# NovelAI's key -> A1111's.
KEYS = {
    "steps": "Steps",
    "sampler": "Sampler",
    "noise_schedule": "Schedule type",
    "scale": "CFG scale",
    "seed": "Seed",
    "cfg_rescale": "RescaleCFG",
}
USED = {*KEYS, "prompt", "uc", "width", "height", "v4_prompt", "v4_negative_prompt", "signed_hash"}
EMPHASIS = 1.05
"""What a pair of braces multiplies by, and a pair of brackets divides by."""
MAX_BRACES = 20
MARKUP = re.compile(r"[{}\[\]]|-?\d{0,3}(?:\.\d{1,4})?::")


def read(texts: Mapping[str, str]) -> SettingsText | None:
    """Return what NovelAI wrote; the prompts of its characters follow the scene's, each as a chunk."""
    table = parse_table(texts.get("Comment"))
    if table is None or not (("uc" in table and "prompt" in table) or "v4_prompt" in table):
        return None
    settings = {ours: get_text(table, key) for key, ours in KEYS.items()}
    if settings["RescaleCFG"] in ("0", "0.0"):
        del settings["RescaleCFG"]
    return SettingsText(
        prompt=_join_captions(table, "prompt", "v4_prompt"),
        negative=_join_captions(table, "uc", "v4_negative_prompt"),
        settings={
            **settings,
            "Model": texts.get("Source", ""),
            "Size": get_size(table),
            **list_unused(table, USED),
        },
        tool="NovelAI",
    )


def _join_captions(table: Mapping[str, Any], plain: str, parted: str) -> str:
    caption = get_table(get_table(table, parted), "caption")
    characters = [each for each in get_list(caption, "char_captions")[:20] if isinstance(each, dict)]
    parts = [get_text(caption, "base_caption") or get_text(table, plain)]
    parts += [get_text(each, "char_caption") for each in characters]
    return "\nBREAK\n".join(convert_emphasis(part) for part in parts if part.strip())


def convert_emphasis(prompt: str) -> str:
    """Write `{tag}`, `[tag]` and `1.3::tag::` as `(tag:1.05)`, `(tag:0.952)` and `(tag:1.3)`.

    Round brackets, which mean nothing to NovelAI, are escaped.
    """
    if len(prompt) > 20_000:  # longer than any prompt here; refused as it stands
        return prompt
    parts = [(re.sub(r"(?<!\\)([()])", r"\\\1", text), weight) for text, weight in _split_weights(prompt)]
    return "".join(_weigh(text, weight) for text, weight in parts).strip()


def _split_weights(prompt: str) -> Iterator[tuple[str, float]]:
    """Yield the parts between the marks of emphasis, each with its weight."""
    braces, number, end = 0, 1.0, 0
    for mark in MARKUP.finditer(prompt):
        yield prompt[end : mark.start()], number * EMPHASIS**braces
        end = mark.end()
        if mark[0].endswith("::"):
            number = float(mark[0][:-2]) if mark[0][:-2].strip("-.") else 1.0
        elif mark[0] in "{]":
            braces = min(braces + 1, MAX_BRACES)
        else:
            braces = max(braces - 1, -MAX_BRACES)
    yield prompt[end:], number * EMPHASIS**braces


def _weigh(text: str, weight: float) -> str:
    inner = text.strip()
    if not inner.strip(", ") or f"{weight:.3g}" == "1":
        return text
    lead, trail = text[: len(text) - len(text.lstrip(" ,\n"))], text[len(text.rstrip(" ,\n")) :]
    return f"{lead}({text.strip(' ,' + chr(10))}:{weight:.3g}){trail}"
