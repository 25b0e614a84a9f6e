"""Fetches the models beside the base model, as `presets/tools.toml` pins them.

They are upscalers, detectors, expanders, taggers, VAEs and feature extractors.
"""

from functools import cache
from pathlib import Path

from core.hub import client as hub
from core.hub.names import is_hub_name
from core.models import folders, from_hub
from core.schema import presets
from core.schema.errors import UserError
from core.schema.types import Tool
from core.system import paths
from core.system.tensor_files import calculate_sha256

REPO_FILES = {
    "tagger": ["model.onnx", "selected_tags.csv"],
    "vae": ["config.json", "diffusion_pytorch_model.safetensors"],
}
"""Kind -> the files of a repository that are fetched, where they are not a transformers model's."""


def list_tools(kind: str) -> list[str]:
    """List the names of the tools of a kind, then the owner's files of that kind."""
    return [tool.name for tool in presets.get_tools().values() if tool.kind == kind] + sorted(
        list_owner_files(kind)
    )


def list_owner_files(kind: str) -> dict[str, Path]:
    """Return the owner's files of a kind, by name; a kind without a folder has none."""
    return folders.list_files(kind, with_suffix=True) if kind in folders.FOLDER_NAMES else {}


def find_tool(kind: str, name: str) -> Tool:
    """Return the tool of that name in the table. Raises `UserError` listing the names there are."""
    if (tool := presets.get_tools().get(name)) is None or tool.kind != kind:
        raise UserError(kind, f"{str(name)[:80]!r} is unknown. Use one of: {', '.join(list_tools(kind))}.")
    return tool


def fetch_tool(kind: str, name: str) -> Path:
    """Return where the tool is on this machine, fetching it if needed.

    That is a file, or a folder for an expander. It is fetched anonymously and at its commit; a file
    that does not match the table's sha256 is refused before it is opened.
    """
    if name in (owned := list_owner_files(kind)):
        return owned[name]
    if is_hub_name(name):  # not cached: clean-up removes what nobody used
        return from_hub.fetch_hub_tool(kind, name)
    return fetch_pinned_tool(find_tool(kind, name))


@cache
def fetch_pinned_tool(tool: Tool) -> Path:
    """Return where a tool of the table is on this machine, fetching it if needed.

    The result is cached, as the tool stays where it is. Raises `UserError` if its file does not
    match the table's sha256.
    """
    kind = tool.kind
    if tool.revision is None:
        return paths.locate(tool.source)
    if tool.file and (there := hub.find_cached_file(tool.source, tool.revision, tool.file)):
        folder = Path(str(there).removesuffix(tool.file))
    else:
        patterns = (
            [tool.file]
            if tool.file
            else REPO_FILES.get(kind, ["*.json", "*.txt", "*.model", "*.safetensors"])
        )
        folder = hub.fetch_folder(tool.source, tool.revision, patterns, kind)
    if tool.file is None:
        return folder
    if tool.sha256 and calculate_sha256(folder / tool.file) != tool.sha256:
        raise UserError(
            kind, f"{tool.file} of {tool.source} does not match its pinned checksum and was not opened."
        )
    return folder / tool.file
