"""What ComfyUI's graph does after its first pass: it enlarges the picture and denoises it again."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.prompts.dialects import name_weights
from core.prompts.readers.comfyui_graph import MAX_HOPS, Node, find_number, follow
from core.prompts.readers.comfyui_pass import Pass, format_number, read_pass

SCALE_INPUTS = ("scale_by", "upscale_by", "rescale_factor", "upscale_factor", "factor", "upscale")
SCALE_NODES = re.compile(r"scale|resize", re.IGNORECASE)
# What a pass says -> what A1111 and Forge call it where a second pass has its own.
OWN_KEYS = {
    "Sampler": "Hires sampler",
    "Schedule type": "Hires schedule type",
    "CFG scale": "Hires CFG Scale",
    "Model": "Hires checkpoint",
    "Seed": "Hires seed",
    "RescaleCFG": "Hires RescaleCFG",
}
SCRIPT = "HighRes-Fix Script"
"""Efficiency's node for a second pass."""
SAME_CHECKPOINT = "(use same)"


def read_hires(
    nodes: Mapping[str, Node], path: Sequence[Node], passes: Sequence[int], size: str, first: Pass
) -> dict[str, str]:
    """Return the settings of the second pass and the enlargement before it, in A1111's words.

    `path` are the nodes that the picture went through, the last first, and `passes` the places of its
    passes, of which the last was made `first`, with `size`. A second pass that goes on where the first
    stopped, or with another model at the same size, as a refiner does, is named by its node.
    """
    begin, end = passes[-1], passes[-2] if passes[1:] else None
    scripts = list(_walk_scripts(nodes, path[begin]))
    after = [node["class_type"][:100] for node in path[: end or 0] if SCALE_NODES.search(node["class_type"])]
    found = dict.fromkeys(after, "on") | {
        script["class_type"][:100]: "on" for script in scripts if script["class_type"] != SCRIPT
    }
    script = next((script for script in scripts if script["class_type"] == SCRIPT), None)
    if script and end is None:
        return found | _read_script(nodes, script, first)
    factor, upscaler = _find_enlargement(nodes, path[end or 0 : begin], size)
    if end is None:
        return found | (_name_hires(upscaler, factor, "0") if upscaler and 1 < factor < 100 else {})
    second = read_pass(nodes, path[end])
    is_refiner = not upscaler and second.settings["Model"] != first.settings["Model"]
    if is_refiner or _goes_on(nodes, path[end]) or not 1 <= factor < 100:
        return found | {path[end]["class_type"][:100]: "on"}
    return {
        **found,
        **_name_hires(upscaler or "Latent", factor, second.settings["Denoise"] or "1"),
        "Hires steps": second.settings["Steps"],
        **_list_own(first, second),
    }


def _walk_scripts(nodes: Mapping[str, Node], node: Node) -> Iterator[Node]:
    """Yield what Efficiency's samplers do besides, the last first."""
    for _ in range(MAX_HOPS):
        if (node := follow(nodes, node["inputs"].get("script"))) is None:  # type: ignore[assignment]
            return
        yield node


def _read_script(nodes: Mapping[str, Node], script: Node, first: Pass) -> dict[str, str]:
    """Return the second pass that Efficiency's script does after the `first`."""
    inputs, named = script["inputs"], script["inputs"].get("pixel_upscaler")
    by_pixels = inputs.get("upscale_type") in ("pixel", "both") and isinstance(named, str)
    factor = find_number(nodes, script, "upscale_by") or 1.0
    if not 1 <= factor < 100:
        return {SCRIPT: "on"}
    found = {
        **_name_hires(
            name_weights(named) if by_pixels else "Latent",
            factor,
            format_number(find_number(nodes, script, "denoise")) or "1",
        ),
        "Hires steps": format_number(find_number(nodes, script, "hires_steps")),
    }
    model, seed = inputs.get("hires_ckpt_name"), format_number(find_number(nodes, script, "seed"))
    if isinstance(model, str) and model not in ("", SAME_CHECKPOINT):
        found["Hires checkpoint"] = model
    if inputs.get("use_same_seed") is False and seed != first.settings["Seed"]:
        found["Hires seed"] = seed
    if (times := find_number(nodes, script, "iterations")) and times > 1:
        found["Hires iterations"] = format_number(times)
    return found


def _name_hires(upscaler: str, factor: float, denoise: str) -> dict[str, str]:
    return {
        "Hires upscaler": upscaler,
        "Hires upscale": f"{factor:.4g}",
        "Denoising strength": denoise,
    }


def _goes_on(nodes: Mapping[str, Node], node: Node) -> bool:
    """Whether a pass adds no noise, since the one before has left some."""
    noise = follow(nodes, node["inputs"].get("noise"))
    return node["inputs"].get("add_noise") in ("disable", False) or bool(
        noise and noise["class_type"] == "DisableNoise"
    )


def _find_enlargement(nodes: Mapping[str, Node], path: Sequence[Node], size: str) -> tuple[float, str]:
    """Return by how much nodes enlarge a picture of `size`, and with which upscaler; empty without one.

    The factor is NaN where a node has a size and the first pass has none.
    """
    factor, upscaler = 1.0, ""
    sides = re.fullmatch(r"(\d+)x(\d+)", size)
    for node in reversed(path):
        inputs = node["inputs"]
        if not SCALE_NODES.search(node["class_type"]):
            continue
        model = follow(nodes, inputs.get("upscale_model"))
        named = model["inputs"].get("model_name") if model else inputs.get("upscale_model")
        width = find_number(nodes, node, "width", "resize_width")
        height = find_number(nodes, node, "height", "resize_height")
        to_size = inputs.get("mode") == "resize"  # WAS' node has a factor, too, and does not use it
        by = None if to_size else find_number(nodes, node, *SCALE_INPUTS)
        area = find_number(nodes, node, "megapixels")
        if by:
            factor *= by
        elif area and area > 0 and sides:
            factor = math.sqrt(area * 1024**2 / max(int(sides[1]) * int(sides[2]), 1))
        elif isinstance(named, str):
            own = re.search(r"(\d)x|x(\d)", named, re.IGNORECASE)
            factor *= int(own[1] or own[2]) if own else 4
        elif width or height:  # 0 keeps the ratio of the sides
            side, own_side = (width, 1) if width else (height or 0, 2)
            factor = side / int(sides[own_side]) if sides and int(sides[own_side]) else math.nan
        latent = "Latent" if "Latent" in node["class_type"] else "Lanczos"
        upscaler = name_weights(named) if isinstance(named, str) else upscaler or latent
    return factor, upscaler


def _list_own(first: Pass, second: Pass) -> dict[str, str]:
    """Return what the second pass has of its own, also what has no place here and will be named.

    With a prompt of its own it has the LoRAs that this names, so other LoRAs need the prompt, too.
    """
    own = {
        name: second.settings[key] or "none"
        for key, name in OWN_KEYS.items()
        if second.settings[key] != first.settings[key]
    }
    if (second.prompt, second.loras) != (first.prompt, first.loras):
        tags = [_format_tag(lora) for lora in second.loras]
        prompt = {"Hires prompt": " ".join([second.prompt, *tags])}
        own |= prompt if second.prompt else {"Hires without a prompt": "on"}
    if second.negative != first.negative:
        negative = {"Hires negative prompt": second.negative}
        own |= negative if second.negative else {"Hires without a negative prompt": "on"}
    return own


def _format_tag(lora: Mapping[str, Any]) -> str:
    """Return a LoRA as a tag of a prompt."""
    strengths = [lora["text_strength"]] if "text_strength" in lora else []
    name = re.sub("[:<>]", "_", lora["lora"])
    return f"<lora:{name}:{':'.join(f'{each:g}' for each in [*strengths, lora['strength']])}>"
