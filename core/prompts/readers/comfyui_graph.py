"""ComfyUI's prompt graph: its nodes, and the values and texts that their links lead to.

A link is `[id of the node, number of its output]`. Each search visits a node at most once.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from core.prompts.readers.json_text import is_huge
from core.schema.errors import UserError

MAX_NODES = 5000
MAX_INPUTS = 200
"""Of one node; a node with more is left out."""
MAX_PATH = 500
"""Nodes that one picture is followed through."""
MAX_HOPS = 40
"""Links in a row that are followed."""
MAX_GLUE = 20
"""Characters between two texts that are joined: they stand there as often as there are texts."""
IMAGE_INPUTS = ("images", "image", "pixels", "samples", "latent_image", "latent", "latents")
SIDE_INPUTS = re.compile(
    r"vae|clip|model|mask|positive|negative|control|sampler|sigmas|guider|noise|detector"
)
"""Inputs that no picture comes in by."""
PIPE_INPUTS = ("pipe", "basic_pipe", "base_ctx", "ctx_01", "sdxl_tuple", "context")
"""Inputs that bring model, prompts and more by one link."""
PROMPT_INPUTS = ("text_g", "text", "prompt", "clip_g", "t5xxl")
TEXT_INPUTS = re.compile(r"(?:text|string|prompt|str|value|wildcard|input)(?:_?\w{1,8})?|positive|negative")
SIDES = ("positive", "negative")

Node = Mapping[str, Any]


def collect_nodes(table: Mapping[str, Any]) -> dict[str, Node]:
    """Return the nodes of a graph by their ids. Raises `UserError` for too many."""
    nodes: dict[str, Node] = {
        key: node
        for key, node in table.items()
        if isinstance(node, dict)
        and isinstance(node.get("inputs"), dict)
        and isinstance(node.get("class_type"), str)
        and len(node["inputs"]) <= MAX_INPUTS
    }
    if len(nodes) > MAX_NODES:
        raise UserError("settings", f"{len(nodes):,} nodes are too many; the limit is {MAX_NODES:,}.")
    return nodes


def follow(nodes: Mapping[str, Node], link: Any) -> Node | None:
    """Return the node that a link comes from; `None` if it is no link."""
    if not isinstance(link, list) or len(link) != 2 or type(link[1]) is not int:
        return None
    return nodes.get(str(link[0])) if isinstance(link[0], str | int) and not is_huge(link[0]) else None


def trace_picture(nodes: Mapping[str, Node], node: Node | None) -> list[Node]:
    """Return the nodes that a picture went through, the last first."""
    path: list[Node] = []
    seen: set[int] = set()
    while node is not None and id(node) not in seen and len(path) < MAX_PATH:
        seen.add(id(node))
        path.append(node)
        inputs = node["inputs"]
        others = (name for name in inputs if not SIDE_INPUTS.search(name))
        sources = (follow(nodes, inputs.get(name)) for name in chain(IMAGE_INPUTS, others))
        node = next((source for source in sources if source is not None), None)
    return path


def find_number(nodes: Mapping[str, Node], node: Node | None, *names: str) -> int | float | None:
    """Return the number of the first input that has one, or that a link of it leads to."""
    value = next((node["inputs"][name] for name in names if name in node["inputs"]), None) if node else None
    for _ in range(MAX_HOPS):
        if _is_number(value):
            return value
        if (target := follow(nodes, value)) is None:
            return None
        values = [target["inputs"].get(name) for name in names] + list(target["inputs"].values())
        value = next((each for each in values if _is_number(each)), None)
        if value is None:
            value = next((each for each in values if follow(nodes, each) is not None), None)
    return None


def find_name(nodes: Mapping[str, Node], value: Any, *names: str) -> str:
    """Return a name, such as a checkpoint's, or the one that a link leads to; empty if there is none."""
    for _ in range(MAX_HOPS):
        if isinstance(value, dict):  # a list with previews
            value = value.get("content")
        if isinstance(value, str):
            return value
        if (target := follow(nodes, value)) is None:
            return ""
        inputs = target["inputs"]
        texts = (each for each in inputs.values() if isinstance(each, str) or follow(nodes, each))
        value = next((inputs[name] for name in names if name in inputs), next(texts, None))
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not is_huge(value)


def find_text(nodes: Mapping[str, Node], value: Any, seen: set[int] | None = None, depth: int = 0) -> str:
    """Return a text, or the text that a link leads to; nodes that join texts are read as joined."""
    if isinstance(value, str):
        return value
    node, seen = follow(nodes, value), set() if seen is None else seen
    if node is None or id(node) in seen or depth > MAX_HOPS:
        return ""
    seen.add(id(node))
    inputs = node["inputs"]
    if isinstance(made := inputs.get("populated_text"), str) and made.strip():  # of wildcards
        return made
    glue = next(
        (inputs[name] for name in ("delimiter", "separator") if isinstance(inputs.get(name), str)), ", "
    )
    names = [name for name in inputs if TEXT_INPUTS.fullmatch(name)]
    if not names:  # a switch or a reroute
        names = [name for name in inputs if follow(nodes, inputs[name]) is not None][:1]
    sided = [name for name in names if name.endswith(SIDES)]
    if sided[1:] and value[1] in (0, 1):  # a styler, which gives out both
        names = [name for name in sided if name.endswith(SIDES[value[1]])]
    parts = [find_text(nodes, inputs[name], seen, depth + 1) for name in names]
    # Once each: a node that shows a text has it twice.
    return glue[:MAX_GLUE].replace("\\n", "\n").join(part for part in dict.fromkeys(parts) if part.strip())


def find_prompt(
    nodes: Mapping[str, Node], value: Any, side: str, seen: set[int] | None = None, depth: int = 0
) -> str:
    """Return the text of a conditioning; `side` is `positive` or `negative`, for nodes that pass both on."""
    if isinstance(value, str):
        return value
    node, seen = follow(nodes, value), set() if seen is None else seen
    if node is None or id(node) in seen or depth > MAX_HOPS or node["class_type"] == "ConditioningZeroOut":
        return ""
    inputs = node["inputs"]
    texts = [name for name in (f"text_{side}", *PROMPT_INPUTS) if name in inputs]
    names = [name for name in (side, *PIPE_INPUTS) if name in inputs][:1]
    names = names or [name for name in inputs if name.startswith("conditioning")]
    if "populated_text" in inputs or (not texts and not names and any(map(TEXT_INPUTS.fullmatch, inputs))):
        return find_text(nodes, value, seen, depth)
    seen.add(id(node))
    if texts:
        return find_text(nodes, inputs[texts[0]], seen, depth + 1)
    if not names:  # a switch or a reroute
        names = [name for name in inputs if follow(nodes, inputs[name]) is not None][:1]
    glue = " AND " if "Combine" in node["class_type"] else "\nBREAK\n"
    parts = [find_prompt(nodes, inputs[name], side, seen, depth + 1) for name in names]
    return glue.join(part for part in dict.fromkeys(parts) if part.strip())


def walk_models(nodes: Mapping[str, Node], node: Node | None) -> Iterator[Node]:
    """Yield the nodes that a model went through, the last first; stacks of LoRAs come after their loader."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        names = ("model", "model1", *PIPE_INPUTS, "guider", "lora_stack", "optional_lora_stack")
        waiting += [follow(nodes, node["inputs"].get(name)) for name in names]


def walk_sigmas(
    nodes: Mapping[str, Node], link: Any
) -> tuple[Node | None, int | float | None, int | float | None]:
    """Return the node that a pass's noise levels come from, and how many of the first are split off.

    The last is the share of the steps that is left instead, where a node says it so.
    """
    skipped = left = None
    for _ in range(MAX_HOPS):
        node = follow(nodes, link)
        if node is None or "sigmas" not in node["inputs"]:
            return node, skipped, left
        if link[1] == 1:  # the second of two outputs
            if node["class_type"] == "SplitSigmas":
                skipped = find_number(nodes, node, "step")
            elif node["class_type"] == "SplitSigmasDenoise":
                left = find_number(nodes, node, "denoise")
        link = node["inputs"]["sigmas"]
    return None, skipped, left
