"""What the tabs and endpoints share: checks before the queue, and sentences for what goes wrong behind it."""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gradio as gr

from core import asking
from core.types import UserError


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


def refusals(names: tuple[str, ...], plan: Callable[[dict[str, Any]], Any], fields: Mapping[str, str]) -> Callable[..., list[dict[str, Any]]]:
    """The same check for what is planned whole: `plan` raises a `UserError` that begins with its field.

    `fields` says which control stands for a field of another name.
    """

    def check(**values: Any) -> list[dict[str, Any]]:
        try:
            plan(values)
        except UserError as error:
            field = str(error).partition(":")[0]
            at = field if field in names else fields.get(field, names[0])
            return [gr.validate(name != at, str(error)) for name in names]
        return [gr.validate(True, "") for _ in names]

    return check


@contextmanager
def sentences() -> Iterator[None]:
    """What a person should know of a job that cannot be done, a full disk included, as Gradio shows it."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise gr.Error("The disk is full: make room and try again. What was finished stays.") from error
