"""Fetch a LoRA or a base model from the Hub.

The page shows what has arrived, then chooses the file or model where it has a place for it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from core.hub import client as hub
from core.hub import downloads
from core.hub.names import FORMS, explain_other_address, is_hub_name
from core.lora.file import find_adapter_config
from core.models import bases, files, from_hub
from core.schema.errors import UserError
from core.schema.events import DownloadProgress, LoadProgress
from core.system.atomic_files import link_or_copy
from core.system.markdown import escape_markdown
from tabs.server.call_wrapper import show_refusal
from tabs.server.page_files import create_folder
from tabs.shared.model_choices import list_model_choices


def build_lora_box(elem_id: str) -> dict[str, Any]:
    """Build the controls that fetch a LoRA; `wire` connects them."""
    return _build_box("From Hugging Face", "owner/name:file.safetensors, or an address", elem_id)


def build_base_box(elem_id: str) -> dict[str, Any]:
    """Build the controls that fetch a base model; `wire` connects them."""
    return _build_box("Base model from Hugging Face", "owner/name:file.safetensors, or an address", elem_id)


def _build_box(label: str, placeholder: str, elem_id: str) -> dict[str, Any]:
    with gr.Row():
        name = gr.Textbox("", label=label, placeholder=placeholder, min_width=160, scale=4, elem_id=elem_id)
        fetch = gr.Button("Download", size="sm", min_width=70, scale=1, elem_id=f"{elem_id}-fetch")
    return {"hub_id": name, "fetch": fetch, "fetch_message": gr.Markdown(elem_id=f"{elem_id}-arrived")}


def wire(box: dict[str, Any], fetch: Callable[..., Iterator[tuple[str, Any]]], target: Any) -> Any:
    """Connect the box: the button, or Enter, fetches what is named into `target`. Returns the event."""
    return gr.on(
        [box["fetch"].click, box["hub_id"].submit],
        fetch,
        [box["hub_id"], target],
        [box["fetch_message"], target],
        show_progress="hidden",
        concurrency_id="fetch",
        api_visibility="private",
    )


def fetch_lora_to_file(hub_id: str, _: Any) -> Iterator[tuple[str, Any]]:
    """Fetch the LoRA of a Hub id into a file component."""

    def fetch() -> tuple[str, str]:
        there = from_hub.fetch_lora(_check_hub_id(hub_id, "lora"))
        at = create_folder() / there.name
        link_or_copy(there.resolve(), at)
        if settings := find_adapter_config(there):  # PEFT's alpha stands there
            link_or_copy(settings.resolve(), at.with_name(settings.name))
        exact = hub.find_origin(there) or hub_id
        hub.record_origin(at, exact)  # `at` is a copy where links do not reach
        return exact, str(at)

    yield from _stream_progress(fetch)


def fetch_base_to_choice(
    hub_id: str,
    selected: str | list[str] | None,
    list_choices: Callable[[], list[tuple[str, str]]] = list_model_choices,
) -> Iterator[tuple[str, Any]]:
    """Fetch the base model of a Hub id into a list of models, to choose one or several."""

    def fetch() -> tuple[str, Any]:
        found = bases.find_model(_check_hub_id(hub_id, "model"))
        files.fetch_model_files(found)
        kept = [*selected, found.name] if isinstance(selected, list) else [found.name]
        choices = list_choices()
        known = {name for _, name in choices}
        choices += [(each, each) for each in kept if each not in known]
        return found.name, gr.update(
            choices=choices, value=kept if isinstance(selected, list) else found.name
        )

    yield from _stream_progress(fetch)


def _check_hub_id(name: str, field: str) -> str:
    if not is_hub_name(said := str(name or "").strip()):
        raise UserError(
            field, explain_other_address(said) or f"{said[:60]!r} is not a name on the Hub. Use {FORMS}."
        )
    return said


def _stream_progress(fetch: Callable[[], tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield what has arrived so far, then the exact name and what the target becomes."""
    yield "Contacting Hugging Face …", gr.skip()
    events = downloads.report_downloads(fetch)
    try:
        while True:
            yield describe_progress(next(events)), gr.skip()
    except StopIteration as done:
        exact, value = done.value
    except UserError as error:
        yield show_refusal(error), gr.skip()
        return
    yield f"Downloaded: {escape_markdown(exact)}", value


def describe_progress(event: DownloadProgress | LoadProgress) -> str:
    """Return a line that says how much has arrived."""
    if isinstance(event, LoadProgress):
        return (
            f"Loading {escape_markdown(event.title)}: "
            f"{event.bytes_done / 1e9:.1f} of {event.bytes_total / 1e9:.1f} GB"
        )
    return (
        f"Downloading {escape_markdown(event.repo)}: "
        f"{event.bytes_done / 1e6:,.0f} of {event.bytes_total / 1e6:,.0f} MB"
    )
