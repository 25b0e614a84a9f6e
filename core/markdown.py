"""Words of a file or a visitor inside of Markdown: as text, whatever they hold."""


def plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is; on as many lines as it has."""
    return "".join(f"\\{character}" if character in r"\`*_{}[]()#+!<>|~$&" else character for character in text)


def cell(text: str) -> str:
    """The same for a table's cell or a heading: on one line."""
    return plain(" ".join(text.split()))
