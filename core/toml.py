"""TOML that somebody wrote: read within bounds, since tomllib's time grows with the square of a key's dots."""

import re
import tomllib
from pathlib import Path
from typing import Any

from core import limits
from core.types import UserError

_WORDS = re.compile(
    r'''\#[^\n]* | """(?:[^"\\]|\\.?|"(?!""))*+(?:"""|\Z) | \'\'\'(?:[^']|'(?!''))*+(?:\'\'\'|\Z) | "(?:[^"\\\n]|\\.?)*+"? | '[^'\n]*+'?''',
    re.VERBOSE | re.DOTALL,
)
"""Comments and strings, also those that do not end: each is passed over once, so that no text takes more than linear time."""
_BRACKETS = re.compile(r"[\[\]{}]")
_DOTTED = re.compile(rf"(?<![\w-])[\w-]++(?:[ \t]*+\.[ \t]*+[\w-]++){{{limits.TOML_DEPTH},}}+")
_WHOLE = 2**63


def read_toml(file: Path, where: str) -> dict[str, Any]:
    """The table of a TOML file in UTF-8. Raises `UserError`, which begins with `where`, as `parse_toml`."""
    with file.open("rb") as opened:
        return parse_toml(opened.read(limits.TOML_BYTES + 1), where)


def parse_toml(text: str | bytes, where: str) -> dict[str, Any]:
    """The table of a TOML text; bytes are UTF-8, with a byte order mark or without.

    Raises `UserError`, which begins with `where`, for what is no TOML, longer than `limits.TOML_BYTES`, nested deeper than
    `limits.TOML_DEPTH` or holds a whole number of more than 64 bits.
    """
    if len(text) > limits.TOML_BYTES:
        raise UserError(f"{where}: it is too long; TOML takes up to {limits.TOML_BYTES:,} bytes.")
    try:
        told = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        _check_depth(told, where)
        table = tomllib.loads(told)
    except ValueError as error:  # tomllib's and unicode's errors are ValueErrors, and so is a number of thousands of digits
        raise UserError(f"{where}: it is not TOML, which has lines such as rank = 8: {' '.join(str(error).split())[:120]}.") from error
    _check_numbers(table, where)
    return table


def _check_depth(text: str, where: str) -> None:
    bare = _WORDS.sub(lambda match: "" if match[0].startswith("#") else "_", text)
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(bare):
        depth = depth + 1 if bracket[0] in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    if deepest > limits.TOML_DEPTH or _DOTTED.search(bare):
        raise UserError(f"{where}: it is nested too deeply; a key takes fewer than {limits.TOML_DEPTH} dots, and lists and tables as many levels.")


def _check_numbers(value: Any, where: str) -> None:
    """TOML's whole numbers have 64 bits; Python's have no end, and could not be repeated in a sentence."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_numbers(each, where)
    elif isinstance(value, int) and not -_WHOLE <= value < _WHOLE:
        raise UserError(f"{where}: a whole number is too large; TOML takes those of 64 bits.")
