"""The list of a person's LoRAs that each tab offers, and what the page says of the chosen one."""

import math
from html import escape
from pathlib import Path

from core.models import lora_library
from core.models.folders import FOLDER_NAMES
from core.models.lora_facts import LoraFacts, LoraStrength, describe_mismatch, read_lora_facts
from core.models.measured_strengths import find_strengths
from core.schema.errors import UserError
from core.system.markdown import format_html_warning

MAX_WORDS_SHOWN = 8
LORA_ORDERS = {"name": "name", "how strongly it acts": "action", "consistency": "consistency"}
"""What a list of LoRAs can be sorted by: what the page shows, and the name."""


def list_lora_choices(order: str = "name") -> list[tuple[str, str]]:
    """List the library's LoRAs: what a list shows and searches, which is name and folder, and the name.

    By `action` or `consistency`, the greatest comes first and its number is shown; LoRAs that were
    not measured follow by name.
    """
    plain = {*FOLDER_NAMES["lora"], lora_library.EXAMPLES_FOLDER.name}
    library = lora_library.list_loras()
    found = {} if order == "name" else find_strengths(library.values())
    numbers = {file: number for file, each in found.items() if (number := getattr(each, order)) is not None}
    return [
        (
            name
            + ("" if (folder := file.parent.name) in plain else f" · {folder}")
            + (f" · {order} {numbers[file]:.2f}" if file in numbers else ""),
            name,
        )
        for name, file in sorted(library.items(), key=lambda each: -numbers.get(each[1], -math.inf))
    ]


def find_chosen_lora(file: str | None, name: str | None) -> str | None:
    """Return the path of an uploaded LoRA, else of the chosen one in the library; `None` without either.

    Raises `UserError` if the library has none of that name.
    """
    return file or (str(lora_library.locate_lora(name)) if name else None)


def describe_choice(path: str | None, model: str) -> tuple[str, LoraFacts | None]:
    """Return HTML that says what is known of a LoRA beside the base model of that name, and the facts.

    Empty and `None` without a LoRA, and the reason and `None` for one that cannot be used.
    """
    if path is None:
        return "", None
    try:
        facts = read_lora_facts(Path(path), model)
        warning = describe_mismatch(Path(path), model)
    except UserError as error:
        return f"<p>{format_html_warning(str(error))}</p>", None
    picture = (
        f'<img src="{escape(facts.thumbnail)}" alt="" style="max-height:96px;border-radius:6px">'
        if facts.thumbnail
        else ""
    )
    lines = [escape(_format_facts(facts)), *([format_html_warning(warning)] if warning else [])]
    text = "".join(f"<div>{line}</div>" for line in lines)
    return f'<div style="display:flex;gap:12px;align-items:center">{picture}<div>{text}</div></div>', facts


def _format_facts(facts: LoraFacts) -> str:
    """Return one line of everything that is known."""
    words = [word for word in facts.words if word != facts.trigger][:MAX_WORDS_SHOWN]
    parts = [
        facts.kind,
        f"rank {facts.rank}" if facts.rank else "",
        f"for {facts.family}" if facts.family else "",
        f"trigger: {facts.trigger}" if facts.trigger else "",
        f"trained words: {'; '.join(words)}" if words else "",
        _format_strength(facts.strength) if facts.strength else "no strength is known; 1 is usual",
    ]
    return " · ".join(part for part in parts if part)


def _format_strength(strength: LoraStrength) -> str:
    ends = strength.interval
    between = f" ({ends[0]:g} to {ends[1]:g})" if ends and ends[0] < ends[1] else ""
    told = f"{'strength' if strength.works else 'changes images at'} {strength.value:g}{between}"
    action = "" if strength.action is None else f" · action {strength.action:.2f}"
    alike = "" if strength.consistency is None else f" · consistency {strength.consistency:.2f}"
    return f"{told}, {strength.source}{action}{alike}"
