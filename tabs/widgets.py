"""What the tabs and endpoints share: checks before the queue, whose login is used, and sentences for what goes wrong."""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import gradio as gr
from huggingface_hub import get_token

from core import asking
from core.device import on_space
from core.selfcheck import no_login
from core.types import UserError


class Measured(NamedTuple):
    """What a tab measured, for the Publish tab."""

    publish: Any
    """The button that takes it there."""
    result: Any
    """The state that holds its `report`, and of a sweep the `lora`."""


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


def sign_in(elem_id: str) -> gr.Checkbox:
    """The tick by which a person at home lets the machine's login be used; on a Space the visitor's own button is beside it."""
    tick = gr.Checkbox(False, label="Use this computer's Hugging Face login", visible=not on_space(), elem_id=elem_id)
    if on_space():
        gr.Markdown(f"⚠️ {why}") if (why := no_login()) else gr.LoginButton()
    return tick


def token(login: bool, visitor: gr.OAuthToken | None) -> str | None:
    """The visitor's own on a Space; at home the machine's, once that was ticked."""
    if on_space():
        return visitor.token if visitor else None
    return get_token() if login else None


def signed_in(login: bool, visitor: gr.OAuthToken | None) -> str:
    """The same, where nothing goes without. Raises `UserError`."""
    if own := token(login, visitor):
        return own
    raise UserError("login: log in first." if on_space() else "login: tick that this computer's login may be used, after `hf auth login`.")
