"""The Sweep tab: a LoRA over strengths, a curve that grows, a grid that fills, and one sentence with the answer."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from core import charts, edit, gpu, limits, lora, presets, shelf
from core.blocks import BLOCKS
from core.events import Failed, Fetch, Opening, Step
from core.features import VAE
from core.markdown import plain, warned
from core.outcome import outcome, sheet
from core.plan import SEEDS, STRENGTHS, eyes, neutral, plan
from core.report import reported
from core.sweep import Study
from core.types import UserError
from tabs import brought
from tabs.files import new_folder
from tabs.generate import Opened
from tabs.widgets import WRITES, Measured, refusals, sentences

ASKED = ("lora_file", "shelf", "preset", "prompts", "seeds", "strengths", "references", "eye", "refine")
SHOWN = ("status", "answer", "curves", "sheet", "cells", "files", "result", "normalise", "next", "open")

ONE_A_LINE = "one a line"


class Swept(NamedTuple):
    """The components by which another tab puts a LoRA into this one."""

    lora_file: Any
    prompts: Any
    references: Any


def tab(opened: Opened, tabs: gr.Tabs) -> tuple[Swept, Measured]:
    """Lay out the tab and wire it; `opened` puts a picture's settings into the Generate tab of `tabs`."""
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            c = _controls()
        with gr.Column(scale=7, min_width=320):
            c |= _results()
    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    which = [c["lora_file"], c["shelf"]]
    gr.on([c["lora_file"].change, c["shelf"].input], _explained, which, c["explained"], **quiet)
    brought.wire(c, brought.into_file, c["lora_file"])
    c["preset"].input(_prompts_of, [c["preset"], c["prompts"]], c["prompts"], **quiet)
    job: dict[str, Any] = {
        "fn": _sweep,
        "inputs_kwargs": {name: c[name] for name in ASKED},
        "outputs": [c[name] for name in SHOWN],
        "validator": refusals(ASKED, lambda values: plan(_said(values)), {"lora": "lora_file"}),
        "show_progress": "hidden",
        "concurrency_id": "gpu",
        "concurrency_limit": 1,
        "trigger_mode": "multiple",  # "once" loses a press for as long as the page has not heard that the stopped job is gone
        "api_visibility": "private",
    }
    running = [c["run"].click(**job), c["next"].click(lambda result: result["report"]["next"], c["result"], c["strengths"], **quiet).then(**job)]
    stopped = {"fn": lambda: "Stopped. What was finished stays: press Sweep to go on.", "inputs": None, "outputs": c["status"]}
    c["stop"].click(**stopped, cancels=running, **quiet).then(**stopped, **quiet)
    c["normalise"].click(_normalised, c["result"], [c["edited"], c["said"]], **WRITES)
    c["write"].click(_written, [*which, c["keep"], c["blocks"], c["multiply"]], [c["written"], c["wrote"]], **WRITES)
    c["cells"].select(_chosen, c["result"], [c["chosen"], c["open"]], **quiet)

    def into_generate(result: dict[str, Any] | None, place: int, preset: str) -> list[Any]:
        if result is None or place >= len(result["cells"]):
            raise gr.Error("Choose a picture first.")
        values, said = opened.read(result["cells"][place], preset)
        strength = result["strengths"][place]
        if strength and "prompt" in values and not result["on_shelf"]:  # the page has the file, not a name for it
            values |= {"prompt": result["prompts"][place], "lora_file": result["lora"], "lora_strength": strength}
        return [gr.Tabs(selected="generate"), said, *(values.get(name, gr.skip()) for name in opened.names)]

    c["open"].click(into_generate, [c["result"], c["chosen"], opened.preset], [tabs, opened.said, *opened.components], **quiet)
    return Swept(c["lora_file"], c["prompts"], c["references"]), Measured(c["publish"], c["result"])


def _controls() -> dict[str, Any]:
    """The left side: components by name."""
    c: dict[str, Any] = {}
    first = next(iter(presets.recipes().values()))
    c["lora_file"] = gr.File(label="LoRA to sweep", file_types=[".safetensors"], height=110, elem_id="sweep-lora")
    c["shelf"] = gr.Dropdown(shelf.names(), value=None, label="Or one from the shelf", elem_id="sweep-shelf")
    c |= brought.lora_box("sweep-hub")
    with gr.Accordion("What the file says", open=True):
        c["explained"] = gr.Markdown("Choose a LoRA.", elem_id="explained")
    c["preset"] = gr.Dropdown([(r.title, r.name) for r in presets.recipes().values()], value=first.name, label="Preset", elem_id="sweep-preset")
    with gr.Row():
        info = "also 0, 0.5, 1 or 0-3.5 [15]; up to -5 and 5"
        c["strengths"] = gr.Textbox(STRENGTHS, label="Strengths", info=info, min_width=140, elem_id="strengths")
        c["seeds"] = gr.Textbox(SEEDS, label="Seeds", info="at least two", min_width=100, elem_id="seeds")
    c["prompts"] = gr.Textbox(_neutral(first.name), label="Prompts", info=ONE_A_LINE, lines=4, max_lines=16, elem_id="prompts")
    c["refine"] = gr.Checkbox(False, label="Refine: afterwards, look once more between the strengths where something changes")
    with gr.Accordion("How it is measured", open=False):
        kinds = [".png", ".jpg", ".jpeg", ".webp"]
        c["references"] = gr.File(label=f"Pictures of the wanted style, up to {limits.REFERENCES}", file_count="multiple", file_types=kinds, height=110)
        gr.Markdown(
            "With such pictures the sweet spot is where those of the LoRA come nearest to them; without, where its effect has come to most of its reach."
        )
        info = "the model's own VAE needs no download"
        c["eye"] = gr.Dropdown(eyes(), value=VAE, label="Seen by", info=info)
    with gr.Accordion("Write the file anew", open=False):
        gr.Markdown("Only alpha changes, and blocks that are not kept are left out.")
        c["keep"] = gr.Radio(list(edit.KEEP), value="all", label="Keep", info="content and style are B-LoRA's blocks")
        c["blocks"] = gr.Textbox("", label="Block weights", info=f"empty, or 12: {', '.join(BLOCKS)}", placeholder="1,1,1,1,1,1,1,1,1,1,1,1")
        c["multiply"] = gr.Number(1.0, label="The strength that becomes 1.0", minimum=edit.MULTIPLY[0], maximum=edit.MULTIPLY[1])
        c["write"] = gr.Button("Write", size="sm", elem_id="write")
        c["written"] = gr.File(label="The new file", interactive=False, visible=False, elem_id="written")
        c["wrote"] = gr.Markdown()
    return c


def _results() -> dict[str, Any]:
    """The right side: components by name."""
    c: dict[str, Any] = {}
    with gr.Row():
        c["run"] = gr.Button("Sweep", variant="primary", scale=3, elem_id="sweep")
        c["stop"] = gr.Button("Stop", variant="stop", elem_id="sweep-stop")
    c["status"] = gr.Markdown("Ready.", elem_id="sweep-status")
    c["answer"] = gr.Markdown(elem_id="answer")
    with gr.Row():
        c["normalise"] = gr.Button("Make 1.0 the sweet spot", visible=False, variant="primary", elem_id="normalise")
        c["next"] = gr.Button("Extend the range", visible=False, elem_id="next")
    c["said"] = gr.Markdown(elem_id="normalised")
    c["edited"] = gr.File(
        label="The LoRA with its new alpha, and its sidecar for A1111", file_count="multiple", interactive=False, visible=False, elem_id="edited"
    )
    c["curves"] = gr.Image(label="Curves", show_label=False, interactive=False, visible=False, format="png", elem_id="curves")
    c["sheet"] = gr.Image(label="Grid", show_label=False, interactive=False, visible=False, format="png", elem_id="sheet")
    c["cells"] = gr.Gallery(label="Every picture", columns=8, height=320, visible=False, object_fit="contain", format="png", elem_id="cells")
    c["open"] = gr.Button("Open this picture in Generate", visible=False, elem_id="open")
    c["files"] = gr.File(label="Everything: pictures, sheet, curves, report", file_count="multiple", interactive=False, visible=False, elem_id="files")
    c["publish"] = gr.Button("Take it into Publish", size="sm", elem_id="sweep-publish")
    c["result"] = gr.State(None)
    c["chosen"] = gr.State(0)
    return c


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """The tab's values as `core.plan` takes them."""
    file, name = values.get("lora_file"), values.get("shelf")
    return {**values, "lora": file or (str(shelf.path(name)) if name else None)}


def _neutral(preset: str) -> str:
    return "\n".join(neutral(presets.recipes()[preset]))


def _prompts_of(preset: str, prompts: str) -> Any:
    """The prompts of the preset, unless a person wrote others."""
    if prompts.strip() and prompts not in {_neutral(name) for name in presets.recipes()}:
        return gr.update(info=f"{ONE_A_LINE}; kept as you wrote them: empty it and choose the preset again for the preset's own")
    return gr.update(value=_neutral(preset), info=ONE_A_LINE)


def _explained(file: str | None, name: str | None) -> str:
    """What the chosen LoRA's file says, for a person."""
    try:
        path = _said({"lora_file": file, "shelf": name})["lora"]
        if not path:
            return "Choose a LoRA."
        told = gpu.inspected(lora.file(path))
    except UserError as error:
        return warned(str(error))
    facts = {
        "made for": f"{told['family']}{', trained on ' + told['base'] if told['base'] else ''}",
        "rank, alpha": f"{told['rank']}, {told['alpha']:g} (alpha/rank {told['scale']:g})",
        "changes": f"{told['modules']} layers in {', '.join(told['blocks'])}",
        "format": told["format"],
        "trigger": told["trigger"],
        "tags of its captions": ", ".join(list(told["tags"])[:8]),
        "resolution": told["resolution"],
    }
    rows = [f"- **{name}**: {plain(str(value))}" for name, value in facts.items() if value]
    largest = max(told["effective_norm"].items(), key=lambda each: each[1], default=None) if told["effective_norm"] else None
    rows += [f"- **largest change at strength 1**: {100 * largest[1]:.1f} % of the weights' norm, in {plain(largest[0])}"] if largest else []
    return "\n".join([f"**{plain(told['expect'])}**", "", *rows])


def _sweep(**values: Any) -> Iterator[tuple[Any, ...]]:
    """Run the sweep for the page: what `SHOWN` shows after each event."""
    skip, folder = gr.skip(), new_folder()
    asked = plan(_said(values))
    study, columns = Study(asked), 0
    rest = [skip] * (len(SHOWN) - 1)
    hidden = gr.update(visible=False)
    yield "Waiting for the model …", *rest  # a study from before stays until there is something of this one
    with sentences():
        for event in study.run():
            total = len(study.strengths) * len(study.items)
            if isinstance(event, Failed):
                yield warned(event.message), *rest
                raise gr.Error(event.message)
            if isinstance(event, Fetch | Opening):
                yield brought.arrived(event), *rest
            if isinstance(event, Step):
                yield f"Picture {len(study.pictures) + 1} of {total}, step {event.step} of {event.steps} · about {event.seconds_left:.0f} s left", *rest
            if len(study.measured) > columns:
                columns = len(study.measured)
                grown = gr.update(value=charts.curves(reported(study)), visible=True), gr.update(value=sheet(study), visible=True)
                yield f"{len(study.pictures)} of {total} pictures", "", *grown, hidden, hidden, None, hidden, hidden, hidden
        done = outcome(study, folder)
    report = done.report
    result = {
        "report": report,
        "lora": asked.lora.path,
        "on_shelf": not values.get("lora_file"),
        "cells": [str(file) for file, _ in done.cells],
        "strengths": [cell["strength"] for cell in report["cells"]],
        "prompts": [cell["prompt"] for cell in report["cells"]],
    }
    found = f", {study.found} of them found from before" if study.found else ""
    yield (
        f"{len(study.pictures)} pictures in {study.seconds:.1f} s{found}.",
        _answer(report),
        gr.update(value=str(done.curves), visible=True),
        gr.update(value=str(done.sheet), visible=True),
        gr.update(value=[(str(file), label) for file, label in done.cells], visible=True),
        gr.update(value=[str(file) for file in (done.archive, done.table, done.sidecar)], visible=True),
        result,
        gr.update(visible=report["normalise_by"] is not None),
        gr.update(visible=report["next"] is not None, value=f"Sweep {report['next']}"),
        hidden,
    )


def _answer(report: dict[str, Any]) -> str:
    """The sentence, and how sure it is."""
    lines = [f"### {plain(report['why'])}"]
    if report["recommended"] is not None:
        shown = {"onset": "onset", "sweet_spot_low": "begins", "sweet_spot_high": "ends", "breakdown": "breakdown"}
        ends = [f"{shown[name]} {low:g} to {high:g}" for name, (low, high) in report["intervals"].items()]
        pictures = len(report["seeds"]) * len(report["prompts"])
        lines.append(
            f"Confidence {100 * report['confidence']:.0f} %. 95 % intervals over {pictures} pictures a strength ({len(report['seeds'])} seeds x "
            f"{len(report['prompts'])} prompts): {'; '.join(ends)}."
        )
    lines += [f"- {plain(why)}" for name, why in report["unmeasured"].items() if name != "style"]
    return "\n\n".join(lines)


def _normalised(result: dict[str, Any] | None) -> tuple[Any, str]:
    """The LoRA with the alpha that makes the recommended strength 1.0."""
    if not result or not (times := result["report"]["normalise_by"]):
        return gr.skip(), "No sweet spot was found, so there is nothing to make 1.0."
    try:
        source = lora.file(result["lora"])
        file = edit.edited(source, new_folder(), multiply=times, hint=edit.hint(result["report"], times))
    except UserError as error:
        return gr.skip(), warned(str(error))
    beside = file.with_suffix(".json")
    beside.write_text(json.dumps(edit.sidecar(source, result["report"], times), indent=1), encoding="utf-8")
    return gr.update(value=[str(file), str(beside)], visible=True), f"In this file strength 1.0 is what {times:g} was. Only alpha was changed."


def _written(file: str | None, name: str | None, keep: str, blocks: str, multiply: float) -> tuple[Any, str]:
    """The chosen LoRA with other blocks or another alpha."""
    try:
        path = _said({"lora_file": file, "shelf": name})["lora"]
        if not path:
            raise UserError("lora: choose one first.")
        return gr.update(value=str(edit.edited(lora.file(path), new_folder(), multiply, blocks.strip() or None, keep)), visible=True), "Written."
    except UserError as error:
        return gr.skip(), warned(str(error))


def _chosen(result: dict[str, Any] | None, event: gr.SelectData) -> tuple[int, Any]:
    return int(event.index), gr.update(visible=result is not None)
