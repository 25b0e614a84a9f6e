"""The LoRAs of the Generate tab: from the library, an upload or the Hub, with what is known of each."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from core.models import lora_library
from core.models.lora_facts import LoraFacts
from core.prompts.grammar import extract_lora_tags
from core.schema import limits
from core.schema.types import LoraUse
from core.system.device import is_space
from tabs.shared import hub_fetch
from tabs.shared.checks import READ_OPTIONS, translate_errors
from tabs.shared.lora_choices import LORA_ORDERS, describe_choice, find_chosen_lora, list_lora_choices
from tabs.shared.model_choices import name_model
from tabs.shared.updates import refresh_choices


def build_panel() -> dict[str, Any]:
    """Build the panel of the LoRA: components by name."""
    c: dict[str, Any] = {}
    with gr.Accordion("LoRA", open=False):
        info = (
            f"of the uploaded LoRA: {limits.STRENGTH[0]:g} to {limits.STRENGTH[1]:g} (its alpha is applied)"
        )
        c["lora_file"] = gr.File(
            label="Upload a LoRA", file_types=[".safetensors"], height=110, elem_id="lora"
        )
        c["lora_strength"] = gr.Slider(*limits.STRENGTH, 1, step=0.05, label="Strength", info=info)
        c["shelf"] = gr.Dropdown(
            list_lora_choices(),
            value=None,
            label="LoRA library",
            info="adds its tag and trigger to the prompt",
            elem_id="shelf",
        )
        c["shelf_order"] = gr.Radio(
            list(LORA_ORDERS.items()),
            value="name",
            label="Sort the library by",
            info="what your own sweeps measured",
            visible=not is_space(),  # nothing is kept there
            elem_id="shelf-order",
        )
        c["lora_facts"] = gr.HTML(elem_id="lora-facts", padding=False)
        c["lora_suggested"] = gr.State(1)
        c["lora_inserted"] = gr.State("")
        c |= hub_fetch.build_lora_box("generate-hub")
    return c


def wire(c: dict[str, Any]) -> None:
    """Connect the LoRA that is chosen, uploaded or fetched: what is known of it is shown and filled in."""
    listed = partial(gr.on, [c["shelf"].focus, c["shelf_order"].input])
    refresh_choices(listed, c["shelf"], list_lora_choices, [c["shelf_order"]])
    c["shelf"].input(
        _choose_lora,
        [c["shelf"], c["model"], c["preset"], c["prompt"], c["lora_inserted"]],
        [c["lora_facts"], c["prompt"], c["lora_inserted"]],
        **READ_OPTIONS,
    )
    gr.on(
        [c["preset"].input, c["model"].change],
        _describe_lora,
        [c["lora_file"], c["shelf"], c["model"], c["preset"]],
        c["lora_facts"],
        **READ_OPTIONS,
    )
    fetched = hub_fetch.wire(c, hub_fetch.fetch_lora_to_file, c["lora_file"])
    # Not at each change: Send to Generate brings a file with a strength of its own.
    for event in (c["lora_file"].upload, fetched.success):
        event(
            _bring_lora,
            [c["lora_file"], c["model"], c["preset"], c["lora_strength"], c["lora_suggested"]],
            [c["lora_facts"], c["lora_strength"], c["lora_suggested"]],
            **READ_OPTIONS,
        )


def _describe_lora(file: str | None, name: str | None, model: str, preset: str) -> str:
    """Return what is known of the LoRA that is chosen, on another model."""
    with translate_errors():
        return describe_choice(find_chosen_lora(file, name), name_model(model, preset))[0]


def _choose_lora(name: str | None, model: str, preset: str, text: str, inserted: str) -> tuple[str, Any, Any]:
    """Return what is known of a LoRA of the library, the prompt with it, and what was put at its end.

    What the choice before put there goes, if it is still as it was.
    """
    with translate_errors():
        path = find_chosen_lora(None, name)
        shown, facts = describe_choice(path, name_model(model, preset))
    if not (path and facts):
        return shown, gr.skip(), gr.skip()
    own = text.removesuffix(inserted)
    prompt = _add_to_prompt(own, path, facts)
    return shown, prompt, prompt.removeprefix(own.strip().rstrip(",")) if prompt != own else ""


def _bring_lora(
    file: str | None, model: str, preset: str, strength: float, suggested: float
) -> tuple[str, Any, Any]:
    """Return what is known of a LoRA that was brought, and its strength.

    A strength that a person set, which is not the one `suggested` before, stays.
    """
    shown, facts = describe_choice(file, name_model(model, preset))
    if facts is None or strength != suggested:
        return shown, gr.skip(), gr.skip()
    found = facts.strength.value if facts.strength else 1
    return shown, found, found


def _add_to_prompt(prompt: str, path: str, facts: LoraFacts) -> str:
    """Return the prompt with a LoRA's trigger and tag at its end, at the strength that is known for it.

    A tag that a person wrote for it stays as it is.
    """
    name = lora_library.find_name(Path(path))
    if any(tag.name in (name, lora_library.slugify(name)) for tag in extract_lora_tags(prompt)[1]):
        return prompt
    use = LoraUse(path=path, strength=facts.strength.value if facts.strength else 1.0)
    missing = facts.trigger if facts.trigger and facts.trigger.lower() not in prompt.lower() else ""
    start = ", ".join(part for part in (prompt.strip().rstrip(","), missing) if part)
    return f"{start} {lora_library.format_lora_tag(use)}".strip()
