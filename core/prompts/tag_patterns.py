"""Ban patterns that match a tag: words, globs and plain regular expressions, bounded in time."""

import re
from collections.abc import Sequence
from fnmatch import translate

from core.schema.errors import UserError

MAX_PATTERNS = 200
MAX_PATTERN_LENGTH = 100  # characters
MAX_WILDCARDS = 3
"""Repeats and alternatives in one pattern: if they were nested or more, one tag could take for
ever."""


def compile_patterns(texts: Sequence[str]) -> list[re.Pattern[str]]:
    """Compile ban patterns so that they match a tag from its start.

    A pattern is a word, a glob (`*boy*`) or a plain regular expression (`.*boy.*`). A word bans the
    tags that begin with it: `mecha` bans `mecha musume`, not `mechanical arms`. Raises `UserError`
    naming the first pattern that is not valid or could take too long.
    """
    if len(texts) > MAX_PATTERNS:
        raise UserError("ban", f"{len(texts)} patterns are too many; the limit is {MAX_PATTERNS}.")
    return [_compile_pattern(text.strip().lower()) for text in texts if text.strip()]


def _compile_pattern(text: str) -> re.Pattern[str]:
    if len(text) > MAX_PATTERN_LENGTH:
        raise UserError(
            "ban", f"{text[:40]!r}… is too long; the limit for a pattern is {MAX_PATTERN_LENGTH} characters."
        )
    if re.search(r"[.^$()|+\\]", text):
        found = text
    elif re.search(r"[*?\[]", text):
        found = translate(text)  # a glob matches the whole tag
    else:
        found = re.escape(text.replace("_", " ")) + r"(?!\w)"  # a word matches the start
    if len(re.findall(r"[*+?{|]", text)) > MAX_WILDCARDS or re.search(r"\)\s*[*+?{]|\\\d|\(\?", text):
        raise UserError(
            "ban",
            f"{text!r} could take too long; a pattern may have up to {MAX_WILDCARDS} "
            "wildcards, no repeated group and no back-reference.",
        )
    try:
        return re.compile(found)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError("ban", f"{text!r} is not a valid pattern: {error}.") from error
