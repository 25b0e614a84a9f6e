"""Which family of base models a name speaks of, and which families a LoRA can be carried between."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from core.models import files
from core.schema import presets
from core.schema.types import Model

TITLE_KEYS = ("modelspec.title", "ss_output_name", "ss_sd_model_name", "ss_base_model_version")
"""What of a checkpoint's metadata may name its family."""
MAX_NAME_LENGTH = 2000


class Family(NamedTuple):
    """Base models that were trained from one, and know its words."""

    parent: str | None
    """The family that it was trained from."""
    pattern: str
    """How names and metadata speak of it, in small letters with blanks for punctuation."""
    preset: str


FAMILIES = {
    "SDXL": Family(None, r"sd ?xl|stable diffusion xl", "sdxl-base"),
    "Kohaku": Family("SDXL", r"kohaku|baxl", "kohaku-xl-delta"),
    "Illustrious": Family(
        "SDXL",
        # WAI has models of Pony's family, too.
        r"illustrious|ilxl|\bil xl|\bil( ?v? ?\d|\b)|\bwai(?!fu)(?!.*pony)",
        "illustrious-xl",
    ),
    "NoobAI": Family("Illustrious", r"noob|\bnai ?xl\b", "noobai-xl"),
    # The seventh Pony descends from another model than SDXL.
    "Pony": Family("SDXL", r"pony(?! ?v ?7)|\bpdxl|autismmix", "pony-v6"),
    "Animagine": Family("SDXL", r"animagine|anim4gine", "animagine-xl-3.1"),
    "nano": Family(None, r"(?!)", "nano"),  # no name speaks of it
}


def simplify_name(name: str) -> str:
    """Return a name as patterns of names are written: in small letters with blanks for punctuation."""
    return re.sub(r"[\W_]+", " ", name[:MAX_NAME_LENGTH].lower())


def find_family(name: str) -> str | None:
    """Return the family that a name speaks of; `None` for no family, and for several that are strangers.

    Of a family and its descendant it is the descendant.
    """
    plain = simplify_name(name)
    named = {name for name, family in FAMILIES.items() if re.search(family.pattern, plain)}
    last = [family for family in named if not any(family in _list_ancestors(other) for other in named)]
    return last[0] if len(last) == 1 else None


def choose_family(root: str | None, names: Iterable[str]) -> str | None:
    """Return the first family among `names` that descends from `root`, else `root` itself.

    `root` is what a file's shapes tell, which no name outweighs; `None` if they tell nothing.
    """
    found = [family for name in names if (family := find_family(name))]
    if root is not None:
        return next((family for family in found if root in _list_ancestors(family)), root)
    return next((family for family in found if FAMILIES[family].parent), next(iter(found), None))


def find_base_family(model: Model) -> str | None:
    """Return the family of a base model: what its metadata say, its names, or the models it descends from."""
    if model.is_nano:
        return "nano"
    names = (read_titles(model), model.name, model.title, model.file or PurePosixPath(model.source).name)
    if family := choose_family(None, names):
        return family
    table = presets.get_models()
    parents = {find_base_family(table[name]) for name in model.parents if name in table}
    return parents.pop() if len(parents) == 1 else None


def read_titles(model: Model) -> str:
    """Return what the metadata of a single file on this machine say of its name and its base.

    Empty for a file that cannot be read: opening it tells why.
    """
    source = files.find_on_disk(model)
    if source is None or source.is_dir():
        return ""
    try:
        with safe_open(source, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError):
        return ""
    return " ".join(metadata.get(key, "") for key in TITLE_KEYS)[:MAX_NAME_LENGTH]


def is_related(one: str, other: str) -> bool:
    """Whether two families are one, or one descends from the other: then a LoRA is at home on both."""
    return one == other or one in _list_ancestors(other) or other in _list_ancestors(one)


def _list_ancestors(family: str) -> list[str]:
    """Return the families that one descends from, the nearest first."""
    parent = FAMILIES[family].parent if family in FAMILIES else None
    return [parent, *_list_ancestors(parent)] if parent else []
