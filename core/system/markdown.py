"""Show text from a file or a visitor inside Markdown as plain text, whatever it contains."""

import html
import re

UNDERLINE_PATTERN = re.compile(r"^([ \t]*)([-=])", re.MULTILINE)
"""A line of these characters turns the line before it into a heading."""


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown and HTML show it unchanged, with its line breaks."""
    marked = "".join(
        f"\\{character}" if character in r"\`*_{}[]()#+!<>|~$&" else character for character in text
    )
    return UNDERLINE_PATTERN.sub(r"\1\\\2", marked)


def format_warning(text: str) -> str:
    """Format a refusal for a page: the warning sign, then the escaped text.

    The text may repeat words of a file or a visitor. No tab adds the sign by itself.
    """
    return f"⚠️ {escape_markdown(text)}"


def format_html_warning(text: str) -> str:
    """Format a warning for HTML: the warning sign, then the escaped text."""
    return f"⚠️ {html.escape(text)}"


def escape_cell(text: str) -> str:
    """Escape text for a table's cell or a heading, and join its lines to one."""
    return escape_markdown(" ".join(text.split()))
