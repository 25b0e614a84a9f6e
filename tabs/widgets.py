"""What the tabs and endpoints share: a check before the queue."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from core import asking


def validator(names: tuple[str, ...]) -> Callable[..., list[dict[str, Any]]]:
    """Gradio's check before the queue: each field's problem, said beside it; no queue place is taken."""

    def check(**values: Any) -> list[dict[str, Any]]:
        found = asking.problems(values)
        return [gr.validate(name not in found, found.get(name, "")) for name in names]

    return check
