"""Imported before anything else: where a package of requirements.txt is missing, the start ends with a sentence instead of a traceback."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
MODULES = {"tipo-kgen": "kgen"}
"""Packages that are imported by another name."""


def missing() -> list[str]:
    """The packages that every machine needs and this one lacks."""
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    needed = [re.split(r"[\[<>=~! ]", line)[0] for line in lines if line and ";" not in line]
    return [name for name in needed if not _there(MODULES.get(name, name))]


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


if gone := missing():
    sys.exit(f"Sweetspot cannot start: {', '.join(gone)} is not installed. `pip install -r requirements.txt` installs what is needed.")
