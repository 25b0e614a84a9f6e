"""Who may access a run.

On a Space, the account that began it. A run without an account, or one at home, is open to anybody
who knows its name.
"""

import json
import secrets
from hashlib import sha256
from pathlib import Path

from core.system.device import is_space
from core.train.trainer.run_folder import RunFolder, write_text


def bind_account(folder: RunFolder, account: str | None) -> None:
    """Bind the run to this account: from now on a Space gives it to no other.

    Without an account, anybody who knows its name may access it.
    """
    if account is not None:
        write_text(
            _get_account_file(folder),
            json.dumps({"account": _hash_account(account), "shown": secrets.token_hex(16)}),
        )


def can_access(folder: RunFolder, account: str | None) -> bool:
    """Whether a visitor who knows the run's name may access it."""
    return not is_space() or not _get_account_file(folder).exists() or is_owner(folder, account)


def is_owner(folder: RunFolder, account: str | None) -> bool:
    """Whether this account began the run."""
    return account is not None and _read_account(folder).get("account") == _hash_account(account)


def get_public_id(folder: RunFolder) -> str:
    """Return the id under which a page shows the run's files.

    For a run with an account it is not the run's name, which therefore does not lead to its files.
    """
    return _read_account(folder).get("shown", folder.name)


def _get_account_file(folder: RunFolder) -> Path:
    return folder.path / "account"


def _read_account(folder: RunFolder) -> dict[str, str]:
    """Return the account that a run is bound to; empty without one, and where the file is damaged.

    On a Space, a run whose file is damaged is nobody's.
    """
    try:
        bound = json.loads(_get_account_file(folder).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return bound if isinstance(bound, dict) else {}


def _hash_account(account: str) -> str:
    return sha256(account.encode()).hexdigest()
