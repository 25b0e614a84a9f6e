"""What the tabs and endpoints share: a check before the queue."""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from core import asking


def validator(names: tuple[str, ...], said: Callable[[dict[str, Any]], Mapping[str, Any]] = dict) -> Callable[..., list[dict[str, Any]]]:
    """Gradio's check before the queue: each field's problem, said beside it; no queue place is taken.

    `said` turns what the components hold into what `core.asking` takes. A problem of a stage's setting,
    `hires.factor`, belongs to the control `hires_factor`, `hires` or `factor`, whichever there is.
    """

    def check(**values: Any) -> list[dict[str, Any]]:
        found = {}
        for field, sentence in asking.problems(said(values)).items():
            stage, _, part = field.partition(".")
            found[next((name for name in (f"{stage}_{part}", stage, part) if name in names), names[0])] = sentence
        return [gr.validate(name not in found, found.get(name, "")) for name in names]

    return check
