"""Who calls, and which runs are theirs.

This is the one way from a run's name, as a visitor gives it, to the run.
"""

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from core.schema.errors import UserError
from core.system.device import is_space
from core.train import runs
from core.train.trainer.run_folder import RunFolder
from tabs.server.gradio_internals import LocalContext, special_args


def get_account_id() -> str | None:
    """Return the account of the visitor whose call this is.

    It is `None` at home, and for a visitor who is not logged in. Gradio gives it to a handler that
    asks for a profile; asked for here, no handler has to. It is the account's number, not its name,
    which can be given up and taken by somebody else.
    """
    if not is_space():
        return None
    (profile,), *_ = special_args(_request_profile, [], LocalContext.request.get(None))
    return profile["sub"] if profile else None


def _request_profile(_profile: gr.OAuthProfile | None) -> None:
    """Ask for the profile as a handler does."""


def is_trusted_host() -> bool:
    """Whether the caller's page was opened by an address or as localhost.

    By a name of its own, another site could point to this machine.
    """
    request = LocalContext.request.get(None)
    try:
        name = urlsplit(f"//{request.headers.get('host', '')}").hostname if request else None
        return name in (None, "localhost") or bool(ip_address(str(name)))
    except ValueError:
        return False


def find_run(run: Any) -> RunFolder:
    """Return the run of that name if it is the caller's.

    Raises `UserError` for any other, as for one that never existed.
    """
    return runs.find_run(run, get_account_id())


def find_run_or_none(run: Any) -> RunFolder | None:
    """Return the run of that name if it is the caller's, else `None`."""
    try:
        return find_run(run)
    except UserError:
        return None


def list_trusted_runs() -> list[RunFolder]:
    """Return the runs whose images the caller may see without naming one, the newest first.

    At home, all runs are the visitor's, but not for a page opened through a share link: whoever was given
    a LoRA was not given its training images.
    """
    return runs.list_all_runs() if is_own_machine() else list_runs()


def is_own_machine() -> bool:
    """Whether the caller is at home, and not a guest through a share link."""
    return not is_space() and is_trusted_host()


def list_runs() -> list[RunFolder]:
    """Return all runs of the account that calls, the newest first."""
    return runs.list_runs(get_account_id())
