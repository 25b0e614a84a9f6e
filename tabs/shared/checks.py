"""Checks before the queue, logins, and sentences for errors, for the tabs and the endpoints."""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import BoundedSemaphore
from typing import Any

import gradio as gr
from huggingface_hub import get_token

from core.generate import request
from core.hub.preflight import NeedsJob, enter_preflight
from core.runtime.selfcheck import check_login
from core.schema.errors import UserError
from core.system.device import is_space
from core.system.markdown import format_warning
from tabs.server import visitor as caller

QUIET_OPTIONS: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
"""Options of events that take no time: they wait in no queue."""
WRITE_OPTIONS: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_id": "files",
    "concurrency_limit": 2,
}
"""Options of events that decode pictures or write files.

They run two at a time, however many visitors press; a picture alone may take 700 MB of memory.
"""
CHECK_TIMEOUT = 10
"""Seconds that a check waits for its turn."""
READ_OPTIONS: dict[str, Any] = {**WRITE_OPTIONS, "concurrency_id": "looks"}
"""Options of events that only decode what is here.

They have a queue of their own, so that none waits behind an import.
"""


def make_request_validator(
    names: tuple[str, ...], convert: Callable[[dict[str, Any]], Mapping[str, Any]] = dict
) -> Callable[..., list[dict[str, Any]]]:
    """Make Gradio's check before the queue for pictures, which shows each problem beside its field.

    `convert` turns what the components hold into the fields of a `PictureForm`. A problem of a
    stage's setting, `hires.factor`, belongs to the control `hires_factor`, `hires` or `factor`,
    whichever there is.
    """

    def check_values(**values: Any) -> list[dict[str, Any]]:
        found, problems = {}, {}
        try:
            with _limit_checks():
                problems = request.find_form_problems(convert(values))
        except UserError as error:
            problems = {error.field or names[0]: str(error)}
        for field, sentence in problems.items():
            stage, _, part = field.partition(".")
            control = next((name for name in (f"{stage}_{part}", stage, part) if name in names), names[0])
            found[control] = sentence
        return [gr.validate(name not in found, found.get(name, "")) for name in names]

    return check_values


def make_plan_validator(
    names: tuple[str, ...], plan: Callable[[dict[str, Any]], Any], fields: Mapping[str, str]
) -> Callable[..., list[dict[str, Any]]]:
    """Make Gradio's check before the queue for what is planned as a whole.

    `plan` raises `UserError` with its field. `fields` says which control stands for a field of
    another name. Whatever must be fetched from the Hub is checked by its form alone; the job plans
    again.
    """

    def check_values(**values: Any) -> list[dict[str, Any]]:
        try:
            with _limit_checks():
                plan(values)
        except UserError as error:
            field = error.field or ""
            at = field if field in names else fields.get(field, names[0])
            return [gr.validate(name != at, str(error)) for name in names]
        return [gr.validate(True, "") for _ in names]

    return check_values


@contextmanager
def _limit_checks() -> Iterator[None]:
    """Keep a check cheap, and one of few.

    Checks have no queue of their own, and share their threads with the jobs. Raises `UserError` if
    the check gets no turn within `CHECK_TIMEOUT` seconds.
    """
    if not _checks.acquire(timeout=CHECK_TIMEOUT):
        raise UserError(None, "Sweetspot is busy with other requests; try again in a moment.")
    try:
        with suppress(NeedsJob), enter_preflight():
            yield
    finally:
        _checks.release()


_checks = BoundedSemaphore(4)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn errors that a person should know of into a `gr.Error`, as Gradio shows it.

    These are each `UserError`, and a full disk.
    """
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise gr.Error("The disk is full. Free up space and try again. Finished work is kept.") from error


def build_login_box(elem_id: str) -> gr.Checkbox:
    """Build the checkbox by which a person at home lets the machine's login be used.

    On a Space it is hidden, and the visitor's own login button is beside it.
    """
    tick = gr.Checkbox(
        False, label="Use this computer's Hugging Face login", visible=not is_space(), elem_id=elem_id
    )
    if is_space():
        gr.Markdown(format_warning(why)) if (why := check_login()) else gr.LoginButton()
    return tick


def get_login_token(login: bool, visitor_token: gr.OAuthToken | None) -> str | None:
    """Return the visitor's own token on a Space; at home the machine's, if `login` is ticked.

    Raises `UserError` if the page was not opened as localhost or by an address.
    """
    if is_space():
        return visitor_token.token if visitor_token else None
    if login and not caller.is_trusted_host():
        raise UserError(
            "login",
            "this computer's login only works if the page was opened as localhost "
            "or by an address such as 127.0.0.1.",
        )
    return get_token() if login else None


def require_login_token(login: bool, visitor_token: gr.OAuthToken | None) -> str:
    """Return the token of a login. Raises `UserError` if there is none."""
    if own := get_login_token(login, visitor_token):
        return own
    at_home = "tick the use of this computer's login, after running `hf auth login`."
    raise UserError("login", "log in first." if is_space() else at_home)
