"""Sweetspot: `python app.py`. One door to the GPU first, then the models, one tab each, launch."""

from core import gpu  # isort: skip  (imports `spaces`, which must come before torch)

import os
import sys
from typing import Any

import gradio as gr

from core import limits, models, presets
from core.device import this_machine
from core.types import UserError
from tabs import api, crossing, generate, publish, sweep, train, training, transfer

CSS = "#status p, #tokens p { margin: 0 } #machine { opacity: .75; font-size: .85em }"

LAUNCH: dict[str, Any] = {"css": CSS, "max_file_size": limits.UPLOAD, "show_error": False, "enable_monitoring": False, "footer_links": ["api"]}


def build() -> gr.Blocks:
    """The page, with the embedded model loaded."""
    first = next(iter(presets.recipes().values()))
    gpu.lane(models.load, first.model)
    with gr.Blocks(title="Sweetspot", analytics_enabled=False, delete_cache=(3600, 6 * 3600)) as page:
        gr.Markdown("# Sweetspot\nA studio for SDXL anime models that measures at which strength a LoRA works.")
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                opened = generate.tab()
            with gr.Tab("Sweep", id="sweep"):
                swept = sweep.tab(opened, tabs)
            with gr.Tab("Train", id="train"):
                trained = train.tab(page, swept, tabs)
            with gr.Tab("Transfer", id="transfer"):
                transfer.tab(trained)
            with gr.Tab("Publish", id="publish"):
                publish.tab(trained)
        api.endpoints()
        training.endpoints()
        crossing.endpoints()
        publish.endpoints()
        gr.Markdown(this_machine().line(), elem_id="machine")
    return page.queue(api_open=False, max_size=limits.QUEUE, default_concurrency_limit=4)


def main() -> None:
    """Start the server; a preset that is wrong ends the start with its sentence."""
    try:
        page = build()
    except UserError as error:
        sys.exit(f"Sweetspot cannot start: {error}")
    page.launch(server_name=os.environ.get("GRADIO_SERVER_NAME"), **LAUNCH)


if __name__ == "__main__":
    main()
