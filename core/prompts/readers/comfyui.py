"""Reads ComfyUI's prompt graph: from the saved picture back to all that made it."""

import re
from collections.abc import Mapping, Sequence

from core.prompts.readers.comfyui_graph import Node, collect_nodes, find_number, follow, trace_picture
from core.prompts.readers.comfyui_hires import read_hires
from core.prompts.readers.comfyui_pass import format_number, read_pass
from core.prompts.readers.json_text import get_table, get_text, parse_table
from core.prompts.settings_text import SettingsText
from core.schema.errors import UserError

MAX_ENDS = 20
"""Nodes without a successor whose pictures are followed."""
PLAIN_NODES = re.compile(
    r"LoRA|Loader|Reroute|Switch|Guider|Sampler|Stack|RescaleCFG|ModelSampling", re.IGNORECASE
)
"""Nodes on a model's way that say nothing more, or are read by themselves."""


def read(texts: Mapping[str, str]) -> SettingsText | None:
    """Return what the graph says of the picture that goes furthest.

    Raises `UserError` for a graph without a sampler, and for a workflow without its graph.
    """
    table = parse_table(texts.get("prompt")) or parse_table(texts.get("UserComment")) or {}
    inner = get_table(table, "prompt") or parse_table(get_text(table, "prompt")) or {}
    nodes = collect_nodes(table) or collect_nodes(inner)
    if not nodes:
        if parse_table(texts.get("workflow")):
            raise UserError("settings", "the image has ComfyUI's workflow, but not the prompt that was run.")
        return None
    path = _find_path(nodes)
    passes = [place for place, node in enumerate(path) if _is_pass(node)]
    if not passes:
        raise UserError("settings", "no sampler is known in ComfyUI's graph of this image.")
    begin = passes[-1]
    first, size = read_pass(nodes, path[begin]), _find_size(nodes, path[begin:])
    return SettingsText(
        prompt=first.prompt,
        negative=first.negative,
        settings={
            # A node may be called as a setting is: what was read comes after the names of nodes.
            **_list_unread(nodes, path, passes, first.model_path),
            **read_hires(nodes, path, passes, size, first),
            **_read_other_nodes(nodes),
            **first.settings,
            "Size": size,
        },
        tool="Civitai" if "extraMetadata" in table else "ComfyUI",
        loras=first.loras,
    )


def _find_path(nodes: Mapping[str, Node]) -> list[Node]:
    """Return the way of the picture with the most passes, the last node first."""
    linked = {
        id(target)
        for node in nodes.values()
        for value in node["inputs"].values()
        if (target := follow(nodes, value)) is not None
    }
    ends = [node for node in nodes.values() if id(node) not in linked]
    ends.sort(key=lambda node: "save" not in node["class_type"].lower())
    paths = [trace_picture(nodes, end) for end in ends[:MAX_ENDS]]
    return max(paths, key=lambda path: sum(map(_is_pass, path)), default=[])


def _is_pass(node: Node) -> bool:
    """Whether the node denoises the whole picture."""
    kind, inputs = node["class_type"], node["inputs"]
    if "detailer" in kind.lower():
        return False
    return kind.startswith("SamplerCustom") or {"cfg", "sampler_name", "steps"} <= inputs.keys()


def _find_size(nodes: Mapping[str, Node], path: list[Node]) -> str:
    """Return the size of the empty picture that the base pass began with; empty if it is another picture."""
    first = path[-1]
    if first["class_type"].startswith("LoadImage"):
        return ""
    for value in [first, follow(nodes, first["inputs"].get("width"))]:
        for text in value["inputs"].values() if value else ():
            if isinstance(text, str) and (size := re.search(r"\b(\d{2,5}) ?x ?(\d{2,5})\b", text[:100])):
                return f"{size[1]}x{size[2]}"
    width, height = (find_number(nodes, first, side, f"empty_latent_{side}") for side in ("width", "height"))
    return f"{format_number(width)}x{format_number(height)}" if width and height else ""


def _read_other_nodes(nodes: Mapping[str, Node]) -> dict[str, str]:
    """Return the layer of CLIP, the VAE and styles, wherever in the graph they are set."""
    settings = {}
    for node in nodes.values():
        layer = find_number(nodes, node, "stop_at_clip_layer")
        if node["class_type"] == "CLIPSetLastLayer" and layer == -1:
            settings["Sweetspot clip skip"] = "1"
        elif node["class_type"] == "CLIPSetLastLayer" and layer not in (-2, None):
            settings["CLIPSetLastLayer"] = format_number(layer)
        style = node["inputs"].get("style")
        if "Styler" in node["class_type"] and isinstance(style, str) and style not in ("", "base", "None"):
            settings[node["class_type"][:100]] = style[:100]
        if node["class_type"] == "VAELoader" and isinstance(name := node["inputs"].get("vae_name"), str):
            settings["VAE"] = name
    return settings


def _list_unread(
    nodes: Mapping[str, Node], path: list[Node], passes: list[int], model_path: Sequence[Node]
) -> dict[str, str]:
    """Return the nodes that changed the picture and are not read, by their names."""
    more = [path[place] for place in passes[:-2]]
    details = [node for node in path if "detailer" in node["class_type"].lower()]
    changes = [node for node in model_path[1:] if not PLAIN_NODES.search(node["class_type"])]
    guides = [node for node in nodes.values() if "ControlNetApply" in node["class_type"]]
    pictures = [node for node in path[-1:] if node["class_type"].startswith("LoadImage")]
    unread = [*more, *details, *changes, *guides, *pictures]
    return {node["class_type"][:100]: "on" for node in unread[:50]}
