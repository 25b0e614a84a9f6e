"""Who calls, and which runs are there for them: the one way from a run's name, as somebody says it, to the run."""

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio.context import LocalContext
from gradio.helpers import special_args

from core.device import on_space
from core.train import runs
from core.train.folder import Folder
from core.types import UserError


def account() -> str | None:
    """The account of the visitor whose call this is; `None` at home, and for whoever is not logged in.

    Gradio gives it to a handler that asks for a profile; asked for here, no handler has to. It is the account's number, not its
    name, which can be given up and taken by somebody else.
    """
    if not on_space():
        return None
    (profile,), *_ = special_args(_asking, [], LocalContext.request.get(None))
    return profile["sub"] if profile else None


def _asking(_profile: gr.OAuthProfile | None) -> None:
    """How a handler asks for it."""


def is_by_address() -> bool:
    """Whether the caller's page was opened by an address or as localhost: by a name of its own, another site could point to this machine."""
    request = LocalContext.request.get(None)
    try:
        name = urlsplit(f"//{request.headers.get('host', '')}").hostname if request else None
        return name in (None, "localhost") or bool(ip_address(str(name)))
    except ValueError:
        return False


def found(run: Any) -> Folder:
    """The run of that name if it is the caller's. Raises `UserError` as for one that never was."""
    return runs.found(run, account())


def known(run: Any) -> Folder | None:
    """The same run, if there is one."""
    try:
        return found(run)
    except UserError:
        return None


def own() -> list[Folder]:
    """All runs of the account that calls, the newest first."""
    return runs.of(account())
