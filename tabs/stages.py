"""The controls of what comes before and after the picture: added tags, hires, details, grain."""

from typing import Any

import gradio as gr

from core import asking, limits, pulled
from core.expand import CATEGORIES, LENGTHS
from core.types import Recipe

SETTINGS = {
    "expand": ("expander", "length", "temperature", "top_p", "top_k", "ban", "without", "max_tags"),
    "hires": ("upscaler", "factor", "denoise", "steps", "smooth"),
    "detail": ("detector", "prompt", "negative", "confidence", "largest", "least", "most", "dilate", "blur", "padding", "denoise", "steps"),
    "grain": ("amount", "size", "monochrome", "blur"),
}
"""Stage -> those of its record's fields that have a control, named `<stage>_<field>`."""
LABELS = {"expand": "Add tags", "hires": "Hires", "detail": "Details", "grain": "Grain"}
NAMES = tuple(name for stage, fields in SETTINGS.items() for name in (stage, *(f"{stage}_{field}" for field in fields)))


def controls(recipe: Recipe) -> dict[str, Any]:
    """The components by name, filled from a recipe."""
    values = filled(recipe)
    c: dict[str, Any] = {}

    def slider(name: str, low: float, high: float, step: float, label: str, info: str | None = None) -> None:
        c[name] = gr.Slider(low, high, values[name], step=step, label=label, info=info, min_width=160)

    def choice(name: str, options: list[str], label: str, ending: str | None = None) -> None:
        own = {"allow_custom_value": True, "info": f"or a Hub id owner/name:file{ending}"} if ending else {}
        c[name] = gr.Dropdown(options, value=values[name], label=label, min_width=160, **own)

    def steps(name: str, info: str) -> None:
        c[name] = gr.Slider(0, limits.STEPS[1], values[name], step=1, label="Steps", info=info, min_width=160)

    with gr.Row():
        for stage, label in LABELS.items():
            c[stage] = gr.Checkbox(values[stage], label=label, min_width=120, elem_id=stage)
    with gr.Accordion("Tags: DanTagGen adds what the prompt leaves open", open=False):
        with gr.Row():
            choice("expand_expander", asking.choices("expand"), "Model")
            choice("expand_length", list(LENGTHS), "Length")
            slider("expand_max_tags", 1, 100, 1, "At most", "tags")
        with gr.Row():
            slider("expand_temperature", 0.05, 2, 0.05, "Temperature")
            slider("expand_top_p", 0.05, 1, 0.05, "Top-p")
            slider("expand_top_k", 1, 1000, 1, "Top-k")
        c["expand_ban"] = gr.Textbox(values["expand_ban"], label="Banned", info="one a line: words, globs (*boy*) or patterns (.*boy.*)", lines=3, max_lines=8)
        c["expand_without"] = gr.CheckboxGroup(list(CATEGORIES), value=values["expand_without"], label="Nothing about")
    with gr.Accordion("Hires: enlarge, then denoise again", open=False):
        with gr.Row():
            choice("hires_upscaler", asking.choices("hires"), "Upscaler", pulled.TOOLS["upscaler"])
            slider("hires_factor", *limits.FACTOR, 0.05, "Times")
        with gr.Row():
            slider("hires_denoise", 0, 1, 0.05, "Denoise", "0 only enlarges")
            steps("hires_steps", "0: as many as the picture")
            slider("hires_smooth", 0, 1, 0.05, "Smooth first", "evens out texture, keeps edges")
    with gr.Accordion("Details: faces made anew", open=False):
        with gr.Row():
            choice("detail_detector", asking.choices("detail"), "Detector", pulled.TOOLS["detector"])
            slider("detail_confidence", 0.05, 1, 0.05, "Confidence")
            slider("detail_largest", 0, limits.PLACES, 1, "Largest", f"0: all, up to {limits.PLACES}")
        with gr.Row():
            slider("detail_denoise", 0.05, 1, 0.05, "Denoise")
            steps("detail_steps", "0: as many as the picture")
        c["detail_prompt"] = gr.Textbox(values["detail_prompt"], label="Prompt", placeholder="the picture's own; [SEP] divides by place, [SKIP] leaves one")
        c["detail_negative"] = gr.Textbox(values["detail_negative"], label="Negative prompt", placeholder="the picture's own")
        with gr.Row():
            slider("detail_least", 0, 1, 0.01, "Smallest share")
            slider("detail_most", 0, 1, 0.01, "Greatest share")
        with gr.Row():
            slider("detail_dilate", -128, 128, 1, "Grow mask", "pixels")
            slider("detail_blur", 0, 64, 1, "Fade mask", "pixels")
            slider("detail_padding", 0, 256, 1, "Padding", "pixels")
    with gr.Accordion("Grain: texture for what is too smooth", open=False):
        with gr.Row():
            slider("grain_amount", 0, 0.5, 0.01, "Amount")
            slider("grain_size", 0.5, 8, 0.5, "Size", "pixels")
            slider("grain_blur", 0, 4, 0.1, "Blur", "pixels")
        c["grain_monochrome"] = gr.Checkbox(values["grain_monochrome"], label="Grey, not coloured")
    return c


def filled(recipe: Recipe) -> dict[str, Any]:
    """What choosing a recipe puts into the controls, by name."""
    found: dict[str, Any] = {}
    for stage, fields in SETTINGS.items():
        record = getattr(recipe, stage)
        found[stage] = stage in recipe.on
        found |= {f"{stage}_{field}": shown(f"{stage}_{field}", getattr(record, field)) for field in fields}
    return found


def shown(name: str, value: Any) -> Any:
    """A record's value as its control holds it."""
    if name.endswith("_steps"):
        return value or 0
    if name == "expand_ban":
        return "\n".join(value)
    return list(value) if isinstance(value, tuple) else value


def said(values: dict[str, Any]) -> dict[str, Any]:
    """The page's values as `core.asking` takes them: its inverse."""
    found = dict(values)
    for name in ("hires_steps", "detail_steps"):
        if found.get(name) == 0:
            found[name] = None
    if isinstance(ban := found.get("expand_ban"), str):
        found["expand_ban"] = [line.strip() for line in ban.splitlines() if line.strip()]
    return found


def record(name: str, values: dict[str, Any]) -> Any:
    """A stage's record from the page's values, whether it is on or off."""
    return asking.stage(name, {**said(values), name: True})
