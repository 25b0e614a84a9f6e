"""The buttons that send a finished image on, from the gallery and the history: into Generate and Sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from core.models.lora_library import list_loras, slugify
from core.prompts.grammar import extract_lora_tags
from core.schema import limits
from core.system.markdown import escape_markdown
from tabs.shared.checks import READ_OPTIONS
from tabs.shared.handoff import PictureHandoff

SEEDS = 4
"""Seeds of a sweep around an image; two are needed for a verdict."""


def build_send_buttons(place: str) -> dict[str, Any]:
    """Build the buttons: components by names that begin with `place`."""
    labels = {"use": "Use these settings", "sweep": "Send to Sweep"}
    return {
        f"{place}_{name}": gr.Button(label, size="sm", min_width=140, elem_id=f"{place}-{name}")
        for name, label in labels.items()
    }


def wire_send_buttons(
    c: dict[str, Any],
    place: str,
    file: Any,
    use_settings: dict[str, Any],
    load_settings: Callable[[str, str], tuple[dict[str, Any], str]],
) -> PictureHandoff:
    """Connect the button that loads the settings of the image in the state `file`.

    `use_settings` are the options of the event that does so, and `load_settings` what it puts into the
    controls. Returns what the Sweep tab connects.
    """

    def read_for_sweep(file: str, uploaded: str | None, preset: str) -> dict[str, Any]:
        values, said = load_settings(file, preset)
        if "prompt" not in values:
            raise gr.Error(said)
        return {"tabs": gr.Tabs(selected="sweep"), **_choose_for_sweep(values, said, uploaded)}

    c[f"{place}_use"].click(inputs=[file, c["preset"]], **use_settings, **READ_OPTIONS)
    return PictureHandoff(c[f"{place}_sweep"], [file, c["lora_file"]], read_for_sweep)


def _choose_for_sweep(values: dict[str, Any], said: str, uploaded: str | None) -> dict[str, Any]:
    """Return what an image puts into the Sweep tab: its first LoRA, its prompt without LoRAs, and its seed.

    `values` and `said` are what it puts into the Generate tab, where the LoRA `uploaded` is. What a sweep
    does not take from an image is said.
    """
    prompt, tags, _ = extract_lora_tags(values["prompt"])
    names = list(dict.fromkeys(tag.name for tag in tags))
    here = {slugify(name): name for name in list_loras()}
    notes = [said, "A sweep takes size, steps, sampler, CFG and negative prompt from the preset."]
    chosen: dict[str, Any] = {}
    if not names:
        notes.append("The image names no LoRA: choose one.")
    elif slugify(names[0]) in here:
        chosen = {"lora_file": None, "shelf": here[slugify(names[0])]}
    elif uploaded and slugify(Path(uploaded).stem) == slugify(names[0]):
        chosen = {"lora_file": uploaded}
    else:
        notes.append(f"The LoRA {escape_markdown(names[0])} is not in the library: upload it.")
    if names[1:]:
        notes.append(f"It has one LoRA only; left out: {escape_markdown(', '.join(names[1:]))}.")
    if isinstance(seed := values["seed"], int):
        last = min(seed + SEEDS - 1, limits.SEED[1])
        chosen["seeds"] = f"{last - SEEDS + 1}-{last}"
    return {
        **chosen,
        **{name: values[name] for name in ("preset", "model")},
        "prompts": " ".join(prompt.split()).strip(" ,"),
        "model_note": "",
        "status": " ".join(notes),
    }
