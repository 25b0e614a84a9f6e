"""The Transfer tab: LoRAs over base models.

A table fills, and says for each pair whether it works there.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from core.generate.features import VAE
from core.lora import apply as lora
from core.lora import blocks, edit
from core.models import lora_library
from core.runtime import gpu
from core.schema import limits
from core.schema.errors import UserError
from core.schema.events import DownloadProgress, LoadProgress, Step
from core.sweep.plan import list_feature_extractors
from core.system.markdown import escape_markdown, format_warning
from core.transfer.export import draw_transfer_heat_map, draw_transfer_sheet, export_transfer
from core.transfer.plan import (
    DEFAULT_SEEDS,
    DEFAULT_STRENGTHS,
    SWEET_SPOT_STRENGTHS,
    TransferEntry,
    TransferForm,
    list_run_loras,
    plan_transfer,
    split_by_block,
)
from core.transfer.study import TransferStudy
from tabs.server import visitor
from tabs.server.call_wrapper import show_refusal
from tabs.server.page_files import create_folder
from tabs.shared import handoff, hub_fetch
from tabs.shared.checks import QUIET_OPTIONS, WRITE_OPTIONS, make_plan_validator, translate_errors
from tabs.shared.handoff import ReportHandoff
from tabs.shared.job_buttons import GPU_OPTIONS, build_job_buttons, wire_stop_button
from tabs.shared.lora_choices import list_lora_choices
from tabs.shared.model_choices import HOME_FROM_FILE, list_home_choices, list_model_choices
from tabs.shared.run_choices import refresh_run_choices, update_run_choices
from tabs.shared.updates import answer_by_name, refresh_choices
from tabs.transfer.train_on_bases import train_on_each_base

INPUT_NAMES = (
    "files",
    "shelf",
    "runs",
    "home",
    "models",
    "strengths",
    "seeds",
    "prompts",
    "clip_skip",
    "references",
    "feature_extractor",
    "blocks",
)
OUTPUT_NAMES = ("status", "answer", "heat_map", "matrix", "sheet", "downloads", "result", "pair_images")
DEPTH_STRENGTHS = {"Quick": DEFAULT_STRENGTHS, "Full sweep per model": SWEET_SPOT_STRENGTHS}
# Seconds between two drawings of a table that fills, and between two status lines: each costs the
# model a share of a step.
DRAW_SECONDS, STATUS_SECONDS = 3.0, 0.7


def build_tab(train_handoff: handoff.TrainHandoff, this_tab: gr.Tab) -> ReportHandoff:
    """Lay out the tab, `this_tab`, and connect it.

    `train_handoff` is what the Train tab has: a dataset, a recipe, this browser's runs.
    """
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            c = _build_controls()
        with gr.Column(scale=7, min_width=320):
            c |= _build_results()
    hub_fetch.wire(c, hub_fetch.fetch_base_to_choice, c["models"])
    refresh_choices(c["shelf"].focus, c["shelf"], list_lora_choices)
    c["depth"].input(lambda name: DEPTH_STRENGTHS[name], c["depth"], c["strengths"], **QUIET_OPTIONS)
    train_handoff.my_runs.change(
        update_run_choices, [train_handoff.my_runs, c["runs"]], c["runs"], **QUIET_OPTIONS
    )
    for name in ("models", "bases"):
        refresh_choices(this_tab.select, c[name], list_model_choices)
    refresh_choices(c["home"].focus, c["home"], list_home_choices)
    this_tab.select(refresh_run_choices, train_handoff.my_runs, c["runs"], **QUIET_OPTIONS)
    _wire_study(c, train_handoff)
    c["matrix"].select(_show_pair, c["result"], c["pair_images"], **QUIET_OPTIONS)
    c["merge"].click(
        _combine_loras, [c["style"], c["content"]], [c["merged_file"], c["merge_message"]], **WRITE_OPTIONS
    )
    return ReportHandoff(c["publish"], c["result"])


def _wire_study(c: dict[str, Any], train_handoff: handoff.TrainHandoff) -> None:
    """Connect the buttons that measure, train first, and stop."""
    job: dict[str, Any] = {
        **answer_by_name(_run_study, {name: c[name] for name in OUTPUT_NAMES}),
        "inputs_kwargs": {name: c[name] for name in INPUT_NAMES},
        "validator": make_plan_validator(
            INPUT_NAMES,
            lambda values: plan_transfer(_build_form(values)),
            {"loras": "files", "lora": "files"},
        ),
        **GPU_OPTIONS,
    }
    my_runs = train_handoff.my_runs
    trained = {"status": c["status"], "my_runs": my_runs, "runs": c["runs"], "models": c["models"]}
    trained_there = c["train_on_bases"].click(
        inputs_kwargs={
            **train_handoff.inputs,
            "my_runs": my_runs,
            "bases": c["bases"],
            "all_checkpoints": c["all_checkpoints"],
        },
        **answer_by_name(train_on_each_base, trained),
        show_progress="hidden",
        concurrency_id="across",
        api_visibility="private",
    )
    running = [
        c["run"].click(**job),
        trained_there,
        trained_there.success(fn=None, inputs=my_runs, js=handoff.REMEMBER_RUNS_JS, **QUIET_OPTIONS).success(
            **job
        ),
    ]
    sentence = "Stopped. Finished images are kept. Press Transfer to continue."
    wire_stop_button(c["stop"], running, lambda: sentence, None, c["status"])


def _build_controls() -> dict[str, Any]:
    """Build the left side: components by name."""
    return (
        _build_choices()
        | _build_plan_controls()
        | _build_measure_panel()
        | _build_training_panel()
        | _build_merge_panel()
    )


def _build_choices() -> dict[str, Any]:
    """Build the choice of LoRAs and base models: components by name."""
    c: dict[str, Any] = {}
    c["files"] = gr.File(
        label="LoRAs",
        file_count="multiple",
        file_types=[".safetensors"],
        height=110,
        elem_id="transfer-files",
    )
    with gr.Row():
        c["shelf"] = gr.Dropdown(
            list_lora_choices(),
            value=[],
            multiselect=True,
            allow_custom_value=True,
            label="LoRA library",
            info="or a Hub id owner/name",
            elem_id="transfer-shelf",
        )
        c["runs"] = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            label="Your runs",
            info="from this browser or your account",
            elem_id="transfer-runs",
        )
    c["home"] = gr.Dropdown(
        list_home_choices(),
        value=HOME_FROM_FILE,
        label="Home model",
        info="trained on it; results are compared with it, so it is added to the base models",
    )
    c["models"] = gr.CheckboxGroup(
        list_model_choices(),
        value=["nano", "nano-cel", "nano-paint", "nano-merge"],
        label="Base models",
        elem_id="transfer-models",
    )
    c |= hub_fetch.build_base_box("transfer-hub")
    return c


def _build_plan_controls() -> dict[str, Any]:
    """Build strengths, seeds and prompts: components by name."""
    c: dict[str, Any] = {}
    c["depth"] = gr.Radio(
        list(DEPTH_STRENGTHS), value="Quick", label="Strengths to begin with", elem_id="depth"
    )
    with gr.Row():
        c["strengths"] = gr.Textbox(
            DEFAULT_STRENGTHS,
            label="Strengths",
            info="a pair goes on as far as its verdict needs",
            min_width=140,
            elem_id="transfer-strengths",
        )
        c["seeds"] = gr.Textbox(
            DEFAULT_SEEDS,
            label="Seeds",
            info="two or more for a verdict",
            min_width=100,
            elem_id="transfer-seeds",
        )
    c["prompts"] = gr.Textbox(
        "",
        label="Prompts",
        info="one per line; a verdict needs four; empty uses the preset's first eight",
        lines=3,
        max_lines=16,
        elem_id="transfer-prompts",
    )
    c["blocks"] = gr.Checkbox(False, label="Test each block separately")
    return c


def _build_measure_panel() -> dict[str, Any]:
    """Build the panel 'How it is measured': components by name."""
    c: dict[str, Any] = {}
    with gr.Accordion("How it is measured", open=False):
        c["clip_skip"] = gr.Radio(
            [2, 1], value=2, label="Clip skip", info="2 is SDXL's default; 1 uses the last layer"
        )
        kinds = [".png", ".jpg", ".jpeg", ".webp"]
        c["references"] = gr.File(
            label=f"Reference images of trained style (up to {limits.REFERENCES})",
            file_count="multiple",
            file_types=kinds,
            height=110,
        )
        gr.Markdown(
            "A run uses its own training images. "
            "Without references, a LoRA is compared with its look on its home model."
        )
        c["feature_extractor"] = gr.Dropdown(
            list_feature_extractors(),
            value=VAE,
            label="Feature extractor",
            info="the models' own VAE needs no download",
        )
    return c


def _build_training_panel() -> dict[str, Any]:
    """Build the panel 'Train on several bases first': components by name."""
    c: dict[str, Any] = {}
    with gr.Accordion("Train on several bases first", open=False):
        c["bases"] = gr.CheckboxGroup(
            list_model_choices(),
            value=["nano", "nano-cel"],
            label="Train on",
            elem_id="across-models",
        )
        c["all_checkpoints"] = gr.Checkbox(False, label="Include intermediate checkpoints")
        c["train_on_bases"] = gr.Button("Train and test", elem_id="across")
    return c


def _build_merge_panel() -> dict[str, Any]:
    """Build the panel 'Merge style + content': components by name."""
    c: dict[str, Any] = {}
    with gr.Accordion("Merge style + content (B-LoRA)", open=False):
        gr.Markdown(
            f"As in B-LoRA: the style of one LoRA ({', '.join(blocks.STYLE_BLOCKS)}) "
            f"with the content of another ({', '.join(blocks.CONTENT_BLOCKS)})."
        )
        # One below the other: side by side, a file's size and buttons leave no room for its name.
        c["style"] = gr.File(
            label="Style from", file_types=[".safetensors"], height=110, elem_id="style-from"
        )
        c["content"] = gr.File(
            label="Content from", file_types=[".safetensors"], height=110, elem_id="content-from"
        )
        c["merge"] = gr.Button("Merge", size="sm", elem_id="combine")
        c["merged_file"] = gr.File(label="New file", interactive=False, visible=False, elem_id="combined")
        c["merge_message"] = gr.Markdown()
    return c


def _build_results() -> dict[str, Any]:
    """Build the right side: components by name."""
    c = build_job_buttons("Transfer", "transfer", "transfer-stop")
    c["status"] = gr.Markdown("Ready.", elem_id="transfer-status")
    c["answer"] = gr.Markdown(elem_id="transfer-answer")
    c["heat_map"] = gr.Image(
        label="Heat map", show_label=False, interactive=False, visible=False, format="png", elem_id="heat"
    )
    c["matrix"] = gr.Dataframe(
        label="Click a cell to see its images",
        show_label=True,
        interactive=False,
        visible=False,
        wrap=True,
        type="array",
        elem_id="matrix",
    )
    c["pair_images"] = gr.Gallery(
        label="Images of the chosen pair",
        columns=6,
        height=360,
        visible=False,
        object_fit="contain",
        format="png",
        buttons=["download", "fullscreen"],
        elem_id="pair",
    )
    c["sheet"] = gr.Image(
        label="Grid",
        show_label=False,
        interactive=False,
        visible=False,
        format="png",
        elem_id="transfer-sheet",
    )
    c["downloads"] = gr.File(
        label="Downloads", file_count="multiple", interactive=False, visible=False, elem_id="transfer-out"
    )
    c["publish"] = gr.Button("Send to Publish", size="sm", elem_id="transfer-publish")
    c["result"] = gr.State(None)
    return c


# --- the form -------------------------------------------------------------------------------------


def _build_form(values: Mapping[str, Any]) -> TransferForm:
    """Return what the tab asks for. Raises `UserError` if a LoRA or run cannot be found."""
    home = None if values["home"] in (None, HOME_FROM_FILE) else values["home"]
    paths = [str(file) for file in values["files"] or []]
    paths += [str(lora_library.find_lora(str(name))) for name in values["shelf"] or []]
    entries = [TransferEntry(lora=path, home=home) for path in paths]
    for name in values["runs"] or []:
        run, _, kept = name.partition(":")
        made = list_run_loras(visitor.find_run(run))
        entries += made if kept else made[-1:]
    if values["blocks"]:
        entries = [part for entry in entries for part in split_by_block(entry)]
    names = ("models", "strengths", "seeds", "clip_skip", "references", "feature_extractor")
    shared = {name: values[name] for name in names if values[name] is not None}
    return TransferForm(loras=entries, prompts=(values["prompts"] or "").strip() or None, **shared)


# --- the study ------------------------------------------------------------------------------------


def _run_study(**values: Any) -> Iterator[dict[str, Any]]:
    """Run the study for the page, and yield after each event what changes of `OUTPUT_NAMES`."""
    folder, hidden = create_folder(), gr.update(visible=False)
    study = TransferStudy(plan_transfer(_build_form(values)))
    # A study from before stays until there is something of this one.
    yield {"status": "Loading the model …"}
    drawn, pairs, told = time.monotonic(), 0, 0.0
    with translate_errors():
        for event in study.run(gpu.generate_on_gpu):
            done, total = study.count_done()
            if isinstance(event, DownloadProgress | LoadProgress):
                yield {"status": hub_fetch.describe_progress(event)}
            if isinstance(event, Step) and time.monotonic() - told > STATUS_SECONDS:
                told = time.monotonic()
                place = f"Image {done + 1} of {total} ·  {event.stage} step {event.step} of {event.steps}"
                yield {"status": place}
            if (
                time.monotonic() - drawn > DRAW_SECONDS
                and (made := sum(pair.is_finished for pair in study.pairs.values())) > pairs
            ):
                drawn, pairs = time.monotonic(), made
                yield {
                    "status": f"{done} of {total} images",
                    "answer": "",
                    "sheet": gr.update(value=draw_transfer_sheet(study), visible=True),
                    "result": None,
                    **dict.fromkeys(("heat_map", "matrix", "downloads", "pair_images"), hidden),
                }
        result = export_transfer(study, folder)
    report = result.report
    done, total = study.count_done()
    yield {
        "status": f"{done} of {total} images in {study.seconds:.1f} s.",
        "answer": _format_answer(report),
        "heat_map": gr.update(value=draw_transfer_heat_map(study, report), visible=True),
        "matrix": _build_matrix(report),
        "sheet": gr.update(value=str(result.sheet), visible=True),
        "downloads": gr.update(
            value=[str(file) for file in (result.archive, result.page, result.table)], visible=True
        ),
        "result": {"report": report, "folder": str(folder)},
        "pair_images": hidden,
    }


def _format_answer(report: dict[str, Any]) -> str:
    """Return the answer as Markdown.

    It says where each LoRA works, what holds of the claims, what a pair without a verdict lacks, and the
    rule.
    """
    lines = [
        f"### {escape_markdown(report['why'])}",
        *(
            f"- {escape_markdown(claim['why'])}"
            for claim in report["lineage"]["claims"]
            if claim["difference"] is not None
        ),
    ]
    lines += [f"- {escape_markdown(line)}" for line in report["blocks"]]
    unclear = {
        f"- {format_warning('{lora} on {model}: {why}'.format_map(pair))}"
        + ("" if pair["lacks"] in (None, pair["why"]) else f" {escape_markdown(pair['lacks'])}")
        for pair in report["per_pair"]
        if pair["verdict"] is None
    }
    lines += [
        *sorted(unclear),
        *(f"- {escape_markdown(why)}" for why in report["unmeasured"].values()),
        "",
        f"*{report['rule']}*",
    ]
    lines += ["", "```", *report["lineage"]["tree"], "```"]
    return "\n".join(lines)


def _build_matrix(report: dict[str, Any]) -> Any:
    by = {(pair["lora"], pair["model"]): pair for pair in report["per_pair"]}
    rows = [
        [name, *(_format_cell(by[name, model]) for model in report["models"])] for name in report["loras"]
    ]
    return gr.update(value={"headers": ["LoRA", *report["models"]], "data": rows}, visible=True)


def _format_cell(pair: dict[str, Any]) -> str:
    words = [pair["verdict"] or "?"]
    words += [f"needs x{pair['needs_times']:.2g}"] if pair["needs_times"] else []
    if pair["share"] is not None:
        low, high = (100 * end for end in pair["share_interval"])
        words.append(f"{100 * pair['share']:.0f} % of home ({low:.0f} to {high:.0f})")
    # Where something changes and nothing is lost, but not its style, is no place to use it.
    works = pair["sweet_spot"] and pair["verdict"] != "none"
    verb = "works" if pair["answer"] == "works" else "changes"
    words += [f"{verb} {pair['sweet_spot'][0]:g} to {pair['sweet_spot'][1]:g}"] if works else []
    return ("⌂ " if pair["relation"] == "home" else "") + " · ".join(words)


def _show_pair(result: dict[str, Any] | None, event: gr.SelectData) -> Any:
    """Show the pictures of the chosen pair at full size, in order of strength.

    Those of the model without a LoRA are among them.
    """
    if result is None:
        return gr.skip()
    report, (row, column) = result["report"], event.index
    lora, model = report["loras"][row], report["models"][max(0, column - 1)]
    chosen = [told for told in report["pictures"] if told["lora"] in (lora, None) and told["model"] == model]
    chosen.sort(key=lambda told: (told["strength"], report["prompts"].index(told["prompt"]), told["seed"]))
    shown = [
        (str(Path(result["folder"]) / told["picture"]), f"{told['strength']:g} · {told['seed']}")
        for told in chosen
    ]
    return gr.update(value=shown, visible=True, label=f"{lora} on {model}: strength · seed")


# --- merging two LoRAs ----------------------------------------------------------------------------


def _combine_loras(style: str | None, content: str | None) -> tuple[Any, str]:
    """Save the style block of one LoRA and the content block of another in one file."""
    try:
        if not style or not content:
            raise UserError("style", "choose both files, one for style and one for content.")
        return gr.update(
            value=str(
                edit.combine_loras(lora.get_lora_file(style), lora.get_lora_file(content), create_folder())
            ),
            visible=True,
        ), "Saved."
    except UserError as error:
        return gr.skip(), show_refusal(error)
