"""The Sweep tab: a LoRA over strengths.

A curve grows, a grid fills, and one sentence gives the answer.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from core.generate.features import VAE
from core.lora import apply as lora
from core.lora import edit
from core.lora.blocks import BLOCKS
from core.prompts.neutral import compose_neutral_prompts, insert_trigger
from core.runtime import gpu
from core.schema import limits, presets
from core.schema.errors import UserError
from core.schema.events import DownloadProgress, Failed, LoadProgress, ModelChange, Step
from core.sweep import charts, words
from core.sweep.plan import (
    BUDGETS,
    DEFAULT_BUDGET,
    DEFAULT_SEEDS,
    SweepForm,
    list_feature_extractors,
    plan_sweep,
    suggest_strengths,
)
from core.sweep.report import SweepFiles, build_sweep_report, draw_sweep_sheet, export_sweep
from core.sweep.study import SweepStudy
from core.system.markdown import escape_markdown
from tabs.server.call_wrapper import show_refusal
from tabs.server.page_files import create_folder
from tabs.shared import hub_fetch
from tabs.shared.checks import (
    QUIET_OPTIONS,
    READ_OPTIONS,
    WRITE_OPTIONS,
    make_plan_validator,
    translate_errors,
)
from tabs.shared.handoff import GenerateHandoff, ReportHandoff, SweepHandoff
from tabs.shared.job_buttons import GPU_OPTIONS, build_job_buttons, wire_stop_button
from tabs.shared.lora_choices import describe_choice, find_chosen_lora, list_lora_choices
from tabs.shared.model_choices import (
    PRESET_MODEL,
    find_fitting_preset,
    list_optional_models,
    name_model,
)
from tabs.shared.updates import answer_by_name, refresh_choices

INPUT_NAMES = (
    "lora_file",
    "shelf",
    "preset",
    "model",
    "budget",
    "prompts",
    "seeds",
    "strengths",
    "references",
    "feature_extractor",
    "refine",
)
OUTPUT_NAMES = (
    "status",
    "answer",
    "curves",
    "sheet",
    "cells",
    "files",
    "result",
    "normalise",
    "next",
    "open",
)

FILLED_NAMES = ("strengths", "prompts")
"""The texts that the choice of a LoRA and of a preset fills in."""
PROMPTS_INFO = "one per line; four or more for a verdict, and other prompts tell more than other seeds"
BUDGET_INFO = (
    "Quick: 4 prompts, a verdict where the LoRA breaks clearly. Standard: up to 8. Full: up to 16, the "
    "narrowest intervals. A sweep ends earlier where the verdict stands."
)
PROMPTS_KEPT = "; your prompts were kept: to use the preset's, clear them and choose the preset again"


def build_tab(
    generate_handoff: GenerateHandoff, tabs: gr.Tabs
) -> tuple[SweepHandoff, ReportHandoff, dict[str, Any]]:
    """Lay out the tab and connect it; the last that is returned are its controls by name.

    `generate_handoff` puts a picture's settings into the Generate tab of `tabs`.
    """
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            c = _build_controls()
        with gr.Column(scale=7, min_width=320):
            c |= _build_results()
    _wire_controls(c)
    _wire_study(c)
    _wire_files(c)
    _wire_cells(c, generate_handoff, tabs)
    swept = SweepHandoff(c["lora_file"], c["prompts"], c["references"])
    return swept, ReportHandoff(c["publish"], c["result"]), {name: c[name] for name in INPUT_NAMES}


def _wire_controls(c: dict[str, Any]) -> None:
    """Connect what chooses a LoRA and a preset."""
    gr.on(
        [c["lora_file"].change, c["shelf"].input],
        _describe_lora,
        [c["lora_file"], c["shelf"]],
        c["lora_facts"],
        **QUIET_OPTIONS,
    )
    refresh_choices(c["model"].focus, c["model"], list_optional_models)
    matched = c["model"].input(
        _match_preset, [c["model"], c["preset"]], [c["preset"], c["model_note"]], **QUIET_OPTIONS
    )
    chosen = (
        c["lora_file"].change,
        c["shelf"].input,
        c["preset"].input,
        c["budget"].input,
        matched.then,
    )
    for event in chosen:
        event(
            inputs_kwargs={
                name: c[name]
                for name in ("lora_file", "shelf", "preset", "model", "budget", "filled", *FILLED_NAMES)
            },
            **answer_by_name(
                _fill_in_choice, {name: c[name] for name in ("lora_line", "filled", *FILLED_NAMES)}
            ),
            **READ_OPTIONS,
        )
    hub_fetch.wire(c, hub_fetch.fetch_lora_to_file, c["lora_file"])
    refresh_choices(c["shelf"].focus, c["shelf"], list_lora_choices)


def _wire_study(c: dict[str, Any]) -> None:
    """Connect the buttons that sweep, extend the range and stop."""
    job: dict[str, Any] = {
        **answer_by_name(_sweep, {name: c[name] for name in OUTPUT_NAMES}),
        "inputs_kwargs": {name: c[name] for name in INPUT_NAMES},
        "validator": make_plan_validator(
            INPUT_NAMES, lambda values: plan_sweep(_build_form(values)), {"lora": "lora_file"}
        ),
        **GPU_OPTIONS,
    }
    running = [
        c["run"].click(**job),
        c["next"]
        .click(lambda result: result["report"]["next"], c["result"], c["strengths"], **QUIET_OPTIONS)
        .then(**job),
    ]
    sentence = "Stopped. Finished images are kept. Press Sweep to continue."
    wire_stop_button(c["stop"], running, lambda: sentence, None, c["status"])


def _wire_files(c: dict[str, Any]) -> None:
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


def _wire_cells(c: dict[str, Any], generate_handoff: GenerateHandoff, tabs: gr.Tabs) -> None:
    """Connect the images: the chosen one can be opened in the Generate tab."""
    c["cells"].select(_select_cell, c["result"], [c["chosen"], c["open"]], **QUIET_OPTIONS)
    filled = generate_handoff.components

    def open_in_generate(result: dict[str, Any] | None, place: int, preset: str) -> dict[str, Any]:
        if result is None or place >= len(result["cells"]):
            raise gr.Error("Choose an image first.")
        values, said = generate_handoff.load_settings(result["cells"][place], preset)
        strength = result["strengths"][place]
        # The page has the file of an uploaded LoRA, not a name for it.
        if strength and "prompt" in values and not result["on_shelf"]:
            values |= {
                "prompt": result["prompts"][place],
                "lora_file": result["lora"],
                "lora_strength": strength,
            }
        return {
            "tabs": gr.Tabs(selected="generate"),
            "message": said,
            **{name: values[name] for name in filled if name in values},
        }

    c["open"].click(
        inputs=[c["result"], c["chosen"], generate_handoff.preset],
        **answer_by_name(open_in_generate, {"tabs": tabs, "message": generate_handoff.message, **filled}),
        **QUIET_OPTIONS,
    )


def _build_controls() -> dict[str, Any]:
    """Build the left side: components by name."""
    c: dict[str, Any] = {}
    first = next(iter(presets.get_prompt_presets().values()))
    c["lora_file"] = gr.File(
        label="LoRA to sweep", file_types=[".safetensors"], height=110, elem_id="sweep-lora"
    )
    c["shelf"] = gr.Dropdown(list_lora_choices(), value=None, label="LoRA library", elem_id="sweep-shelf")
    c["lora_line"] = gr.HTML(elem_id="sweep-lora-line", padding=False)
    c |= hub_fetch.build_lora_box("sweep-hub")
    with gr.Accordion("About this LoRA", open=True):
        c["lora_facts"] = gr.Markdown("Choose a LoRA.", elem_id="explained")
    c["preset"] = gr.Dropdown(
        [(r.title, r.name) for r in presets.get_prompt_presets().values()],
        value=first.name,
        label="Preset",
        elem_id="sweep-preset",
    )
    c["model"] = gr.Dropdown(list_optional_models(), value=PRESET_MODEL, label="Model", elem_id="sweep-model")
    c["model_note"] = gr.Markdown(elem_id="sweep-model-note")
    with gr.Row():
        info = "e.g. 0-3.5 (+0.25), 0-3.5 [15], or 0, 0.5, 1; from -5 to 5; empty: found for this LoRA"
        c["strengths"] = gr.Textbox(
            "", label="Strengths", placeholder="automatic", info=info, min_width=140, elem_id="strengths"
        )
        c["seeds"] = gr.Textbox(
            DEFAULT_SEEDS, label="Seeds", info="two or more for a verdict", min_width=100, elem_id="seeds"
        )
    c["budget"] = gr.Radio(list(BUDGETS), value=DEFAULT_BUDGET, label="Budget", info=BUDGET_INFO)
    c["prompts"] = gr.Textbox(
        _format_neutral_prompts(first.name),
        label="Prompts",
        info=PROMPTS_INFO,
        lines=4,
        max_lines=16,
        elem_id="prompts",
    )
    # Held in the page, which a restart of the app leaves as it is.
    c["filled"] = gr.JSON({name: c[name].value for name in FILLED_NAMES}, visible=False)
    c["refine"] = gr.Checkbox(False, label="Refine: add strengths around the turning points")
    return c | _build_measure_panel() | _build_edit_panel()


def _build_measure_panel() -> dict[str, Any]:
    """Build the panel 'How it is measured': components by name."""
    c: dict[str, Any] = {}
    with gr.Accordion("How it is measured", open=False):
        kinds = [".png", ".jpg", ".jpeg", ".webp"]
        c["references"] = gr.File(
            label=f"Reference images of target style (up to {limits.REFERENCES})",
            file_count="multiple",
            file_types=kinds,
            height=110,
        )
        gr.Markdown(
            "With references, the verdict says where the LoRA looks most like them. Without, it says where "
            "the LoRA changes the images while everything holds: change alone is not quality."
        )
        info = "the model's own VAE needs no download"
        c["feature_extractor"] = gr.Dropdown(
            list_feature_extractors(), value=VAE, label="Feature extractor", info=info
        )
    return c


def _build_edit_panel() -> dict[str, Any]:
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


def _build_results() -> dict[str, Any]:
    """Build the right side: components by name."""
    c = build_job_buttons("Sweep", "sweep", "sweep-stop")
    c["status"] = gr.Markdown("Ready.", elem_id="sweep-status")
    c["answer"] = gr.Markdown(elem_id="answer")
    with gr.Row():
        c["normalise"] = gr.Button(
            "Rescale: make 1.0 the sweet spot", visible=False, variant="primary", elem_id="normalise"
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


def _build_form(values: Mapping[str, Any]) -> SweepForm:
    """Return what the tab asks for. Raises `UserError` if the LoRA cannot be found."""
    shared = {
        name: values[name]
        for name in INPUT_NAMES
        if name not in ("lora_file", "shelf") and values[name] is not None
    }
    return SweepForm(lora=find_chosen_lora(values["lora_file"], values["shelf"]), **shared)


def _format_neutral_prompts(preset: str, trigger: str = "", budget: str = DEFAULT_BUDGET) -> str:
    prompts = compose_neutral_prompts(presets.get_prompt_presets()[preset])[: BUDGETS[budget]]
    return "\n".join(insert_trigger(prompt, trigger) for prompt in prompts)


def _match_preset(model: str, preset: str) -> tuple[Any, str]:
    """Return the preset that fits the chosen model, and why."""
    if not model:
        return gr.skip(), ""
    fitting, said = find_fitting_preset(model)
    return (gr.skip() if fitting.name == preset else fitting.name), said


def _fill_in_choice(
    lora_file: str | None,
    shelf: str | None,
    preset: str,
    model: str,
    budget: str,
    filled: dict[str, str],
    **texts: str,
) -> dict[str, Any]:
    """Return what choosing a LoRA, a preset, a model or a budget changes: facts, prompts and strengths.

    The prompts are the preset's with the LoRA's trigger, the strengths go around the one that is known to
    work; where none is known, the sweep finds them. A text that is not as the page `filled` it is a
    person's own and stays.
    """
    with translate_errors():
        line, facts = describe_choice(find_chosen_lora(lora_file, shelf), name_model(model, preset))
    known = facts.strength.value if facts and facts.strength else None
    fresh = {
        "strengths": suggest_strengths(known),
        "prompts": _format_neutral_prompts(preset, facts.trigger or "" if facts else "", budget),
    }
    own = {name for name, text in texts.items() if text.strip() and text != filled[name]}
    # What is as it should be is not written again, over what a person writes meanwhile.
    changed = {name: text for name, text in fresh.items() if name not in own and text != texts[name]}
    info = PROMPTS_INFO + (PROMPTS_KEPT if "prompts" in own and texts["prompts"] != fresh["prompts"] else "")
    new = changed.get("prompts")
    prompts = gr.update(info=info) if new is None else gr.update(value=new, info=info)
    return {"lora_line": line, **changed, "prompts": prompts, "filled": {**filled, **changed}}


def _describe_lora(file: str | None, name: str | None) -> str:
    """Describe the file of the chosen LoRA for a person."""
    try:
        path = find_chosen_lora(file, name)
        if not path:
            return "Choose a LoRA."
        told = gpu.inspect_with_model(lora.get_lora_file(path))
    except UserError as error:
        return show_refusal(error)
    facts = {
        "made for": f"{told['family']}{', trained on ' + told['base'] if told['base'] else ''}",
        "rank, alpha": f"{told['rank']}, {told['alpha']:g} (alpha/rank {told['scale']:g})",
        "affects": f"{told['modules']} layers ({', '.join(told['blocks'])})",
        "format": told["format"],
        "trigger word": told["trigger"],
        "top training tags": ", ".join(list(told["tags"])[:8]),
        "resolution": str(told["resolution"] or "").strip("()").replace(", ", " x "),
    }
    rows = [f"- **{name}**: {escape_markdown(str(value))}" for name, value in facts.items() if value]
    largest = (
        max(told["effective_norm"].items(), key=lambda each: each[1], default=None)
        if told["effective_norm"]
        else None
    )
    rows += (
        [
            f"- **relative weight change at 1.0**: up to {100 * largest[1]:.1f} % "
            f"({escape_markdown(largest[0])})"
        ]
        if largest
        else []
    )
    return "\n".join([f"**{escape_markdown(told['expect'])}**", "", *rows])


def _sweep(**values: Any) -> Iterator[dict[str, Any]]:
    """Run the sweep for the page, and yield after each event what changes of `OUTPUT_NAMES`."""
    folder = create_folder()
    asked = plan_sweep(_build_form(values))
    study, columns = SweepStudy(asked), 0
    # A study from before stays until there is something of this one.
    yield {"status": "Loading the model …"}
    with translate_errors():
        for event in study.run(gpu.generate_on_gpu):
            total = len(study.strengths) * len(study.items)
            if isinstance(event, Failed):
                yield {"status": show_refusal(UserError(None, event.message))}
                raise gr.Error(event.message)
            if isinstance(event, DownloadProgress | LoadProgress):
                yield {"status": hub_fetch.describe_progress(event)}
            if isinstance(event, ModelChange):
                yield {"status": f"Finding the strengths: {event.strength:.3g} tried."}
            elif isinstance(event, Step) and not study.strengths:
                yield {"status": f"Finding the strengths · about {event.seconds_left:.0f} s left"}
            elif isinstance(event, Step):
                place = f"Image {len(study.pictures) + 1} of {total}, step {event.step} of {event.steps}"
                yield {"status": f"{place} · about {event.seconds_left:.0f} s left"}
            if len(study.measurements) > columns:
                columns = len(study.measurements)
                yield {"status": f"{len(study.pictures)} of {total} images", **_show_growing(study)}
        done = export_sweep(study, folder)
    found = f" ({study.cells_found} reused)" if study.cells_found else ""
    yield {
        "status": f"{len(study.pictures)} images in {study.seconds:.1f} s{found}.",
        **_show_result(done, asked.lora.path, on_shelf=not values.get("lora_file")),
    }


def _show_growing(study: SweepStudy) -> dict[str, Any]:
    """Return what the page shows of a study that goes on."""
    return {
        "answer": "",
        "curves": gr.update(value=charts.draw_curves(build_sweep_report(study)), visible=True),
        "sheet": gr.update(value=draw_sweep_sheet(study), visible=True),
        "result": None,
        **dict.fromkeys(("cells", "files", "normalise", "next", "open"), gr.update(visible=False)),
    }


def _show_result(done: SweepFiles, lora_path: str, on_shelf: bool) -> dict[str, Any]:
    """Return what the page shows of a study that is done."""
    report = done.report
    has_pictures = bool(done.cells)  # none are made for a LoRA that changes nothing
    return {
        "answer": _format_answer(report),
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
            "cells": [str(file) for file, _ in done.cells],
            "strengths": [cell["strength"] for cell in report["cells"]],
            "prompts": [cell["prompt"] for cell in report["cells"]],
        },
        "normalise": gr.update(visible=report["normalise_by"] is not None),
        "next": gr.update(visible=report["next"] is not None, value=f"Sweep {report['next']}"),
        "open": gr.update(visible=False),
    }


def _format_answer(report: dict[str, Any]) -> str:
    """Return the verdict: three numbers, the reason, how sure it is, and what would make it surer."""
    headline = words.format_headline(report)
    lines = [f"### {escape_markdown(headline)}"] if headline else []
    lines.append(escape_markdown(report["why"]) if headline else f"### {escape_markdown(report['why'])}")
    if headline:
        lines.append(
            f"{words.describe_confidence(report['confidence']).capitalize()} that other prompts and seeds "
            f"agree. {words.describe_basis(report)}"
        )
    if report["intervals"]:
        lines.append(f"95 % intervals: {words.describe_intervals(report)}.")
    if report["surer"]:
        lines.append(escape_markdown(report["surer"]))
    if report["probe"] and report["strengths"]:
        found = ", ".join(f"{strength:g}" for strength in report["strengths"])
        lines.append(f"Strengths found: {found}.")
    lines += [f"- {escape_markdown(why)}" for name, why in report["unmeasured"].items() if name != "style"]
    lines += [f"- {escape_markdown(note)}" for note in report["notes"]]
    return "\n\n".join(lines)


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


def _select_cell(result: dict[str, Any] | None, event: gr.SelectData) -> tuple[int, Any]:
    return int(event.index), gr.update(visible=result is not None)
