"""Words of a file or a visitor inside of Markdown: as text, whatever they hold."""

import re

RULED = re.compile(r"^([ \t]*)([-=])", re.MULTILINE)
"""A line of these makes the one before it a heading."""


def plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is; on as many lines as it has."""
    marked = "".join(f"\\{character}" if character in r"\`*_{}[]()#+!<>|~$&" else character for character in text)
    return RULED.sub(r"\1\\\2", marked)


def warned(text: str) -> str:
    """A refusal as a page shows it: what it repeats of a file or a visitor is text. No tab puts the sign before anything by itself."""
    return f"⚠️ {plain(text)}"


def cell(text: str) -> str:
    """The same for a table's cell or a heading: on one line."""
    return plain(" ".join(text.split()))
