"""The buttons that start and stop the job of a tab, and what these jobs have in common."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from tabs.shared.checks import QUIET_OPTIONS

GPU_OPTIONS: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_id": "gpu",
    "concurrency_limit": 1,
    # "once" loses a press for as long as the page has not heard that the stopped job is gone.
    "trigger_mode": "multiple",
}
"""Options of the jobs that take the GPU, one after the other."""


def build_job_buttons(label: str, run_id: str, stop_id: str) -> dict[str, Any]:
    """Build the row of the two buttons, which have these ids on the page: components by name."""
    with gr.Row():
        return {
            "run": gr.Button(label, variant="primary", scale=3, elem_id=run_id),
            "stop": gr.Button("Stop", variant="stop", elem_id=stop_id),
        }


def wire_stop_button(
    stop: gr.Button, running: list[Any], show_stopped: Callable[..., Any], inputs: Any, outputs: Any
) -> None:
    """Let the button cancel the events in `running`; `show_stopped` returns what the page then shows."""
    shown = {"fn": show_stopped, "inputs": inputs, "outputs": outputs, **QUIET_OPTIONS}
    # Shown twice: a step that was on its way to the page may arrive after the first.
    stop.click(**shown, cancels=running).then(**shown)
