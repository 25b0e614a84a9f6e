"""What one pass of ComfyUI's graph says of itself: prompts, settings, model and LoRAs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from core.prompts.dialects import make_lora
from core.prompts.grammar import extract_lora_tags
from core.prompts.readers.comfyui_graph import (
    MAX_PATH,
    PIPE_INPUTS,
    Node,
    find_name,
    find_number,
    find_prompt,
    follow,
    walk_models,
    walk_sigmas,
)
from core.prompts.readers.json_text import get_table

CHECKPOINT_INPUTS = ("ckpt_name", "base_ckpt_name", "unet_name", "ckpt", "checkpoint", "model_name")
LORA_INPUT = re.compile(r"lora(?:_name)?(_?\d{1,2})?|lora_(\d{1,2})_name")
STRENGTH_INPUTS = (
    "strength_model",
    "model_weight",
    "model_str",
    "lora_model_strength",
    "strength",
    "lora_wt",
)
TEXT_STRENGTH_INPUTS = ("strength_clip", "clip_weight", "clip_str", "lora_clip_strength")
MAX_LORAS = 50
# Nodes of one sampler or schedule -> its name, where it is not in the node's own.
SAMPLER_NODES = {"eulerancestral": "euler_ancestral", "eulerancestralcfgpp": "euler_ancestral_cfg_pp"}
SCHEDULE_NODES = {"alignyoursteps": "align your steps", "betasampling": "beta"}


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a pass over the whole picture was made with."""

    prompt: str
    negative: str
    settings: dict[str, str]
    """In A1111's words; empty where the pass does not say."""
    loras: tuple[dict[str, Any], ...]
    """As `/generate` takes them, in the order in which they were loaded."""
    model_path: tuple[Node, ...]
    """The nodes that its model went through, the last first."""


def read_pass(nodes: Mapping[str, Node], node: Node) -> Pass:
    """Return what a pass was made with, from its own inputs and from the nodes that they come from."""
    guider = follow(nodes, node["inputs"].get("guider")) or node
    model_path = tuple(islice(walk_models(nodes, node), MAX_PATH))
    rescale = next((each for each in model_path if each["class_type"] == "RescaleCFG"), None)
    return Pass(
        prompt=_find_side(nodes, guider, "positive"),
        negative=_find_side(nodes, guider, "negative"),
        settings={
            **_read_sampling(nodes, node),
            "Model": _find_checkpoint(nodes, model_path),
            "RescaleCFG": format_number(find_number(nodes, rescale, "multiplier")),
        },
        # The first are enough: a node is not read for a LoRA that would be left out.
        loras=tuple(
            islice((lora for each in reversed(model_path) for lora in _read_loras(nodes, each)), MAX_LORAS)
        ),
        model_path=model_path,
    )


def _read_sampling(nodes: Mapping[str, Node], node: Node) -> dict[str, str]:
    """Return seed, sampler, schedule, CFG, the steps that are run, and the share of the noise."""
    inputs = node["inputs"]
    noise, guider = follow(nodes, inputs.get("noise")), follow(nodes, inputs.get("guider"))
    sigmas, skipped, left = walk_sigmas(nodes, inputs.get("sigmas"))
    steps = find_number(nodes, sigmas or node, "steps")
    denoise = find_number(nodes, sigmas or node, "denoise")
    if steps and left is not None and 0 < left < 1:
        skipped = steps - round(steps * left)
    skipped = skipped or find_number(nodes, node, "start_at_step")
    if steps and skipped and 0 < skipped < steps:
        steps, denoise = steps - skipped, round(1 - skipped / steps, 4)
    return {
        "Steps": format_number(steps),
        "Sampler": _name_part(
            nodes, node, "sampler_name", follow(nodes, inputs.get("sampler")), SAMPLER_NODES
        ),
        "Schedule type": _name_part(nodes, node, "scheduler", sigmas, SCHEDULE_NODES),
        "CFG scale": format_number(find_number(nodes, guider or node, "cfg")),
        "Seed": format_number(find_number(nodes, noise or node, "noise_seed", "seed")),
        "Denoise": "" if denoise in (None, 1) else format_number(denoise),
    }


def _name_part(
    nodes: Mapping[str, Node], node: Node, field: str, part: Node | None, names: Mapping[str, str]
) -> str:
    """Return the sampler or schedule that a pass names in `field`, or that the node `part` stands for."""
    if part is None:
        return find_name(nodes, node["inputs"].get(field), field)
    own = find_name(nodes, part["inputs"].get(field), field)
    plain = re.sub(r"^Sampler|Scheduler$", "", part["class_type"]).lower()
    return own or names.get(plain, plain)


def format_number(value: float | None) -> str:
    """Return a number as text, and nothing for none."""
    return "" if value is None else repr(value)


def _find_side(nodes: Mapping[str, Node], node: Node, side: str) -> str:
    """Return a prompt of a pass; `conditioning` is the prompt of a guider without a negative."""
    inputs = node["inputs"]
    value = inputs.get(side, inputs.get("conditioning") if side == "positive" else None)
    if value is None:  # both come in one pipe
        value = next((inputs[name] for name in PIPE_INPUTS if name in inputs), None)
    return find_prompt(nodes, value, side).strip()


def _find_checkpoint(nodes: Mapping[str, Node], model_path: Sequence[Node]) -> str:
    """Return the weights that the model's way begins with; else, of a pipe, the first that are loaded."""
    on_path = ((node, name) for node in model_path for name in CHECKPOINT_INPUTS)
    anywhere = ((node, name) for node in nodes.values() for name in CHECKPOINT_INPUTS[:3])
    named = (node["inputs"][name] for node, name in chain(on_path, anywhere) if name in node["inputs"])
    found = (find_name(nodes, value, *CHECKPOINT_INPUTS) for value in islice(named, MAX_PATH))
    return next(filter(None, found), "")


def _read_loras(nodes: Mapping[str, Node], node: Node) -> list[dict[str, Any]]:
    """Return the LoRAs that a node loads: by one name, numbered names, tables or tags."""
    inputs, found = node["inputs"], []
    if inputs.get("toggle") is False:
        return []
    count = find_number(nodes, node, "lora_count", "num_loras")
    for name, value in inputs.items():
        entries = value if isinstance(value, list) else get_table(inputs, name).get("__value__")
        for entry in [value, *(entries if isinstance(entries, list) else [])][: MAX_LORAS + 1]:
            if isinstance(entry, dict) and entry.get("on", entry.get("active", True)):
                label = entry.get("lora", entry.get("name"))
                if isinstance(label, str) and label not in ("", "None"):
                    text = entry.get("strengthTwo", entry.get("clipStrength"))
                    found.append(make_lora(label, entry.get("strength"), text))
        if (match := LORA_INPUT.fullmatch(name)) and len(found) < MAX_LORAS:
            place = (match[1] or match[2] or "").strip("_")
            if count is None or not place or int(place) <= count:
                found += _read_named_lora(nodes, node, name, match[1] or "", match[2])
    if "lora" in node["class_type"].lower() and isinstance(tags := inputs.get("text"), str):
        found += [
            make_lora(tag.name, tag.strength, tag.text_strength)
            for tag in extract_lora_tags(tags[:10_000])[1]
        ]
    unique = {repr(lora): lora for lora in found}  # a list of tags and a table of one node say the same
    return [lora for lora in unique.values() if lora["strength"] or lora.get("text_strength")]


def _read_named_lora(
    nodes: Mapping[str, Node], node: Node, name: str, end: str, number: str | None
) -> list[dict[str, Any]]:
    """Return the LoRA of an input, if it is on, with the strengths of the inputs that belong to it.

    They have the same `end`, such as `_2`; or, with the `number` inside, they are `lora_2_strength` and
    the like. A stack in its simple mode has one strength for both.
    """
    inputs, value = node["inputs"], node["inputs"][name]
    label = value.get("content") if isinstance(value, dict) else value
    if source := follow(nodes, value):  # a node that gives a name
        label = next((each for each in source["inputs"].values() if isinstance(each, str)), None)
    if not isinstance(label, str) or label in ("", "None") or inputs.get(f"switch{end}", "On") != "On":
        return []
    both = [f"{each}{end}" for each in STRENGTH_INPUTS], [f"{each}{end}" for each in TEXT_STRENGTH_INPUTS]
    if number:
        both = [f"lora_{number}_model_strength"], [f"lora_{number}_clip_strength"]
    if "simple" in (inputs.get("input_mode"), inputs.get("mode")):
        both = [f"lora_wt{end}", f"lora_{number}_strength"], []
    strength, text = (find_number(nodes, node, *names) for names in both)
    return [make_lora(label, strength, text)]
