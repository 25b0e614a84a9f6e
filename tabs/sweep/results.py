"""What a sweep shows: the verdict, curves and images."""

from typing import Any

import gradio as gr

from core.sweep import charts, words
from core.sweep.calibration import describe_calibration
from core.sweep.character import format_character
from core.sweep.decide import LEVEL
from core.sweep.report import SweepFiles, build_sweep_report, draw_sweep_sheet
from core.sweep.study import SweepStudy
from core.system.markdown import escape_markdown
from tabs.shared.job_buttons import build_job_buttons

RESCALE_LABELS = {
    "works": "Rescale: make 1.0 the sweet spot",
    "changes": "Rescale: make 1.0 the middle",
}
"""Answer of a verdict with a range -> what the button says."""


def build_results() -> dict[str, Any]:
    """Build the right side: components by name."""
    c = build_job_buttons("Sweep", "sweep", "sweep-stop")
    c["status"] = gr.Markdown("Ready.", elem_id="sweep-status")
    c["answer"] = gr.Markdown(elem_id="answer")
    with gr.Row():
        c["normalise"] = gr.Button(
            RESCALE_LABELS["works"], visible=False, variant="primary", elem_id="normalise"
        )
        c["next"] = gr.Button("Extend the range", visible=False, elem_id="next")
    c["rescale_message"] = gr.Markdown(elem_id="normalised")
    c["rescaled_files"] = gr.File(
        label="Rescaled LoRA + A1111 .json",
        file_count="multiple",
        interactive=False,
        visible=False,
        elem_id="edited",
    )
    c["curves"] = gr.Image(
        label="Curves", show_label=False, interactive=False, visible=False, format="png", elem_id="curves"
    )
    c["sheet"] = gr.Image(
        label="Grid", show_label=False, interactive=False, visible=False, format="png", elem_id="sheet"
    )
    c["cells"] = gr.Gallery(
        label="All images",
        columns=8,
        height=320,
        visible=False,
        object_fit="contain",
        format="png",
        elem_id="cells",
    )
    c["open"] = gr.Button("Send to Generate", visible=False, elem_id="open")
    c["files"] = gr.File(
        label="Downloads", file_count="multiple", interactive=False, visible=False, elem_id="files"
    )
    c["publish"] = gr.Button("Send to Publish", size="sm", elem_id="sweep-publish")
    c["result"] = gr.State(None)
    c["chosen"] = gr.State(0)
    return c


def show_growing(study: SweepStudy) -> dict[str, Any]:
    """Return what the page shows of a study that goes on."""
    return {
        "answer": "",
        "curves": gr.update(value=charts.draw_curves(build_sweep_report(study)), visible=True),
        "sheet": gr.update(value=draw_sweep_sheet(study), visible=True),
        "result": None,
        **dict.fromkeys(("cells", "files", "normalise", "next", "open"), gr.update(visible=False)),
    }


def show_result(done: SweepFiles, lora_path: str, on_shelf: bool) -> dict[str, Any]:
    """Return what the page shows of a study that is done."""
    report = done.report
    has_pictures = bool(done.cells)  # none are made for a LoRA that changes nothing
    return {
        "answer": format_answer(report),
        "curves": gr.update(value=str(done.curves), visible=has_pictures),
        "sheet": gr.update(value=str(done.sheet), visible=has_pictures),
        "cells": gr.update(value=[(str(file), label) for file, label in done.cells], visible=has_pictures),
        "files": gr.update(
            value=[str(file) for file in (done.archive, done.table, done.sidecar)], visible=True
        ),
        "result": {
            "report": report,
            "lora": lora_path,
            "on_shelf": on_shelf,
            "archive": str(done.archive),
            "cells": [str(file) for file, _ in done.cells],
            "strengths": [cell["strength"] for cell in report["cells"]],
            "prompts": [cell["prompt"] for cell in report["cells"]],
        },
        "normalise": gr.update(
            visible=report["normalise_by"] is not None, value=RESCALE_LABELS.get(report["answer"])
        ),
        "next": gr.update(visible=report["next"] is not None, value=f"Sweep {report['next']}"),
        "open": gr.update(visible=False),
    }


def format_answer(report: dict[str, Any]) -> str:
    """Return the verdict: three numbers, the reason, how sure it is, and what would make it surer."""
    headline = words.format_headline(report)
    lines = [f"### {escape_markdown(headline)}"] if headline else []
    lines.append(escape_markdown(report["why"]) if headline else f"### {escape_markdown(report['why'])}")
    if headline:
        lines.append(
            f"{words.describe_confidence(report['confidence']).capitalize()} that other prompts and seeds "
            f"agree. {words.describe_basis(report)}"
        )
    if intervals := words.describe_intervals(report):
        level = report.get("thresholds", {}).get("level", LEVEL)  # of each look, where there are several
        lines.append(f"{100 * level:.0f} % intervals: {intervals}.")
    if report["surer"]:
        lines.append(escape_markdown(report["surer"]))
    if report["probe"] and report["strengths"]:
        found = ", ".join(f"{strength:g}" for strength in report["strengths"])
        lines.append(f"Strengths found: {found}.")
    if report["character"]:
        lines.append(f"**What it is.** {escape_markdown(format_character(report['character']))}")
    # Nobody asked for references, and the answer itself tells of the others.
    silent = ("style", "trigger", "character")
    lines += [f"- {escape_markdown(why)}" for name, why in report["unmeasured"].items() if name not in silent]
    lines += [f"- {escape_markdown(note)}" for note in report["notes"]]
    lines += [f"- {limit}"] if (limit := describe_calibration(report["model"])) else []
    return "\n\n".join(lines)
