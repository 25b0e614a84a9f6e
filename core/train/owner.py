"""Whose a run is: on a Space the account's that began it; without an account, and at home, whoever has its name may."""

import json
import secrets
from hashlib import sha256
from pathlib import Path

from core.device import on_space
from core.train.folder import Folder, write_text


def bind(folder: Folder, account: str | None) -> None:
    """From now on a Space gives the run to this account alone; to whoever has its name where there is none."""
    if account is not None:
        write_text(_file(folder), json.dumps({"account": _hash(account), "shown": secrets.token_hex(16)}))


def may(folder: Folder, account: str | None) -> bool:
    """Whether a visitor who has the run's name may know of it."""
    return not on_space() or not _file(folder).exists() or owns(folder, account)


def owns(folder: Folder, account: str | None) -> bool:
    """Whether the run was begun by this account."""
    return account is not None and _said(folder).get("account") == _hash(account)


def shown(folder: Folder) -> str:
    """What the place is called at which a page shows the run's files; its name alone does not lead to those of an account."""
    return _said(folder).get("shown", folder.name)


def _file(folder: Folder) -> Path:
    return folder.path / "account"


def _said(folder: Folder) -> dict[str, str]:
    try:
        return json.loads(_file(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _hash(account: str) -> str:
    return sha256(account.encode()).hexdigest()
