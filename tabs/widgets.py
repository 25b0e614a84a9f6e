"""What the tabs and endpoints share: checks before the queue, whose login is used, and sentences for what goes wrong."""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import BoundedSemaphore
from typing import Any, NamedTuple

import gradio as gr
from huggingface_hub import get_token

from core import asking
from core.beforehand import Elsewhere, beforehand
from core.device import on_space
from core.markdown import warned
from core.selfcheck import no_login
from core.types import UserError
from tabs import caller

WRITES: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_id": "files", "concurrency_limit": 2}
"""Events that decode pictures or write files: two at a time, however many visitors press; a picture alone may take 700 MB of memory."""
PATIENCE = 10
"""Seconds that a check waits for its turn."""
LOOKS: dict[str, Any] = {**WRITES, "concurrency_id": "looks"}
"""Those that decode only what is here: nobody's look waits behind an import."""


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
        found, problems = {}, {}
        try:
            with _look():
                problems = asking.problems(said(values))
        except UserError as error:
            problems = {names[0]: str(error)}
        for field, sentence in problems.items():
            stage, _, part = field.partition(".")
            found[next((name for name in (f"{stage}_{part}", stage, part) if name in names), names[0])] = sentence
        return [gr.validate(name not in found, found.get(name, "")) for name in names]

    return check


def refusals(names: tuple[str, ...], plan: Callable[[dict[str, Any]], Any], fields: Mapping[str, str]) -> Callable[..., list[dict[str, Any]]]:
    """The same check for what is planned whole: `plan` raises a `UserError` that begins with its field.

    `fields` says which control stands for a field of another name. Of what must be fetched from the Hub the form alone is looked
    at; the job plans again.
    """

    def check(**values: Any) -> list[dict[str, Any]]:
        try:
            with _look():
                plan(values)
        except UserError as error:
            field = str(error).partition(":")[0]
            at = field if field in names else fields.get(field, names[0])
            return [gr.validate(name != at, str(error)) for name in names]
        return [gr.validate(True, "") for _ in names]

    return check


@contextmanager
def _look() -> Iterator[None]:
    """A check that is cheap, and one of few: checks have no queue of their own, and share their threads with the jobs. Raises `UserError`."""
    if not _checks.acquire(timeout=PATIENCE):
        raise UserError("The studio is busy with others' checks; try again in a moment.")
    try:
        with suppress(Elsewhere), beforehand():
            yield
    finally:
        _checks.release()


_checks = BoundedSemaphore(4)


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
        gr.Markdown(warned(why)) if (why := no_login()) else gr.LoginButton()
    return tick


def token(login: bool, visitor: gr.OAuthToken | None) -> str | None:
    """The visitor's own on a Space; at home the machine's, once that was ticked. Raises `UserError`."""
    if on_space():
        return visitor.token if visitor else None
    if login and not caller.is_by_address():
        raise UserError("login: this computer's login is used for a page that was opened as localhost or by an address such as 127.0.0.1 alone.")
    return get_token() if login else None


def signed_in(login: bool, visitor: gr.OAuthToken | None) -> str:
    """The same, where nothing goes without. Raises `UserError`."""
    if own := token(login, visitor):
        return own
    raise UserError("login: log in first." if on_space() else "login: tick that this computer's login may be used, after `hf auth login`.")
