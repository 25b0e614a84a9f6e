"""Reads ComfyUI's prompt graph: from the saved picture back to all that made it."""

import math
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

from core.prompts.dialects import make_lora, name_weights
from core.prompts.grammar import extract_lora_tags
from core.prompts.readers.comfyui_graph import (
    PIPE_INPUTS,
    Node,
    collect_nodes,
    find_number,
    find_prompt,
    follow,
    trace_picture,
    walk_models,
)
from core.prompts.readers.json_text import get_table, get_text, parse_table
from core.prompts.settings_text import SettingsText
from core.schema.errors import UserError

CHECKPOINT_INPUTS = ("ckpt_name", "base_ckpt_name", "unet_name", "ckpt", "checkpoint", "model_name")
LORA_INPUT = re.compile(r"lora(?:_name)?(_?\d{1,2})?")
STRENGTH_INPUTS = (
    "strength_model",
    "model_weight",
    "model_str",
    "lora_model_strength",
    "strength",
    "lora_wt",
)
TEXT_STRENGTH_INPUTS = ("strength_clip", "clip_weight", "clip_str", "lora_clip_strength")
SCALE_INPUTS = ("scale_by", "upscale_by", "rescale_factor", "upscale_factor", "factor", "upscale")
HIRES_KEYS = {
    "Hires sampler": "Sampler",
    "Hires schedule type": "Schedule type",
    "Hires CFG Scale": "CFG scale",
}
"""What a second pass may have of its own, as A1111 calls it there and in the first."""
MAX_LORAS = 50
MAX_ENDS = 20
"""Nodes without a successor whose pictures are followed."""
# Nodes of one sampler or schedule -> its name, where it is not in the node's own.
SAMPLER_NODES = {"eulerancestral": "euler_ancestral", "eulerancestralcfgpp": "euler_ancestral_cfg_pp"}
SCHEDULE_NODES = {"alignyoursteps": "align your steps", "betasampling": "beta"}
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
    base = path[passes[-1]]
    guider = follow(nodes, base["inputs"].get("guider")) or base
    model_path = list(walk_models(nodes, base))
    return SettingsText(
        prompt=_find_side(nodes, guider, "positive"),
        negative=_find_side(nodes, guider, "negative"),
        settings={
            **_read_pass(nodes, base),
            "Size": _find_size(nodes, path[passes[-1] :]),
            "Model": _find_checkpoint(nodes, model_path),
            **_read_model_path(nodes, model_path),
            **_read_hires(nodes, path, passes),
            **_list_unread(path, passes, model_path),
        },
        tool="Civitai" if "extraMetadata" in table else "ComfyUI",
        loras=tuple(lora for node in reversed(model_path) for lora in _read_loras(nodes, node))[:MAX_LORAS],
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


def _read_pass(nodes: Mapping[str, Node], node: Node) -> dict[str, str]:
    """Return the settings of a pass, in A1111's words."""
    inputs = node["inputs"]
    sigmas, noise = follow(nodes, inputs.get("sigmas")), follow(nodes, inputs.get("noise"))
    guider = follow(nodes, inputs.get("guider"))
    cfg = find_number(nodes, guider or node, "cfg")
    seed = find_number(nodes, noise or node, "noise_seed", "seed")
    steps = find_number(nodes, sigmas or node, "steps")
    denoise = find_number(nodes, sigmas or node, "denoise")
    if steps and (start := find_number(nodes, node, "start_at_step")):
        denoise = round(max(1 - start / steps, 0), 4)
    return {
        "Steps": _format_number(steps),
        "Sampler": _name_part(
            inputs.get("sampler_name"), follow(nodes, inputs.get("sampler")), SAMPLER_NODES
        ),
        "Schedule type": _name_part(inputs.get("scheduler"), sigmas, SCHEDULE_NODES),
        "CFG scale": _format_number(cfg),
        "Seed": _format_number(seed),
        "Denoise": "" if denoise in (None, 1) else _format_number(denoise),
    }


def _name_part(said: Any, node: Node | None, names: Mapping[str, str]) -> str:
    """Return the sampler or schedule that a pass names, or that a node of its own stands for."""
    if node is None:
        return said if isinstance(said, str) else ""
    own = node["inputs"].get("sampler_name") or node["inputs"].get("scheduler")
    plain = re.sub(r"^Sampler|Scheduler$", "", node["class_type"]).lower()
    return own if isinstance(own, str) else names.get(plain, plain)


def _format_number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _find_side(nodes: Mapping[str, Node], node: Node, side: str) -> str:
    """Return a prompt of a pass; `conditioning` is the prompt of a guider without a negative."""
    inputs = node["inputs"]
    value = inputs.get(side, inputs.get("conditioning") if side == "positive" else None)
    if value is None:  # both come in one pipe
        value = next((inputs[name] for name in PIPE_INPUTS if name in inputs), None)
    return find_prompt(nodes, value, side).strip()


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
    return f"{_format_number(width)}x{_format_number(height)}" if width and height else ""


def _find_checkpoint(nodes: Mapping[str, Node], model_path: list[Node]) -> str:
    """Return the weights that the model's way begins with; else, of a pipe, the first that are loaded."""
    on_path = ((node, name) for node in model_path for name in CHECKPOINT_INPUTS)
    anywhere = ((node, name) for node in nodes.values() for name in CHECKPOINT_INPUTS[:3])
    found = (node["inputs"].get(name) for node, name in chain(on_path, anywhere))
    return next((name for name in found if isinstance(name, str) and name), "")


def _read_model_path(nodes: Mapping[str, Node], model_path: list[Node]) -> dict[str, str]:
    """Return what nodes between checkpoint and sampler set, and the layer of CLIP and the VAE."""
    settings = {}
    for node in model_path:
        if node["class_type"] == "RescaleCFG":
            settings["RescaleCFG"] = _format_number(find_number(nodes, node, "multiplier"))
    for node in nodes.values():
        if node["class_type"] == "CLIPSetLastLayer" and find_number(nodes, node, "stop_at_clip_layer") == -1:
            settings["Sweetspot clip skip"] = "1"
        if node["class_type"] == "VAELoader" and isinstance(name := node["inputs"].get("vae_name"), str):
            settings["VAE"] = name
    return settings


def _read_loras(nodes: Mapping[str, Node], node: Node) -> list[dict[str, Any]]:
    """Return the LoRAs that a node loads: by one name, numbered names, tables or tags."""
    inputs, found = node["inputs"], []
    for name, value in inputs.items():
        entries = value if isinstance(value, list) else get_table(inputs, name).get("__value__")
        for entry in [value, *(entries if isinstance(entries, list) else [])][: MAX_LORAS + 1]:
            if isinstance(entry, dict) and entry.get("on", entry.get("active", True)):
                label = entry.get("lora", entry.get("name"))
                if isinstance(label, str) and label not in ("", "None"):
                    text = entry.get("strengthTwo", entry.get("clipStrength"))
                    found.append(make_lora(label, entry.get("strength"), text))
        match = LORA_INPUT.fullmatch(name)
        if match and isinstance(value, str) and value not in ("", "None"):
            end = match[1] or ""
            if inputs.get(f"switch{end}", "On") == "On":
                strength, text = (
                    find_number(nodes, node, *(f"{each}{end}" for each in each_kind))
                    for each_kind in (STRENGTH_INPUTS, TEXT_STRENGTH_INPUTS)
                )
                found.append(make_lora(value, strength, text))
    if "lora" in node["class_type"].lower() and isinstance(tags := inputs.get("text"), str):
        found += [
            make_lora(tag.name, tag.strength, tag.text_strength)
            for tag in extract_lora_tags(tags[:10_000])[1]
        ]
    unique = {repr(lora): lora for lora in found}  # a list of tags and a table of one node say the same
    return [lora for lora in unique.values() if lora["strength"] or lora.get("text_strength")]


def _read_hires(nodes: Mapping[str, Node], path: list[Node], passes: list[int]) -> dict[str, str]:
    """Return the enlargement after the base pass, with the pass that follows it."""
    begin, end = passes[-1], passes[-2] if len(passes) > 1 else -1
    second = path[end] if end >= 0 else None
    between = [*([second] if second and "upscale_by" in second["inputs"] else []), *path[end + 1 : begin]]
    factor, upscaler = 1.0, ""
    size = re.fullmatch(r"(\d+)x(\d+)", _find_size(nodes, path[begin:]))
    for node in reversed(between):
        if not re.search(r"scale|resize", node["class_type"], re.IGNORECASE):
            continue
        model = follow(nodes, node["inputs"].get("upscale_model"))
        named = model["inputs"].get("model_name") if model else None
        width = find_number(nodes, node, "width")
        by = find_number(nodes, node, *SCALE_INPUTS)
        area = find_number(nodes, node, "megapixels")
        if by:
            factor *= by
        elif area and area > 0 and size:
            factor = math.sqrt(area * 1024**2 / max(int(size[1]) * int(size[2]), 1))
        elif isinstance(named, str):
            own = re.search(r"(\d)x|x(\d)", named, re.IGNORECASE)
            factor *= int(own[1] or own[2]) if own else 4
        elif width and size and int(size[1]):
            factor = width / int(size[1])
        latent = "Latent" if "Latent" in node["class_type"] else "Lanczos"
        upscaler = name_weights(named) if isinstance(named, str) else upscaler or latent
    if not upscaler or not 1 < factor < 100:
        return {path[end]["class_type"]: "on"} if second else {}
    after, before = _read_pass(nodes, second) if second else {}, _read_pass(nodes, path[begin])
    own = {key: after[ours] for key, ours in HIRES_KEYS.items() if after and after[ours] != before[ours]}
    return {
        "Hires upscaler": upscaler,
        "Hires upscale": f"{factor:.4g}",
        "Denoising strength": (after["Denoise"] or "1") if after else "0",
        "Hires steps": after.get("Steps", ""),
        **own,
    }


def _list_unread(path: list[Node], passes: list[int], model_path: list[Node]) -> dict[str, str]:
    """Return the nodes that changed the picture and are not read, by their names."""
    more = [path[place] for place in passes[:-2]]
    details = [node for node in path if "detailer" in node["class_type"].lower()]
    changes = [node for node in model_path[1:] if not PLAIN_NODES.search(node["class_type"])]
    return {node["class_type"][:100]: "on" for node in [*more, *details, *changes][:50]}
