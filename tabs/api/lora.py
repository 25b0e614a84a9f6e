"""The named endpoints for LoRA files: inspect one, rewrite one."""

from pathlib import Path
from typing import Any

import gradio as gr

from core.lora import edit
from core.lora.apply import get_lora_file
from core.models.lora_facts import read_lora_facts
from core.runtime import gpu
from tabs.api.inputs import build_input
from tabs.server.page_files import create_output_folder, resolve_lora
from tabs.shared.checks import translate_errors


def inspect_lora(lora: str | dict) -> dict[str, Any]:
    """Inspect a LoRA file: format, rank, alpha, blocks, trigger and tags.

    Also returns how large its change is on the loaded model, unless a job is using the model, and
    the strength that is known to work, with who says so.
    """
    with translate_errors():
        path = resolve_lora(lora)
        told = gpu.inspect_with_model(get_lora_file(path))
        strength = read_lora_facts(Path(path)).strength
    return told | {
        "strength": strength and strength.value,
        "strength_source": strength and strength.source,
    }


def edit_lora(
    lora: str | dict, multiply: float | None = None, blocks: str | None = None, keep: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Rewrite a LoRA file.

    `multiply` is the old strength that becomes 1.0; `blocks` are block weights; `keep` is all,
    content or style. Changes alpha only; blocks of weight 0 are removed.

    Returns the new file, in kohya's layout, and its inspection.
    """
    with translate_errors(), create_output_folder() as folder:
        made = edit.rewrite_lora(get_lora_file(resolve_lora(lora)), folder, multiply, blocks, keep)
        return str(made), gpu.inspect_with_model(get_lora_file(str(made)))


def register_endpoints() -> None:
    """Wire the endpoints, on components that no page shows."""
    call, report = gr.Button(visible=False), gr.JSON(visible=False)
    call.click(
        inspect_lora, inputs_kwargs={"lora": build_input(gr.JSON)}, outputs=report, api_name="inspect_lora"
    )
    changed = {
        "lora": build_input(gr.JSON),
        "multiply": build_input(gr.Number),
        "blocks": build_input(gr.Textbox),
        "keep": build_input(gr.Textbox),
    }
    call.click(
        edit_lora, inputs_kwargs=changed, outputs=[gr.File(visible=False), report], api_name="edit_lora"
    )
