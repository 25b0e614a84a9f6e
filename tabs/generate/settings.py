"""Load settings into the Generate tab, and save them.

They come from a preset of a person's own, or from what a picture says of itself.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from core.generate import request
from core.models import bases, catalogue, embedding_library, lora_library
from core.models.preset_match import find_preset
from core.prompts import png_metadata
from core.prompts.dialects import name_weights
from core.prompts.grammar import EXTRA_NETWORK, compose_prompt
from core.prompts.infotext import Reading
from core.schema import presets
from core.schema.errors import UserError
from core.schema.toml import read_toml
from core.schema.types import LoraUse, PromptPreset
from core.system.markdown import escape_markdown
from tabs.generate import stages
from tabs.server.call_wrapper import show_refusal
from tabs.server.page_files import create_folder
from tabs.shared.model_choices import PRESET_MODEL, name_model

PICTURE_SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".avif"]
PRESET_SUFFIX = ".toml"
TEXT_SUFFIX = ".txt"
SUFFIXES = [*PICTURE_SUFFIXES, PRESET_SUFFIX, TEXT_SUFFIX]
"""Of the files that settings are loaded from."""
MAX_TEXT_BYTES = 400_000
"""Of a settings text; in UTF-8 a character has up to four."""
PROMPT_FIELDS = {"prompt", "negative", "hires.prompt", "hires.negative"}
OWN_PRESET_NAME = "your preset"


def save_preset(title: str, **values: Any) -> tuple[Any, str]:
    """Save the page's settings as a preset file; return the file, and what to say."""
    if problems := request.find_form_problems({**stages.build_form_values(values), "prompt": "-"}):
        field, message = next(iter(problems.items()))
        return gr.skip(), show_refusal(UserError(field, message.removeprefix(f"{field}: ")))
    base = presets.get_prompt_presets()[values["preset"]]
    texts = {name: values[name] for name in ("negative", "sampler", "schedule")}
    numbers = {name: int(values[name]) for name in ("steps", "width", "height")}
    cfg = float(values["cfg"])
    sides = (*base.size_range, numbers["width"], numbers["height"])
    parts = {part: values[part] for part in presets.PROMPT_PARTS}
    if compose_prompt(base, **parts) != values["prompt"]:  # edited by hand: kept as it is
        parts = {**dict.fromkeys(presets.PROMPT_PARTS, ""), "general": values["prompt"]}
    recipe = replace(
        base,
        model=name_model(values["model"], base.name),
        **parts,
        title=title.strip()[:80] or f"{base.title}, my settings",
        **texts,
        **numbers,
        cfg=cfg,
        cfg_rescale=float(values["cfg_rescale"]),
        cfg_range=(min(base.cfg_range[0], cfg), max(base.cfg_range[1], cfg)),
        size_range=(min(sides), max(sides)),
        on=tuple(stage for stage in presets.STAGE_NAMES if values[stage]),
        **{stage: stages.build_stage_record(stage, values, base) for stage in presets.STAGE_NAMES},
    )
    file = create_folder() / f"preset{PRESET_SUFFIX}"
    file.write_text(presets.format_prompt_preset(recipe), encoding="utf-8")
    return gr.update(
        value=str(file), visible=True
    ), f"Saved: {escape_markdown(recipe.title)}. Drop the file above to load these settings again."


def load_settings(
    file: str, preset: str, fill: Callable[[PromptPreset], dict[str, Any]]
) -> tuple[dict[str, Any], str]:
    """Return what a dropped file puts into the controls, by name, and what to say.

    Nothing changes if the file cannot be read. `fill` gives what a preset puts there; `preset` is
    the one chosen so far.
    """
    try:
        if not file:  # the app was started anew, and has forgotten what was chosen
            raise UserError("image", "choose one again.")
        values, said = (
            _load_preset(Path(file), fill)
            if file.endswith(PRESET_SUFFIX)
            else _load_picture_settings(Path(file), preset, fill)
        )
    except UserError as error:
        return {}, show_refusal(error)
    return values, escape_markdown(said)


def _load_preset(file: Path, fill: Callable[[PromptPreset], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    table, own = read_toml(file, "preset"), PRESET_MODEL
    if table.get("model") not in presets.get_models() and table.get("model") in catalogue.list_models():
        own = str(table["model"])
        table = {**table, "model": find_preset(own).model}
    recipe = presets.parse_prompt_preset(table, OWN_PRESET_NAME)
    base = next((r.name for r in presets.get_prompt_presets().values() if r.model == recipe.model), None)
    if base is None:
        raise UserError("preset", f"no preset here uses the model {recipe.model!r}.")
    return {**fill(recipe), "preset": base, "model": own}, f"Loaded: {recipe.title}."


def _load_picture_settings(
    file: Path, preset: str, fill: Callable[[PromptPreset], dict[str, Any]]
) -> tuple[dict[str, Any], str]:
    reading = _read_text(file) if file.suffix == TEXT_SUFFIX else png_metadata.read_infotext(file)
    said: dict[str, Any] = dict(reading.fields)
    recipe, own, notes = _choose_model(said.pop("model", None), preset, reading.unused)
    notes = [*reading.lost, *notes]
    of_hires = said.get("hires", {})
    notes += embedding_library.describe_other_embeddings(
        reading.unused.pop("TI hashes", ""),
        [part.get(name, "") for part in (said, of_hires) for name in ("prompt", "negative")],
    )
    hashes = reading.unused.pop("Lora hashes", "")
    said["prompt"], renamed = _find_renamed_loras(said["prompt"], hashes)
    if "prompt" in of_hires:
        prompt, more = _find_renamed_loras(of_hires["prompt"], hashes)
        said["hires"], renamed = {**of_hires, "prompt": prompt}, [*renamed, *more]
    said["prompt"], missing = _add_loras(said["prompt"], reading.loras)
    notes += [*renamed, *missing]
    said.setdefault("cfg_rescale", 0.0)  # not the preset's, which the picture was made without
    said.pop("expanded", None)  # the prompt holds the added tags
    for stage in stages.STAGE_FIELDS:
        said[stage] = _match_stage_model(stage, said.get(stage, False))
    while problems := request.find_form_problems({**stages.select_form_values(said), "preset": recipe.name}):
        for field, sentence in problems.items():
            if field in PROMPT_FIELDS:  # a LoRA or embedding that is not here; the text stays
                notes.append(sentence)
                continue
            stage, _, part = field.partition(".")
            notes.append(_describe_replacement(stage, part, sentence, recipe))
            said[stage].pop(part, None) if part and said[stage] else said.pop(stage)
        if problems.keys() <= PROMPT_FIELDS:
            break
    values = {**fill(recipe), "preset": recipe.name, "model": own, "ratio": None}
    values |= dict.fromkeys(presets.PROMPT_PARTS, "")  # the prompt is whole already
    for name, value in said.items():
        if name in stages.STAGE_FIELDS:
            values[name] = value is not False
            values |= {
                f"{name}_{part}": stages.format_control_value(f"{name}_{part}", v)
                for part, v in (value or {}).items()
            }
        elif isinstance(ranged := values[name], dict) and "minimum" in ranged:
            # The slider goes as far as the preset's author advises; this value may lie beyond.
            values[name] = {
                **ranged,
                "value": value,
                "minimum": min(ranged["minimum"], value),
                "maximum": max(ranged["maximum"], value),
            }
        else:
            values[name] = value
    if unused := [key[:60] for key in reading.unused if key != "Sweetspot"]:
        notes.append(f"Ignored: {', '.join(unused[:30])}.")
    tool = "" if reading.tool == "Sweetspot" else f" of {reading.tool}"
    return values, " ".join([f"Settings{tool} loaded.", *dict.fromkeys(notes)])


def _read_text(file: Path) -> Reading:
    with file.open("rb") as opened:
        text = opened.read(MAX_TEXT_BYTES).decode("utf-8-sig", errors="replace")
    return png_metadata.read_settings_text(text)


def _choose_model(
    named: str | None, preset: str, unused: dict[str, str]
) -> tuple[PromptPreset, str, list[str]]:
    """Return the preset and the choice of a model for what a picture names, and what differs here.

    `preset` is kept if the model is not here. Hash and VAE are taken out of `unused`.
    """
    notes, recipes, model = [], presets.get_prompt_presets(), _find_own_model(named)
    recipe, own = recipes[preset], PRESET_MODEL
    if model != recipe.model:
        recipe = next((r for r in recipes.values() if r.model == model), recipe)
    if model != recipe.model:
        if model in catalogue.list_models():
            own, recipe = str(model), find_preset(str(model))
        else:
            said = f"Its model, {model[:60]}, is not here" if model else "It names no model"
            notes.append(f"{said}; {recipe.title} is kept.")
    weights = bases.hash_weights(recipe.model) if model == recipe.model else None
    if weights and (made_with := unused.pop("Model hash", None)) != weights:
        other = "other" if made_with else "unknown"
        notes.append(
            f"Made with {other} weights of {recipe.model}; the same settings may give another image."
        )
    vae, used = unused.pop("VAE", ""), _name_vae(own or recipe.model)
    if vae != used and (vae or "Sweetspot" in unused):
        theirs = f"the VAE {vae[:60]}" if vae else "the model's own VAE"
        notes.append(f"Made with {theirs}; {used or 'its own'} is set for {own or recipe.model}.")
    return recipe, own, notes


def _find_own_model(name: str | None) -> str | None:
    """Return what a model is called here, whatever its capitals; another tool's name stays."""
    known = [*(recipe.model for recipe in presets.get_prompt_presets().values()), *catalogue.list_models()]
    return next((own for own in known if own.lower() == (name or "").lower()), name)


def _find_renamed_loras(prompt: str, hashes: str) -> tuple[str, list[str]]:
    """Return the prompt with the names that its LoRAs have here, and a sentence for each that has another."""
    parts = (part.rpartition(":") for part in hashes.split(",")[: lora_library.MAX_LORAS])
    digests = {name.strip(): digest.strip() for name, _, digest in parts}
    here = set(map(lora_library.slugify, lora_library.list_loras()))
    renamed = []

    def rename(match: re.Match[str]) -> str:
        name = match[2].partition(":")[0]
        if match[1].lower() != "lora" or lora_library.slugify(name) in here:
            return match[0]
        if (own := lora_library.find_by_hash(digests.get(name, ""))) is None:
            return match[0]
        renamed.append(f"The LoRA {name[:60]} is called {own[:60]} here.")
        return match[0].replace(name, lora_library.slugify(own), 1)

    return EXTRA_NETWORK.sub(rename, prompt), renamed


def _add_loras(prompt: str, loras: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Return the prompt with a tag for each LoRA of the library, and a sentence for each other one."""
    tags, missing = [], []
    here = {
        lora_library.slugify(name).lower(): (name, file) for name, file in lora_library.list_loras().items()
    }
    for entry in loras:
        name, strengths = entry["lora"], {key: value for key, value in entry.items() if key != "lora"}
        if (found := here.get(lora_library.slugify(name).lower())) is None:
            missing.append(f"The LoRA {name[:60]} ({entry['strength']:g}) is not here.")
        else:
            tags.append(lora_library.format_lora_tag(LoraUse(path=str(found[1]), **strengths), found[0]))
    return " ".join([prompt, *tags]).strip(), missing


def _match_stage_model(stage: str, settings: Any) -> Any:
    """Return a stage's settings with its model called as here, such as `4x-UltraSharp` for a `.pth`."""
    field = request.STAGE_TOOLS.get(stage, ("",))[0]
    if not settings or not (named := settings.get(field)):
        return settings
    known = {name_weights(own).lower(): own for own in reversed(request.list_stage_models(stage))}
    return {**settings, field: known.get(name_weights(named).lower(), named)}


def _describe_replacement(stage: str, part: str, sentence: str, recipe: PromptPreset) -> str:
    """Return what to say of a value that is not allowed, with the preset's tool that stands in for one."""
    if part and part == request.STAGE_TOOLS.get(stage, ("",))[0]:
        return f"{sentence.partition('. Use one of')[0]}; {getattr(getattr(recipe, stage), part)} is set."
    return f"Not changed: {sentence}"


def _name_vae(model: str) -> str:
    """Return the name of the VAE that is set for a model; empty for its own."""
    vae = catalogue.find_model(model).vae
    return Path(vae).name if vae else ""
