"""The texts of the Generate tab.

A button puts a preset's parts into the prompt; what a person wrote is never overwritten.
"""

from typing import Any

import gradio as gr

from core.models import bases, embedding_library
from core.prompts.grammar import CHUNK_LENGTH, add_missing_tags, compose_prompt
from core.schema import limits, presets
from core.schema.presets import PROMPT_PARTS
from core.schema.types import PromptPreset

TEXT_LABELS = {
    "prompt": "Prompt",
    "negative": "Negative prompt",
    "subject": "Subject",
    "character": "Character",
    "general": "General tags",
    "quality": "Quality tags",
    "detail_prompt": "detailer prompt",
    "detail_negative": "detailer negative prompt",
    "expand_ban": "banned tags",
}
"""Control -> its name for a person, of the texts that a preset fills and a person edits."""


def build_controls(preset: PromptPreset) -> dict[str, Any]:
    """Build the prompt, its parts and the negative prompt from a preset: components by name."""
    c: dict[str, Any] = {}
    c["prompt"] = gr.Textbox(compose_start_prompt(preset), label="Prompt", lines=3, elem_id="prompt")
    c["tokens"] = gr.Markdown(format_token_count(compose_start_prompt(preset)), elem_id="tokens")
    with gr.Accordion("Build it from parts", open=False, elem_id="parts"):
        with gr.Row():
            c["subject"] = gr.Textbox(
                preset.subject, label="Subject", placeholder="e.g. 1girl", min_width=140
            )
            c["character"] = gr.Textbox(
                preset.character, label="Character", placeholder="character, series", min_width=140
            )
        c["general"] = gr.Textbox(preset.general, label="General tags", lines=2)
        c["quality"] = gr.Textbox(preset.quality, label="Quality tags")
        c["insert"] = gr.Button("Insert", size="sm", elem_id="insert")
        gr.Markdown(
            "Insert puts these parts into the prompt. "
            "If you have edited the prompt, it only appends what is missing."
        )
    c["negative"] = gr.Textbox(
        preset.negative, label="Negative prompt", lines=1, max_lines=3, elem_id="negative"
    )
    return c


def compose_start_prompt(preset: PromptPreset) -> str:
    """Return the prompt that a preset starts with."""
    return compose_prompt(preset, **{part: getattr(preset, part) for part in PROMPT_PARTS})


def format_token_count(prompt: str) -> str:
    """Return a line that says how many tokens the prompt has."""
    prompt = prompt[: limits.PROMPT_LENGTH]
    many = bases.count_prompt_tokens(prompt, embedding_library.find_countable_embeddings(prompt))
    return f"{many} / {CHUNK_LENGTH} tokens" + (
        "" if many <= CHUNK_LENGTH else " · over 75: the prompt is split into chunks"
    )


def insert_parts(preset: str, prompt: str, start: dict[str, str], **parts: str) -> tuple[str, dict[str, str]]:
    """Return the prompt with its parts, and the texts that the page filled.

    A prompt that a person has changed only grows.
    """
    built = compose_prompt(presets.get_prompt_presets()[preset], **parts)
    if prompt.strip() and prompt != start["prompt"]:
        return add_missing_tags(prompt, built), start
    return built, {**start, "prompt": built}


def keep_texts(
    preset_values: dict[str, Any], start: dict[str, str], texts: dict[str, str]
) -> tuple[dict[str, Any], str]:
    """Return what a preset fills, by name, and a sentence about the texts that are kept.

    A text is kept if it is not as the page filled it; an empty one is filled.
    """
    own = [
        name
        for name in TEXT_LABELS
        if texts[name].strip() and texts[name] not in (start[name], preset_values[name])
    ]
    if not own:
        return preset_values, ""
    kept = {name: gr.skip() for name in (*own, *(["tokens"] if "prompt" in own else []))}
    added = " Insert adds this preset's tags to the prompt." if "prompt" in own else ""
    names = ", ".join(TEXT_LABELS[name] for name in own)
    return {
        **preset_values,
        **kept,
    }, f"Your text was kept: {names}. To use the preset's, clear it and choose the preset again.{added}"
