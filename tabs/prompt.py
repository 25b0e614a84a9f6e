"""The Generate tab's texts: a preset's parts go into the prompt by a button, and what a person wrote is never overwritten."""

from typing import Any

import gradio as gr

from core import limits, models, presets
from core.presets import PARTS
from core.prompts import PLACES, add_missing, compose
from core.types import Recipe

TEXTS = {
    "prompt": "Prompt",
    "negative": "Negative prompt",
    "subject": "Subject",
    "character": "Character",
    "general": "General tags",
    "quality": "Quality tags",
    "detail_prompt": "the prompt of Details",
    "detail_negative": "the negative prompt of Details",
    "expand_ban": "banned tags",
}
"""The controls that a preset fills and a person writes in, by what a person calls them."""


def controls(first: Recipe) -> dict[str, Any]:
    """The prompt, its parts and the negative prompt, filled from a recipe: components by name."""
    c: dict[str, Any] = {}
    c["prompt"] = gr.Textbox(whole(first), label="Prompt", lines=3, elem_id="prompt")
    c["tokens"] = gr.Markdown(tokens(whole(first)), elem_id="tokens")
    with gr.Accordion("Build it from parts", open=False, elem_id="parts"):
        with gr.Row():
            c["subject"] = gr.Textbox(first.subject, label="Subject", placeholder="e.g. 1girl", min_width=140)
            c["character"] = gr.Textbox(first.character, label="Character", placeholder="character, series", min_width=140)
        c["general"] = gr.Textbox(first.general, label="General tags", lines=2)
        c["quality"] = gr.Textbox(first.quality, label="Quality tags")
        c["insert"] = gr.Button("Insert", size="sm", elem_id="insert")
        gr.Markdown("Insert puts them into the prompt. In a prompt of your own it adds what is missing, at the end.")
    c["negative"] = gr.Textbox(first.negative, label="Negative prompt", lines=1, max_lines=3, elem_id="negative")
    return c


def whole(recipe: Recipe) -> str:
    """The prompt that a preset starts with."""
    return compose(recipe, **{part: getattr(recipe, part) for part in PARTS})


def tokens(prompt: str) -> str:
    """How many tokens it has, in a line."""
    many = models.tokens(prompt[: limits.PROMPT])
    return f"{many} of {PLACES} tokens" + ("" if many <= PLACES else " · ⚠️ read in chunks; stay below 75 for a clear picture")


def insert(preset: str, prompt: str, start: dict[str, str], **parts: str) -> tuple[str, dict[str, str]]:
    """The prompt with its parts, and the texts that the page filled: a prompt that was changed only grows."""
    built = compose(presets.recipes()[preset], **parts)
    if prompt.strip() and prompt != start["prompt"]:
        return add_missing(prompt, built), start
    return built, {**start, "prompt": built}


def keep_texts(filled: dict[str, Any], start: dict[str, str], texts: dict[str, str]) -> tuple[dict[str, Any], str]:
    """What a preset fills, by name, without the texts that are not as the page filled them, and a sentence about those.

    An empty one is filled.
    """
    own = [name for name in TEXTS if texts[name].strip() and texts[name] not in (start[name], filled[name])]
    if not own:
        return filled, ""
    kept = {name: gr.skip() for name in (*own, *(["tokens"] if "prompt" in own else []))}
    added = " Insert adds the tags of this preset to the prompt." if "prompt" in own else ""
    names = ", ".join(TEXTS[name] for name in own)
    return {**filled, **kept}, f"Kept as you wrote it: {names}. Empty it and choose the preset again for the preset's own.{added}"
