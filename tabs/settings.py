"""Settings in and out of the Generate tab: a preset of one's own, and what a picture says of itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from core import asking, presets, record
from core.markdown import plain, warned
from core.prompts import compose
from core.toml import read_toml
from core.types import Recipe, UserError
from tabs import stages
from tabs.files import new_folder

PICTURES = [".png", ".jpg", ".jpeg", ".webp"]
PRESET = ".toml"
OWN = "your preset"


def saved(title: str, **values: Any) -> tuple[Any, str]:
    """The page's settings as a preset file, and what to say."""
    said = stages.said(values)
    base = asking.recipe(values)
    if found := asking.problems({**said, "prompt": "-"}):
        return gr.skip(), warned(next(iter(found.values())))
    texts = {name: values[name] for name in ("negative", "sampler")}
    numbers = {name: int(values[name]) for name in ("steps", "width", "height")}
    cfg = float(values["cfg"])
    sides = (*base.size_range, numbers["width"], numbers["height"])
    parts = {part: values[part] for part in presets.PARTS}
    if compose(base, **parts) != values["prompt"]:  # changed by hand: it is kept as it stands
        parts = {**dict.fromkeys(presets.PARTS, ""), "general": values["prompt"]}
    recipe = replace(
        base,
        **parts,
        title=title.strip()[:80] or f"{base.title}, my settings",
        **texts,
        **numbers,
        cfg=cfg,
        cfg_range=(min(base.cfg_range[0], cfg), max(base.cfg_range[1], cfg)),
        size_range=(min(sides), max(sides)),
        on=tuple(stage for stage in presets.STAGES if values[stage]),
        **{stage: stages.record(stage, values) for stage in presets.STAGES},
    )
    file = new_folder() / f"preset{PRESET}"
    file.write_text(presets.written(recipe), encoding="utf-8")
    return gr.update(value=str(file), visible=True), f"Saved: {plain(recipe.title)}. Drop the file above to have these settings back."


def loaded(file: str, preset: str, fill: Callable[[Recipe], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """What a dropped file puts into the controls, by name, and what to say; nothing changes if it cannot be read.

    `fill` gives what a recipe puts there; `preset` is the one chosen so far.
    """
    try:
        values, said = _preset(Path(file), fill) if file.endswith(PRESET) else _picture(Path(file), preset, fill)
    except UserError as error:
        return {}, warned(str(error))
    return values, plain(said)


def _preset(file: Path, fill: Callable[[Recipe], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    recipe = presets.recipe(read_toml(file, "preset"), OWN)
    base = next((r.name for r in presets.recipes().values() if r.model == recipe.model), None)
    if base is None:
        raise UserError(f"preset: there is no preset of the model {recipe.model!r} to stand on.")
    return {**fill(recipe), "preset": base}, f"Loaded: {recipe.title}."


def _picture(file: Path, preset: str, fill: Callable[[Recipe], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    reading = record.read_picture(file)
    said: dict[str, Any] = dict(reading.fields)
    notes, recipes = [], presets.recipes()
    model = said.pop("model", None)
    recipe = recipes[preset]
    if model != recipe.model:
        recipe = next((r for r in recipes.values() if r.model == model), recipe)
        notes += [f"Its model, {str(model)[:60]}, is not among the presets; {recipe.title} stays."] if recipe.model != model else []
    said.pop("expanded", None)  # the prompt holds the added tags
    for stage in stages.SETTINGS:
        said[stage] = said.get(stage, False)
    for field, problem in asking.problems({**said, "preset": recipe.name}).items():
        if field == "prompt":  # a LoRA that is not here; the text stays
            notes.append(problem)
            continue
        notes.append(f"Left as it was: {problem}")
        stage, _, part = field.partition(".")
        said[stage].pop(part, None) if part and said[stage] else said.pop(stage)
    values = {**fill(recipe), "preset": recipe.name, "ratio": None}
    values |= dict.fromkeys(presets.PARTS, "")  # the prompt is whole already
    for name, value in said.items():
        if name in stages.SETTINGS:
            values[name] = value is not False
            values |= {f"{name}_{part}": stages.shown(f"{name}_{part}", v) for part, v in (value or {}).items()}
        elif isinstance(ranged := values[name], dict) and "minimum" in ranged:  # a slider that goes as far as the preset's author advises
            values[name] = {**ranged, "value": value, "minimum": min(ranged["minimum"], value), "maximum": max(ranged["maximum"], value)}
        else:
            values[name] = value
    if reading.unused:
        notes.append(f"Not used: {', '.join(list(reading.unused)[:30])}.")
    return values, " ".join(["Settings read.", *notes])
