"""What a sweep is asked for: LoRA, preset, strengths, prompts, and how it is measured."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from core.generate.features import VAE
from core.lora import apply as lora
from core.prompts.neutral import compose_neutral_prompts, insert_trigger
from core.runtime import gpu
from core.schema import limits, presets
from core.schema.errors import UserError
from core.sweep.pace import estimate_seconds
from core.sweep.plan import (
    BUDGETS,
    DEFAULT_BUDGET,
    DEFAULT_SEEDS,
    list_feature_extractors,
    parse_seeds,
    parse_strengths,
    suggest_strengths,
)
from core.sweep.strengths import FIRST_STRENGTHS
from core.system.markdown import escape_markdown
from tabs.server.call_wrapper import show_refusal
from tabs.shared import hub_fetch
from tabs.shared.checks import (
    translate_errors,
)
from tabs.shared.lora_choices import describe_choice, find_chosen_lora, list_lora_choices
from tabs.shared.model_choices import (
    PRESET_MODEL,
    find_fitting_preset,
    list_optional_models,
    name_model,
)
from tabs.shared.references import expose_references, find_references
from tabs.sweep.edit_panel import build_edit_panel

FILLED_NAMES = ("strengths", "prompts")
"""The texts that the choice of a LoRA and of a preset fills in."""
PROMPTS_INFO = "one per line; four or more for a verdict, and other prompts tell more than other seeds"
BUDGET_INFO = (
    "How many neutral prompts. Quick gives a verdict where the LoRA breaks clearly, Full the narrowest "
    "intervals. A sweep ends earlier where the verdict stands, and goes further where the effect still rises."
)
PROMPTS_KEPT = "; your prompts were kept: to use the preset's, clear them and choose the preset again"


def build_controls() -> dict[str, Any]:
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
    c["budget"] = gr.Radio(
        list_budgets(first.name, PRESET_MODEL),
        value=DEFAULT_BUDGET,
        label="Budget",
        info=BUDGET_INFO,
        elem_id="budget",
    )
    c["prompts"] = gr.Textbox(
        format_neutral_prompts(first.name),
        label="Prompts",
        info=PROMPTS_INFO,
        lines=4,
        max_lines=16,
        elem_id="prompts",
    )
    # Held in the page, which a restart of the app leaves as it is.
    c["filled"] = gr.JSON({name: c[name].value for name in FILLED_NAMES}, visible=False)
    c["refine"] = gr.Checkbox(False, label="Refine: add strengths around the turning points")
    return c | _build_measure_panel() | build_edit_panel()


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
            elem_id="references",
        )
        c["found_references"] = gr.JSON([], visible=False)
        c["references_note"] = gr.Markdown(elem_id="references-note")
        gr.Markdown(
            "With references, the verdict says where the LoRA looks most like them. Without, it says where "
            "the LoRA changes the images while everything holds: change alone is not quality."
        )
        info = "the model's own VAE needs no download"
        c["feature_extractor"] = gr.Dropdown(
            list_feature_extractors(), value=VAE, label="Feature extractor", info=info
        )
    return c


def format_neutral_prompts(preset: str, trigger: str = "", budget: str = DEFAULT_BUDGET) -> str:
    prompts = compose_neutral_prompts(presets.get_prompt_presets()[preset])[: BUDGETS[budget]]
    return "\n".join(insert_trigger(prompt, trigger) for prompt in prompts)


def list_budgets(
    preset: str, model: str, seeds: str = DEFAULT_SEEDS, strengths: str = ""
) -> list[tuple[str, str]]:
    """Return the budgets with their images, and their time on this machine if known."""
    found = presets.get_prompt_presets()[preset]
    pixel_steps = found.width * found.height * found.steps
    a_prompt = _count_numbers(seeds, parse_seeds, 2) * _count_numbers(
        strengths, parse_strengths, FIRST_STRENGTHS
    )
    choices = []
    for name, prompts in BUDGETS.items():
        images = prompts * a_prompt
        seconds = estimate_seconds(model or found.model, pixel_steps, images)
        time = "" if seconds is None else f", about {seconds:.0f} s"
        if seconds and seconds >= 100:
            time = f", about {seconds / 60:.0f} min"
        choices.append((f"{name}: {prompts} prompts, {images} images{time}", name))
    return choices


def _count_numbers(text: str, parse: Callable[[str], Sequence[float]], default: int) -> int:
    """Return how many numbers a text has; `default` for an empty one, or a wrong one, which Sweep refuses."""
    try:
        return len(parse(text)) if text.strip() else default
    except UserError:
        return default


def match_preset(model: str, preset: str) -> tuple[Any, str]:
    """Return the preset that fits the chosen model, and why."""
    if not model:
        return gr.skip(), ""
    fitting, said = find_fitting_preset(model)
    return (gr.skip() if fitting.name == preset else fitting.name), said


def fill_in_choice(
    lora_file: str | None,
    shelf: str | None,
    preset: str,
    model: str,
    budget: str,
    seeds: str,
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
        "prompts": format_neutral_prompts(preset, facts.trigger or "" if facts else "", budget),
    }
    own = {name for name, text in texts.items() if text.strip() and text != filled[name]}
    # What is as it should be is not written again, over what a person writes meanwhile.
    changed = {name: text for name, text in fresh.items() if name not in own and text != texts[name]}
    info = PROMPTS_INFO + (PROMPTS_KEPT if "prompts" in own and texts["prompts"] != fresh["prompts"] else "")
    new = changed.get("prompts")
    prompts = gr.update(info=info) if new is None else gr.update(value=new, info=info)
    return {
        "lora_line": line,
        **changed,
        "prompts": prompts,
        "budget": gr.update(choices=list_budgets(preset, model, seeds, {**texts, **changed}["strengths"])),
        "filled": {**filled, **changed},
    }


def fill_in_references(
    lora_file: str | None, shelf: str | None, references: list[str] | None, found_references: list[str]
) -> Iterator[dict[str, Any]]:
    """Fill in the references that the studio has for the chosen LoRA, unless a person chose others.

    `found_references` are those of the LoRA that was chosen before; they go at once, since those of this one
    may have to be fetched.
    """
    if {Path(file).name for file in references or ()} - {Path(file).name for file in found_references}:
        yield {"references_note": ""}
        return
    if found_references:
        yield {"references": None, "found_references": [], "references_note": ""}
    with translate_errors():
        lora = find_chosen_lora(lora_file, shelf)
        found, note = find_references(lora) if lora else ([], "")
    shown = expose_references(found)
    changed = {"references": shown, "found_references": shown} if shown else {}
    yield {**changed, "references_note": escape_markdown(note)}


def describe_lora(file: str | None, name: str | None) -> str:
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
