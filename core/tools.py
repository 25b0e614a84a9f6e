"""Fetches the models beside the base model: upscalers, detectors, expanders, taggers and eyes, as `presets/tools.toml` pins them."""

from functools import cache
from pathlib import Path

from core import hub, paths, presets, pulled
from core.digest import content
from core.types import Tool, UserError

OWN = {"upscaler": (".safetensors", ".pth"), "detector": (".onnx",)}
"""Kind -> the files that the owner of the machine may put into `models/<kind>s/`, and how they end."""


FILES = {"tagger": ["model.onnx", "selected_tags.csv"]}
"""Kind -> the files of a repository that are fetched, where they are not a transformers model's."""


def names(kind: str) -> list[str]:
    """The names of the tools of a kind; the owner's files by theirs."""
    return [tool.name for tool in presets.tools().values() if tool.kind == kind] + sorted(own(kind))


def own(kind: str) -> dict[str, Path]:
    """The owner's files of a kind, by name."""
    return {file.name: file for file in (paths.MODELS / f"{kind}s").glob("*") if file.suffix in OWN.get(kind, ())}


def find(kind: str, name: str) -> Tool:
    """The tool of that name, or `UserError` with the names there are."""
    if (tool := presets.tools().get(name)) is None or tool.kind != kind:
        raise UserError(f"{kind}: {str(name)[:80]!r} is unknown; it takes {', '.join(names(kind))}.")
    return tool


def file(kind: str, name: str) -> Path:
    """Where the tool lies on this machine, fetched if need be: a file, or a folder for an expander.

    Fetched anonymously and at its commit; a file whose sha256 is not the table's is refused before it is opened.
    """
    if name in (owned := own(kind)):
        return owned[name]
    if hub.is_id(name):  # looked for each time: what nobody used is swept away
        return pulled.tool(kind, name)
    return of_table(find(kind, name))


@cache
def of_table(tool: Tool) -> Path:
    """The same for one of the table, which stays where it is."""
    kind = tool.kind
    if tool.revision is None:
        return paths.locate(tool.source)
    if tool.file and (there := hub.here(tool.source, tool.revision, tool.file)):
        folder = Path(str(there).removesuffix(tool.file))
    else:
        patterns = [tool.file] if tool.file else FILES.get(kind, ["*.json", "*.txt", "*.model", "*.safetensors"])
        folder = hub.folder(tool.source, tool.revision, patterns, kind)
    if tool.file is None:
        return folder
    if tool.sha256 and content(folder / tool.file) != tool.sha256:
        raise UserError(f"{kind}: {tool.file} of {tool.source} is not the file that was pinned; it is not opened.")
    return folder / tool.file
