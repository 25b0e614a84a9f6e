"""Read TOML that somebody else wrote, within bounds.

Without them, tomllib's time grows with the square of the dots in a key.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from core.schema import limits
from core.schema.errors import UserError

_COMMENTS_AND_STRINGS = re.compile(
    r'''\#[^\n]* | """(?:[^"\\]|\\.?|"(?!""))*+(?:"""|\Z) | \'\'\'(?:[^']|'(?!''))*+(?:\'\'\'|\Z) '''
    r"""| "(?:[^"\\\n]|\\.?)*+"? | '[^'\n]*+'?""",
    re.VERBOSE | re.DOTALL,
)
"""Comments and strings, also those that do not end.

The pattern passes over each only once, so that no text takes more than linear time.
"""
_BRACKETS = re.compile(r"[\[\]{}]")
_DEEP_KEY = re.compile(rf"(?<![\w-])[\w-]++(?:[ \t]*+\.[ \t]*+[\w-]++){{{limits.TOML_DEPTH},}}+")
_INT64_END = 2**63


def read_toml(file: Path, where: str) -> dict[str, Any]:
    """Return the table of a TOML file in UTF-8.

    Raises `UserError` with the field `where` if `parse_toml` refuses the text.
    """
    with file.open("rb") as opened:
        return parse_toml(opened.read(limits.TOML_BYTES + 1), where)


def parse_toml(text: str | bytes, where: str) -> dict[str, Any]:
    """Return the table of a TOML text; bytes are UTF-8, with or without a byte order mark.

    Raises `UserError` with the field `where` if the text is not TOML, is longer than
    `limits.TOML_BYTES`, is nested deeper than `limits.TOML_DEPTH` or contains a whole number of
    more than 64 bits.
    """
    if len(text) > limits.TOML_BYTES:
        raise UserError(where, f"it is too long; the limit is {limits.TOML_BYTES:,} bytes.")
    try:
        told = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        _check_depth(told, where)
        table = tomllib.loads(told)
    # tomllib's and Unicode's errors are ValueErrors, and so is that of a number with thousands of
    # digits.
    except ValueError as error:
        raise UserError(
            where, f"it is not TOML, which has lines such as rank = 8: {' '.join(str(error).split())[:120]}."
        ) from error
    _check_numbers(table, where)
    return table


def _check_depth(text: str, where: str) -> None:
    bare = _COMMENTS_AND_STRINGS.sub(lambda match: "" if match[0].startswith("#") else "_", text)
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(bare):
        depth = depth + 1 if bracket[0] in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    if deepest > limits.TOML_DEPTH or _DEEP_KEY.search(bare):
        raise UserError(
            where,
            f"it is nested too deeply; a key may have fewer than {limits.TOML_DEPTH} dots, "
            "and lists and tables as many levels.",
        )


def _check_numbers(value: Any, where: str) -> None:
    """Raise `UserError` for a whole number of more than 64 bits, the most that TOML allows.

    Python's have no limit, and a sentence could not repeat them.
    """
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_numbers(each, where)
    elif isinstance(value, int) and not -_INT64_END <= value < _INT64_END:
        raise UserError(where, "a whole number is too large; TOML allows 64 bits.")
