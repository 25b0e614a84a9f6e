"""The panel 'More than strength' below the Sweep tab: other settings, two at once, and two LoRAs together."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gradio as gr

from core.runtime import gpu
from core.schema import limits
from core.schema.errors import UserError
from core.schema.events import DownloadProgress, Failed, LoadProgress, Step
from core.schema.records import read_form
from core.sweep import words
from core.sweep.axes import AXES
from core.sweep.axes_report import build_axes_report, build_pair_report, export_axes
from core.sweep.axes_study import AxesForm, AxesPlan, AxesStudy, PairForm, plan_axes, plan_pair
from core.system.markdown import escape_markdown
from tabs.server.call_wrapper import show_refusal
from tabs.server.page_files import create_folder
from tabs.shared import hub_fetch
from tabs.shared.checks import QUIET_OPTIONS, make_plan_validator, translate_errors
from tabs.shared.job_buttons import GPU_OPTIONS, wire_stop_button
from tabs.shared.lora_choices import find_chosen_lora, list_lora_choices
from tabs.shared.updates import answer_by_name, refresh_choices

SHARED_NAMES = ("preset", "model", "budget", "prompts", "seeds", "references", "feature_extractor")
"""What the panel takes from the Sweep tab, besides the LoRA."""
OWN_NAMES = ("axis", "values", "axis2", "values2")
OUTPUT_NAMES = ("status", "answer", "chart", "sheet", "files")
CONTROLS = {"lora": "lora_file", "lora2": "shelf2"}
"""Field of a form -> its control, where that has another name."""


def build_panel(sweep_controls: Mapping[str, Any]) -> None:
    """Lay out the panel and connect it. LoRA, prompts, seeds and references are the Sweep tab's, by name."""
    with gr.Accordion("More than strength", open=False, elem_id="axes"):
        c = _build_controls() | _build_results()
    inputs = {**{name: sweep_controls[name] for name in ("lora_file", "shelf", *SHARED_NAMES)}, **c}
    pair_names = ("lora_file", "shelf", "shelf2", "strength", "strength2", *SHARED_NAMES)
    jobs = (
        (c["vary"], _vary, _plan_axes, (*pair_names, *OWN_NAMES)),
        (c["compare"], _compare, _plan_pair, pair_names),
    )
    running = [
        button.click(
            inputs_kwargs={name: inputs[name] for name in names},
            validator=make_plan_validator(names, plan, CONTROLS),
            **answer_by_name(handler, {name: c[name] for name in OUTPUT_NAMES}),
            **GPU_OPTIONS,
        )
        for button, handler, plan, names in jobs
    ]
    wire_stop_button(c["stop"], running, lambda: "Stopped. Finished images are kept.", None, c["status"])
    for axis, values in (("axis", "values"), ("axis2", "values2")):
        c[axis].input(lambda name: AXES[name].default if name else "", c[axis], c[values], **QUIET_OPTIONS)
    refresh_choices(c["shelf2"].focus, c["shelf2"], list_lora_choices)


def _build_controls() -> dict[str, Any]:
    """Build what a person chooses: components by name."""
    c: dict[str, Any] = {}
    gr.Markdown("With the LoRA, prompts, seeds and references above, each value against the preset's.")
    names = [(axis.label, axis.name) for axis in AXES.values()]
    first = next(iter(AXES.values()))
    with gr.Row():
        c["axis"] = gr.Dropdown(names, value=first.name, label="Vary", elem_id="axis")
        c["values"] = gr.Textbox(first.default, label="Values", elem_id="axis-values")
        c["axis2"] = gr.Dropdown([("nothing", ""), *names], value="", label="And, as a map", elem_id="axis2")
        c["values2"] = gr.Textbox("", label="Its values", elem_id="axis2-values")
    with gr.Row():
        info = "empty: known to work, or 1"
        low, high = limits.STRENGTH
        c["strength"] = gr.Number(None, label="LoRA's strength", info=info, minimum=low, maximum=high)
        c["shelf2"] = gr.Dropdown(list_lora_choices(), value=None, label="Second LoRA", elem_id="shelf2")
        c["strength2"] = gr.Number(None, label="Its strength", info=info, minimum=low, maximum=high)
    with gr.Row():
        c["vary"] = gr.Button("Vary", variant="primary", elem_id="axes-run")
        c["compare"] = gr.Button("Do these two LoRAs get along?", elem_id="axes-compare")
        c["stop"] = gr.Button("Stop", variant="stop", elem_id="axes-stop")
    return c


def _build_results() -> dict[str, Any]:
    """Build what the panel shows of a study: components by name."""
    hidden = {"show_label": False, "interactive": False, "visible": False, "format": "png"}
    return {
        "status": gr.Markdown(elem_id="axes-status"),
        "answer": gr.Markdown(elem_id="axes-answer"),
        "chart": gr.Image(label="Points", elem_id="axes-chart", **hidden),
        "sheet": gr.Image(label="Grid", elem_id="axes-sheet", **hidden),
        "files": gr.File(
            label="Downloads", file_count="multiple", interactive=False, visible=False, elem_id="axes-files"
        ),
    }


def _vary(**values: Any) -> Iterator[dict[str, Any]]:
    yield from _run_study(lambda: _plan_axes(values), build_axes_report)


def _compare(**values: Any) -> Iterator[dict[str, Any]]:
    yield from _run_study(lambda: _plan_pair(values), build_pair_report)


def _plan_axes(values: Mapping[str, Any]) -> AxesPlan:
    second = values["axis2"] or None  # the list's first choice is no axis
    return plan_axes(read_form(AxesForm, {**_collect_fields(values), "axis2": second}))


def _plan_pair(values: Mapping[str, Any]) -> AxesPlan:
    return plan_pair(read_form(PairForm, _collect_fields(values)))


def _collect_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a form. Raises `UserError` if a LoRA cannot be found."""
    fields = {name: value for name, value in values.items() if name not in ("lora_file", "shelf", "shelf2")}
    return {
        **fields,
        "lora": find_chosen_lora(values["lora_file"], values["shelf"]),
        "lora2": find_chosen_lora(None, values["shelf2"]),
    }


def _run_study(
    plan: Callable[[], AxesPlan], build_report: Callable[[AxesStudy], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Run a study for the page, and yield after each event what changes of `OUTPUT_NAMES`."""
    folder = create_folder()
    with translate_errors():
        study = AxesStudy(plan())
        # A study from before stays until there is something of this one.
        yield {"status": "Loading the model …"}
        total = len(study.strengths) * len(study.items)
        for event in study.run(gpu.generate_on_gpu):
            match event:
                case Failed():
                    yield {"status": show_refusal(UserError(None, event.message))}
                    raise gr.Error(event.message)
                case DownloadProgress() | LoadProgress():
                    yield {"status": hub_fetch.describe_progress(event)}
                case Step():
                    done = f"Image {len(study.pictures) + 1} of {total}"
                    yield {"status": f"{done} · about {event.seconds_left:.0f} s left"}
        report = build_report(study)
        files = export_axes(study, folder, report)
    found = f" ({study.cells_found} reused)" if study.cells_found else ""
    lines = [f"### {escape_markdown(report['why'])}"]
    if report["confidence"] is not None:
        sure = words.describe_confidence(report["confidence"]).capitalize()
        lines.append(f"{sure} that other prompts and seeds agree.")
    lines.append(escape_markdown(report["surer"] or ""))
    lines += [f"- {escape_markdown(why)}" for why in study.unmeasured.values()]
    yield {
        "status": f"{len(study.pictures)} images in {study.seconds:.1f} s{found}.",
        "answer": "\n\n".join(filter(None, lines)),
        "chart": gr.update(value=str(files.chart), visible=True),
        "sheet": gr.update(value=str(files.sheet), visible=True),
        "files": gr.update(value=[str(files.archive), str(files.table)], visible=True),
    }
