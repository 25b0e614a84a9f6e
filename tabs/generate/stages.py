"""The controls of what comes before and after the picture: added tags, hires, details, grain."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import gradio as gr

from core.generate import request
from core.generate.tag_expander import CATEGORY_PATTERNS, LENGTHS
from core.models import from_hub
from core.schema import limits
from core.schema.samplers import SAMPLERS, SCHEDULES
from core.schema.types import PromptPreset
from tabs.shared.updates import refresh_choices

STAGE_FIELDS = {
    "expand": ("expander", "length", "temperature", "top_p", "top_k", "ban", "without", "max_tags"),
    "hires": (
        "upscaler",
        "factor",
        "denoise",
        "steps",
        "smooth",
        "prompt",
        "negative",
        "sampler",
        "schedule",
        "cfg",
    ),
    "detail": (
        "detector",
        "prompt",
        "negative",
        "confidence",
        "largest",
        "least",
        "most",
        "dilate",
        "blur",
        "padding",
        "denoise",
        "steps",
    ),
    "grain": ("amount", "size", "monochrome", "blur"),
}
"""Stage -> the fields of its record that have a control, named `<stage>_<field>`."""
STAGE_LABELS = {
    "expand": "Prompt expansion",
    "hires": "Hires. fix",
    "detail": "Face detailer",
    "grain": "Film grain",
}
SAME = {"steps": 0, "cfg": 0, "sampler": "", "schedule": ""}
"""What a control holds for a setting of a stage that is `None`, the first pass's."""
CONTROL_NAMES = tuple(
    name
    for stage, names in STAGE_FIELDS.items()
    for name in (stage, *(f"{stage}_{field}" for field in names))
)


class _Controls:
    """The controls built so far, by name, and the values that they start with."""

    def __init__(self, values: dict[str, Any]):
        self.values = values
        self.built: dict[str, Any] = {}

    def add_slider(
        self, name: str, low: float, high: float, step: float, label: str, info: str | None = None
    ) -> None:
        """Add a slider for a number."""
        self.built[name] = gr.Slider(
            low, high, self.values[name], step=step, label=label, info=info, min_width=160
        )

    def add_steps(self, name: str) -> None:
        """Add a slider for a stage's own number of steps."""
        self.add_slider(name, 0, limits.STEPS[1], 1, "Steps", "0 = same as sampling steps")

    def add_text(self, name: str, label: str, placeholder: str) -> None:
        """Add a field for a text."""
        self.built[name] = gr.Textbox(self.values[name], label=label, placeholder=placeholder, elem_id=name)

    def add_choice(self, name: str, options: list[Any], label: str, **more: Any) -> None:
        """Add a list to choose from; `more` goes to Gradio's component."""
        self.built[name] = gr.Dropdown(options, value=self.values[name], label=label, min_width=160, **more)

    def add_model_choice(self, stage: str, kind: str, label: str) -> None:
        """Add the list of a stage's models, fresh each time; where the Hub has some, also an id there."""
        ending = from_hub.TOOL_SUFFIXES.get(kind)
        own = {"allow_custom_value": True, "info": f"or a Hub id owner/name:file{ending}"} if ending else {}
        self.add_choice(f"{stage}_{kind}", request.list_stage_models(stage), label, **own)
        shown = self.built[f"{stage}_{kind}"]
        refresh_choices(shown.focus, shown, lambda: request.list_stage_models(stage))


def build_controls(preset: PromptPreset) -> dict[str, Any]:
    """Build the controls, filled from a preset: components by name."""
    c = _Controls(get_stage_values(preset))
    with gr.Row():
        for stage, label in STAGE_LABELS.items():
            c.built[stage] = gr.Checkbox(c.values[stage], label=label, min_width=120, elem_id=stage)
    _build_expand_panel(c)
    _build_hires_panel(c)
    _build_detail_panel(c)
    _build_grain_panel(c)
    return c.built


def _build_expand_panel(c: _Controls) -> None:
    """Build the controls of the tags that DanTagGen adds."""
    with gr.Accordion("Prompt expansion (DanTagGen)", open=False):
        with gr.Row():
            c.add_model_choice("expand", "expander", "Model")
            c.add_choice("expand_length", list(LENGTHS), "Length")
            c.add_slider("expand_max_tags", 1, 100, 1, "Max tags")
        with gr.Row():
            c.add_slider("expand_temperature", 0.05, 2, 0.05, "Temperature")
            c.add_slider("expand_top_p", 0.05, 1, 0.05, "Top-p")
            c.add_slider("expand_top_k", 1, 1000, 1, "Top-k")
        c.built["expand_ban"] = gr.Textbox(
            c.values["expand_ban"],
            label="Banned tags",
            info="one per line; wildcards (`*boy*`) or regex (`.*boy.*`)",
            lines=3,
            max_lines=8,
        )
        c.built["expand_without"] = gr.CheckboxGroup(
            list(CATEGORY_PATTERNS), value=c.values["expand_without"], label="Exclude categories"
        )


def _build_hires_panel(c: _Controls) -> None:
    """Build the controls of the second, larger pass."""
    with gr.Accordion("Hires. fix", open=False):
        with gr.Row():
            c.add_model_choice("hires", "upscaler", "Upscaler")
            c.add_slider("hires_factor", *limits.HIRES_FACTOR, 0.05, "Upscale by")
        with gr.Row():
            c.add_slider("hires_denoise", 0, 1, 0.05, "Denoising strength", "0 = upscale only")
            c.add_steps("hires_steps")
            c.add_slider("hires_smooth", 0, 1, 0.05, "Pre-smooth", "bilateral filter before upscaling")
        with gr.Accordion("More: its own prompt, sampler and CFG", open=False, elem_id="hires-more"):
            c.add_text("hires_prompt", "Hires prompt", "empty = main prompt and its LoRAs")
            c.add_text("hires_negative", "Hires negative prompt", "empty = main negative prompt")
            with gr.Row():
                c.add_choice("hires_sampler", [("Use same sampler", ""), *SAMPLERS], "Hires sampler")
                c.add_choice("hires_schedule", [("Use same schedule", ""), *SCHEDULES], "Hires schedule")
            c.add_slider("hires_cfg", 0, limits.CFG[1], 0.25, "Hires CFG scale", "0 = same as CFG scale")


def _build_detail_panel(c: _Controls) -> None:
    """Build the controls of the faces that are painted again."""
    with gr.Accordion("Face detailer (ADetailer)", open=False):
        with gr.Row():
            c.add_model_choice("detail", "detector", "Detector")
            c.add_slider("detail_confidence", 0.05, 1, 0.05, "Confidence")
            c.add_slider(
                "detail_largest",
                0,
                limits.DETAIL_REGIONS,
                1,
                "Max faces (largest first)",
                f"0 = all, up to {limits.DETAIL_REGIONS}",
            )
        with gr.Row():
            c.add_slider("detail_denoise", 0.05, 1, 0.05, "Denoising strength")
            c.add_steps("detail_steps")
        c.add_text("detail_prompt", "Prompt", "empty = main prompt; [SEP] separates faces, [SKIP] skips one")
        c.add_text("detail_negative", "Negative prompt", "empty = main negative prompt")
        with gr.Row():
            c.add_slider("detail_least", 0, 1, 0.01, "Min mask area ratio")
            c.add_slider("detail_most", 0, 1, 0.01, "Max mask area ratio")
        with gr.Row():
            c.add_slider("detail_dilate", -128, 128, 1, "Mask dilation", "pixels")
            c.add_slider("detail_blur", 0, 64, 1, "Mask blur", "pixels")
            c.add_slider("detail_padding", 0, 256, 1, "Padding", "pixels")


def _build_grain_panel(c: _Controls) -> None:
    """Build the controls of the grain."""
    with gr.Accordion("Film grain", open=False):
        with gr.Row():
            c.add_slider("grain_amount", 0, 0.5, 0.01, "Amount")
            c.add_slider("grain_size", 0.5, 8, 0.5, "Size", "pixels")
            c.add_slider("grain_blur", 0, 4, 0.1, "Blur", "pixels")
        c.built["grain_monochrome"] = gr.Checkbox(c.values["grain_monochrome"], label="Monochrome")


def get_stage_values(preset: PromptPreset) -> dict[str, Any]:
    """Return what choosing a preset puts into the controls, by name."""
    found: dict[str, Any] = {}
    for stage, names in STAGE_FIELDS.items():
        record = getattr(preset, stage)
        found[stage] = stage in preset.on
        found |= {
            f"{stage}_{field}": format_control_value(f"{stage}_{field}", getattr(record, field))
            for field in names
        }
    return found


def format_control_value(name: str, value: Any) -> Any:
    """Return a record's value as its control holds it."""
    if value is None:
        return SAME[name.partition("_")[2]]
    if name == "expand_ban":
        return "\n".join(value)
    return list(value) if isinstance(value, tuple) else value


def select_form_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those values that are fields of a `PictureForm`."""
    known = {field.name for field in fields(request.PictureForm)}
    return {name: value for name, value in values.items() if name in known}


def build_form_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the page's values into the fields of a `PictureForm`.

    The controls of a stage become one table.
    """
    found = select_form_values(values)
    for stage in STAGE_FIELDS:
        if values.get(stage):
            found[stage] = _build_table(stage, values)
    return found


def build_stage_record(stage: str, values: Mapping[str, Any], preset: PromptPreset) -> Any:
    """Build a stage's record from the page's values, whether the stage is on or off.

    Raises `UserError` if a setting is not valid.
    """
    return request.build_stage(stage, _build_table(stage, values), preset)


def _build_table(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's settings from its controls.

    What `SAME` has stands for `None`, and lines for a list.
    """
    table = {
        field: values[f"{stage}_{field}"] for field in STAGE_FIELDS[stage] if f"{stage}_{field}" in values
    }
    table |= {field: None for field, same in SAME.items() if field in table and table[field] == same}
    if isinstance(ban := table.get("ban"), str):
        table["ban"] = [line.strip() for line in ban.splitlines() if line.strip()]
    return table
