"""The Sweep tab: a LoRA over strengths.

A curve grows, a grid fills, and one verdict gives the answer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from core.runtime import gpu
from core.schema.errors import UserError
from core.schema.events import DownloadProgress, Failed, LoadProgress, ModelChange, Step
from core.sweep.plan import (
    SweepForm,
    plan_sweep,
)
from core.sweep.report import export_sweep
from core.sweep.study import SweepStudy
from tabs.server.call_wrapper import show_refusal
from tabs.server.page_files import create_folder
from tabs.shared import hub_fetch
from tabs.shared.checks import (
    QUIET_OPTIONS,
    READ_OPTIONS,
    make_plan_validator,
    translate_errors,
)
from tabs.shared.handoff import GenerateHandoff, ReportHandoff, SweepHandoff
from tabs.shared.job_buttons import GPU_OPTIONS, wire_stop_button
from tabs.shared.lora_choices import find_chosen_lora, list_lora_choices
from tabs.shared.model_choices import (
    list_optional_models,
)
from tabs.shared.updates import answer_by_name, refresh_choices
from tabs.sweep.controls import (
    FILLED_NAMES,
    build_controls,
    describe_lora,
    fill_in_choice,
    fill_in_references,
    list_budgets,
    match_preset,
)
from tabs.sweep.edit_panel import wire_files
from tabs.sweep.results import build_results, show_growing, show_result

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
REFERENCE_NAMES = ("lora_file", "shelf", "references", "found_references")
BROUGHT_NAMES = ("lora_file", "shelf", "preset", "model", "model_note", "prompts", "seeds", "status")
"""What an image of the Generate tab fills in."""


def build_tab(
    generate_handoff: GenerateHandoff, tabs: gr.Tabs
) -> tuple[SweepHandoff, ReportHandoff, dict[str, Any]]:
    """Lay out the tab and connect it; the last of what it returns are its controls by name.

    `generate_handoff` puts a picture's settings into the Generate tab of `tabs`, and brings its images here.
    """
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            c = build_controls()
        with gr.Column(scale=7, min_width=320):
            c |= build_results()
    _wire_controls(c, generate_handoff, tabs)
    _wire_study(c)
    wire_files(c)
    _wire_cells(c, generate_handoff, tabs)
    return (
        SweepHandoff(
            *(c[name] for name in ("lora_file", "preset", "model", "references", "found_references"))
        ),
        ReportHandoff(c["publish"], c["result"]),
        {name: c[name] for name in INPUT_NAMES},
    )


def _wire_controls(c: dict[str, Any], generate_handoff: GenerateHandoff, tabs: gr.Tabs) -> None:
    """Connect what chooses a LoRA and a preset: a person here, or an image of the Generate tab."""
    brought = [
        picture.sweep_button.click(
            inputs=[*picture.inputs, c["preset"]],
            **answer_by_name(picture.read, {"tabs": tabs, **{name: c[name] for name in BROUGHT_NAMES}}),
            **READ_OPTIONS,
        ).success
        for picture in generate_handoff.pictures
    ]
    chosen = [c["lora_file"].change, c["shelf"].input, *brought]
    for event in chosen:
        event(describe_lora, [c["lora_file"], c["shelf"]], c["lora_facts"], **QUIET_OPTIONS)
        event(
            inputs_kwargs={name: c[name] for name in REFERENCE_NAMES},
            **answer_by_name(
                fill_in_references, {name: c[name] for name in (*REFERENCE_NAMES[2:], "references_note")}
            ),
            trigger_mode="always_last",
            **READ_OPTIONS,
        )
    refresh_choices(c["model"].focus, c["model"], list_optional_models)
    matched = c["model"].input(
        match_preset, [c["model"], c["preset"]], [c["preset"], c["model_note"]], **QUIET_OPTIONS
    )
    for event in (*chosen, c["preset"].input, c["budget"].input, matched.then):
        event(
            inputs_kwargs={
                name: c[name]
                for name in (
                    *("lora_file", "shelf", "preset", "model", "budget", "seeds", "filled"),
                    *FILLED_NAMES,
                )
            },
            **answer_by_name(
                fill_in_choice, {name: c[name] for name in ("lora_line", "budget", "filled", *FILLED_NAMES)}
            ),
            **READ_OPTIONS,
        )
    for event in (c["seeds"].blur, c["strengths"].blur):
        event(
            lambda *values: gr.update(choices=list_budgets(*values)),
            [c[name] for name in ("preset", "model", "seeds", "strengths")],
            c["budget"],
            **QUIET_OPTIONS,
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


def _build_form(values: Mapping[str, Any]) -> SweepForm:
    """Return what the tab asks for. Raises `UserError` if the LoRA cannot be found."""
    shared = {
        name: values[name]
        for name in INPUT_NAMES
        if name not in ("lora_file", "shelf") and values[name] is not None
    }
    return SweepForm(lora=find_chosen_lora(values["lora_file"], values["shelf"]), **shared)


def _sweep(**values: Any) -> Iterator[dict[str, Any]]:
    """Run the sweep for the page, and yield after each event what changes of `OUTPUT_NAMES`."""
    folder = create_folder()
    asked = plan_sweep(_build_form(values))
    study, shown = SweepStudy(asked), (0, 0)
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
            # A later look has more prompts, and measures all strengths anew.
            if study.columns and shown != (grown := (len(study.prompts), len(study.columns))):
                shown = grown
                yield {"status": f"{len(study.pictures)} of {total} images", **show_growing(study)}
        done = export_sweep(study, folder)
    found = f" ({study.cells_found} reused)" if study.cells_found else ""
    yield {
        "status": f"{len(study.pictures)} images in {study.seconds:.1f} s{found}.",
        **show_result(done, asked.lora.path, on_shelf=not values.get("lora_file")),
    }


def _select_cell(result: dict[str, Any] | None, event: gr.SelectData) -> tuple[int, Any]:
    return int(event.index), gr.update(visible=result is not None)
