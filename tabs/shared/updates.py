"""Let a handler of the page answer by the names of components, with only what changes."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import wraps
from typing import Any

import gradio as gr


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
