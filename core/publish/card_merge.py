"""Merges a card into the one that is on the Hub: what people wrote there stays, byte for byte.

Each LoRA's part stands between markers, and publishing renews that alone. In the front matter, only the
keys that the studio writes are renewed; tags, bases and examples are added to those that are there.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.utils import yaml_dump

from core.schema.errors import UserError

FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?\r?\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
TOP_LEVEL_KEY = re.compile(r"^[\"']?([\w.-]+)[\"']?[ \t]*:(?=\s|$)")
UNREADABLE = "the front matter of its README.md cannot be read; mend it on Hugging Face first."
KEPT_KEYS = ("library_name", "pipeline_tag")
"""Keys of which the value that is there stays."""
SHARED_KEYS = ("instance_prompt", "license", "license_name", "license_link")
"""Keys of which the value of the first LoRA stays where there are several."""
GALLERY = "<Gallery />"
MARKER = re.compile(r"<!-- sweetspot: begin [\w.-]+ -->")


def mark_section(text: str, name: str) -> str:
    """Return a LoRA's part of a card between its markers; `name` is its file's."""
    return f"{_make_marker('begin', name)}\n\n{text}\n\n{_make_marker('end', name)}"


def merge_card(card: str, there: str, name: str, images: str) -> str:
    """Return the card that is `there` with the part and the front matter of `card`.

    `card` is a card of one LoRA, whose file is `name` and whose examples lie in the folder `images`. Raises
    `UserError` if the front matter there cannot be read.
    """
    own, section = _split_card(card)
    old, body = _split_card(there)
    begin, end = (_make_marker(which, name) for which in ("begin", "end"))
    before, found, rest = body.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        before, after = (body.rstrip() + "\n\n" if body.strip() else ""), "\n"
    section = section.strip()
    if GALLERY in before + after:  # the Hub draws one gallery of all examples
        section = section.replace(f"{GALLERY}\n\n", "")
    has_others = MARKER.search(before + after) is not None
    return f"---\n{_merge_front_matter(own, old, images, has_others)}---\n{before}{section}{after}"


def _make_marker(which: str, name: str) -> str:
    return f"<!-- sweetspot: {which} {name} -->"


def _split_card(text: str) -> tuple[str, str]:
    """Return a card's front matter, without its fences, and its body."""
    found = FRONT_MATTER.match(text)
    return (found[1], text[found.end() :]) if found else ("", text)


def _merge_front_matter(own: str, there: str, images: str, has_others: bool) -> str:
    """Return the front matter `there` with the keys of `own`; all other lines stay as they are.

    `has_others` is whether the card describes other LoRAs, too.
    """
    ours, old = yaml.safe_load(own), _read_front_matter(there)
    blocks = _split_blocks(there)
    if old.keys() - blocks.keys():
        raise UserError("repo", UNREADABLE)
    for key, value in ours.items():
        merged = _merge_value(key, value, old.get(key), images, has_others)
        if key not in blocks or merged != old.get(key):
            blocks[key] = yaml_dump({key: merged}, line_break="\n")
    if "license_name" not in ours and not has_others:  # of the licence of before
        blocks.pop("license_name", None)
        blocks.pop("license_link", None)
    return "".join(blocks.values())


def _read_front_matter(text: str) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError("repo", UNREADABLE) from error
    if found is not None and not isinstance(found, dict):
        raise UserError("repo", UNREADABLE)
    return found or {}


def _split_blocks(front_matter: str) -> dict[str, str]:
    """Return key -> its lines, with the comments below it; what comes before the first key has the key ''."""
    blocks, key = {"": ""}, ""
    for line in front_matter.splitlines(keepends=True):
        if found := TOP_LEVEL_KEY.match(line):
            key = found[1]
        blocks[key] = blocks.get(key, "") + line
    return blocks


def _merge_value(key: str, ours: Any, there: Any, images: str, has_others: bool) -> Any:
    """Return the value of a key in the merged front matter."""
    if there is None:
        return ours
    match key:
        case _ if key in KEPT_KEYS or (has_others and key in SHARED_KEYS):
            return there
        case "tags" | "base_model" if key == "tags" or has_others:
            listed = there if isinstance(there, list) else [there]
            added = [each for each in (ours if isinstance(ours, list) else [ours]) if each not in listed]
            return [*listed, *added] if added else there
        case "widget" if isinstance(there, list):
            return [each for each in there if not _is_example_in(each, images)] + ours
    return ours


def _is_example_in(entry: Any, images: str) -> bool:
    output = entry.get("output") if isinstance(entry, dict) else None
    return isinstance(output, dict) and str(output.get("url")).startswith(f"{images}/")
