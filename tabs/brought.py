"""A LoRA or a base from the Hub: fetched with what has arrived in sight, then chosen where the page has a place for it."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from core import arriving, hub, modelfiles, models, presets, pulled
from core.atomic import placed
from core.events import Fetch, Opening
from core.markdown import plain, warned
from core.types import UserError
from tabs.files import new_folder


def lora_box(elem_id: str) -> dict[str, Any]:
    """The controls that fetch a LoRA; see `wire`."""
    return _box("Or one from the Hub", "owner/name, or owner/name:file.safetensors", elem_id)


def base_box(elem_id: str) -> dict[str, Any]:
    """The controls that fetch a base model."""
    return _box("A base from the Hub", "owner/name, or owner/name:file.safetensors", elem_id)


def _box(label: str, placeholder: str, elem_id: str) -> dict[str, Any]:
    with gr.Row():
        name = gr.Textbox("", label=label, placeholder=placeholder, min_width=160, scale=4, elem_id=elem_id)
        fetch = gr.Button("Fetch", size="sm", min_width=70, scale=1, elem_id=f"{elem_id}-fetch")
    return {"brought": name, "fetch": fetch, "arrived": gr.Markdown(elem_id=f"{elem_id}-arrived")}


def wire(box: dict[str, Any], fetched: Callable[..., Iterator[tuple[str, Any]]], target: Any) -> None:
    """Pressing Fetch, or Enter, fetches what is named into `target`."""
    gr.on(
        [box["fetch"].click, box["brought"].submit],
        fetched,
        [box["brought"], target],
        [box["arrived"], target],
        show_progress="hidden",
        concurrency_id="fetch",
        api_visibility="private",
    )


def into_file(name: str, _: Any) -> Iterator[tuple[str, Any]]:
    """The LoRA of a Hub id, into a file's place."""

    def fetch() -> tuple[str, str]:
        there = pulled.lora(_id(name, "lora"))
        at = new_folder() / there.name
        placed(there.resolve(), at)
        exact = hub.origin(there) or name
        hub.remember(at, exact)  # a copy, where links do not reach
        return exact, str(at)

    yield from _shown(fetch)


def into_choice(name: str, chosen: str | list[str] | None) -> Iterator[tuple[str, Any]]:
    """The base of a Hub id, into a list of models that one or several are chosen of."""

    def fetch() -> tuple[str, Any]:
        found = models.find(_id(name, "model"))
        modelfiles.folder(found)
        kept = [*chosen, found.name] if isinstance(chosen, list) else [found.name]
        choices = [(model.title, model.name) for model in presets.models().values()]
        choices += [(each, each) for each in kept if each not in presets.models()]
        return found.name, gr.update(choices=choices, value=kept if isinstance(chosen, list) else found.name)

    yield from _shown(fetch)


def _id(name: str, field: str) -> str:
    if not hub.is_id(said := str(name or "").strip()):
        raise UserError(f"{field}: {said[:60]!r} is no Hub id; it takes owner/name, or owner/name:file.safetensors.")
    return said


def _shown(fetch: Callable[[], tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """What has arrived so far, then the exact name and what the target becomes."""
    yield "Asking the Hub …", gr.skip()
    events = arriving.fetching(fetch)
    try:
        while True:
            yield arrived(next(events)), gr.skip()
    except StopIteration as done:
        exact, value = done.value
    except UserError as error:
        yield warned(str(error)), gr.skip()
        return
    yield f"Here: {plain(exact)}", value


def arrived(event: Fetch | Opening) -> str:
    """How much of it is here, in a line."""
    if isinstance(event, Opening):
        return f"Opening {plain(event.what)}: {event.done / 1e9:.1f} of {event.total / 1e9:.1f} GB"
    return f"Fetching {plain(event.what)}: {event.done / 1e6:,.0f} of {event.total / 1e6:,.0f} MB"
