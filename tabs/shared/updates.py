"""Let handlers of the page change components: by name, with only what changes, and fresh choices."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import wraps
from typing import Any

import gradio as gr

from tabs.shared.checks import QUIET_OPTIONS, translate_errors


def answer_by_name(handler: Callable[..., Any], components: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fn` and `outputs` of an event whose handler returns or yields updates by name.

    `components` are the outputs, by the names that the handler uses. A component that an answer does
    not name stays as it is.
    """

    def find_components(updates: Mapping[str, Any]) -> Any:
        # Gradio does not take an empty dict for an answer.
        return {components[name]: update for name, update in updates.items()} or gr.skip()

    @wraps(handler)
    def call_once(*args: Any, **kwargs: Any) -> Any:
        return find_components(handler(*args, **kwargs))

    @wraps(handler)
    def stream_results(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with closing(handler(*args, **kwargs)) as results:
            yield from map(find_components, results)

    fn = stream_results if inspect.isgeneratorfunction(handler) else call_once
    return {"fn": fn, "outputs": list(components.values())}


def refresh_choices(
    event: Callable[..., Any],
    component: Any,
    list_choices: Callable[..., list[Any]],
    inputs: Sequence[Any] = (),
) -> None:
    """Show the choices that there are at each `event`, such as a list's `focus`; the value stays.

    Files come and go while the app runs. `list_choices` takes the values of `inputs`, which have defaults.
    """
    shown = gr.State(_hash_choices(list_choices()))

    def refresh(selected: Any, shown: str, *values: Any) -> tuple[Any, Any]:
        with translate_errors():
            choices = list_choices(*values)
        # A list that is drawn anew under a person's pointer is only worth it if it has changed.
        if (found := _hash_choices(choices)) == shown:
            return gr.skip(), gr.skip()
        names = {choice[1] if isinstance(choice, tuple) else choice for choice in choices}
        chosen = selected if isinstance(selected, list) else [selected] if selected else []
        # What came from the Hub stays in the list while it is chosen: Gradio refuses it otherwise.
        return gr.update(choices=choices + [each for each in chosen if each not in names]), found

    event(refresh, [component, shown, *inputs], [component, shown], **QUIET_OPTIONS)


def _hash_choices(choices: list[Any]) -> str:
    return hashlib.sha256(repr(choices).encode()).hexdigest()
