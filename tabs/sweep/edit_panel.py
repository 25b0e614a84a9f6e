"""Save changed copies of a LoRA: other blocks, another alpha, or 1.0 as the sweet spot."""

import json
from typing import Any

import gradio as gr

from core.lora import apply as lora
from core.lora import edit
from core.lora.blocks import BLOCKS
from core.schema.errors import UserError
from tabs.server.call_wrapper import show_refusal
from tabs.server.page_files import create_folder
from tabs.shared.checks import (
    WRITE_OPTIONS,
)
from tabs.shared.lora_choices import find_chosen_lora


def build_edit_panel() -> dict[str, Any]:
    """Build the panel 'Edit LoRA file': components by name."""
    c: dict[str, Any] = {}
    with gr.Accordion("Edit LoRA file", open=False):
        gr.Markdown("Changes alpha only; unselected blocks are removed.")
        c["keep"] = gr.Radio(
            list(edit.KEEP_CHOICES), value="all", label="Keep", info="content and style are B-LoRA's blocks"
        )
        c["blocks"] = gr.Textbox(
            "",
            label="Block weights",
            info=f"empty, or 12: {', '.join(BLOCKS)}",
            placeholder="1,1,1,1,1,1,1,1,1,1,1,1",
        )
        c["multiply"] = gr.Number(
            1.0,
            label="Rescale so that this strength becomes 1.0",
            minimum=edit.MULTIPLY_RANGE[0],
            maximum=edit.MULTIPLY_RANGE[1],
        )
        c["write"] = gr.Button("Save a copy", size="sm", elem_id="write")
        c["edited_file"] = gr.File(label="New file", interactive=False, visible=False, elem_id="written")
        c["edit_message"] = gr.Markdown()
    return c


def wire_files(c: dict[str, Any]) -> None:
    """Connect the buttons that save a changed copy of the LoRA."""
    c["normalise"].click(
        _normalise_lora, c["result"], [c["rescaled_files"], c["rescale_message"]], **WRITE_OPTIONS
    )
    c["write"].click(
        _rewrite_lora,
        [c["lora_file"], c["shelf"], c["keep"], c["blocks"], c["multiply"]],
        [c["edited_file"], c["edit_message"]],
        **WRITE_OPTIONS,
    )


def _normalise_lora(result: dict[str, Any] | None) -> tuple[Any, str]:
    """Save the LoRA with the alpha that makes the recommended strength 1.0."""
    if not result or not (times := result["report"]["normalise_by"]):
        return gr.skip(), "No sweet spot was found, so there is nothing to rescale to 1.0."
    try:
        source = lora.get_lora_file(result["lora"])
        file = edit.rewrite_lora(
            source, create_folder(), multiply=times, hint=edit.format_usage_hint(result["report"], times)
        )
    except UserError as error:
        return gr.skip(), show_refusal(error)
    beside = file.with_suffix(".json")
    beside.write_text(
        json.dumps(edit.build_sidecar(source, result["report"], times), indent=1), encoding="utf-8"
    )
    return gr.update(
        value=[str(file), str(beside)], visible=True
    ), f"Saved. 1.0 in this copy equals {times:g} in the original. Only alpha was changed."


def _rewrite_lora(
    file: str | None, name: str | None, keep: str, blocks: str, multiply: float
) -> tuple[Any, str]:
    """Save the chosen LoRA with other blocks or another alpha."""
    try:
        path = find_chosen_lora(file, name)
        if not path:
            raise UserError("lora", "choose a LoRA first.")
        return gr.update(
            value=str(
                edit.rewrite_lora(
                    lora.get_lora_file(path), create_folder(), multiply, blocks.strip() or None, keep
                )
            ),
            visible=True,
        ), "Saved."
    except UserError as error:
        return gr.skip(), show_refusal(error)
