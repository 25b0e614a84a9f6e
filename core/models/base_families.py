"""Which family of base models a name speaks of, and which families a LoRA can be carried between."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from core.schema import presets
from core.schema.types import Model

PARENTS = {
    "SDXL": None,
    "Kohaku": "SDXL",
    "Illustrious": "SDXL",
    "NoobAI": "Illustrious",
    "Pony": "SDXL",
    "Animagine": "SDXL",
    "nano": None,
}
"""Family -> the one that it was trained from."""
NAME_PATTERNS = {
    "SDXL": r"sd ?xl|stable diffusion xl",
    "Kohaku": r"kohaku",
    "Illustrious": r"illustrious|\bil ?xl\b",
    "NoobAI": r"noob ?ai|\bnai ?xl\b",
    "Pony": r"pony(?! ?v ?7)",  # the seventh descends from another model than SDXL
    "Animagine": r"animagine",
}
"""Family -> how file names, sidecars and metadata speak of it, in small letters without punctuation."""


def find_family(name: str) -> str | None:
    """Return the family that a name speaks of; `None` for no family, and for several that are strangers.

    Of a family and its descendant it is the descendant.
    """
    plain = re.sub(r"[\W_]+", " ", name[:1000].lower())
    named = {family for family, pattern in NAME_PATTERNS.items() if re.search(pattern, plain)}
    last = [family for family in named if not any(family in _list_ancestors(other) for other in named)]
    return last[0] if len(last) == 1 else None


def choose_family(root: str | None, names: Iterable[str]) -> str | None:
    """Return the first family among `names` that descends from `root`, else `root` itself.

    `root` is what a file's shapes tell, which no name outweighs; `None` if they tell nothing.
    """
    found = [family for name in names if (family := find_family(name))]
    if root is not None:
        return next((family for family in found if root in _list_ancestors(family)), root)
    return next((family for family in found if PARENTS[family]), next(iter(found), None))


def find_base_family(model: Model) -> str | None:
    """Return the family of a base model by its names, or by those of the models that it descends from."""
    if model.is_nano:
        return "nano"
    for name in (model.name, model.title, model.file or PurePosixPath(model.source).name):
        if family := find_family(name):
            return family
    table = presets.get_models()
    parents = {find_base_family(table[name]) for name in model.parents if name in table}
    return parents.pop() if len(parents) == 1 else None


def is_related(one: str, other: str) -> bool:
    """Whether two families are one, or one descends from the other: then a LoRA is at home on both."""
    return one == other or one in _list_ancestors(other) or other in _list_ancestors(one)


def _list_ancestors(family: str) -> list[str]:
    """Return the families that one descends from, the nearest first."""
    parent = PARENTS.get(family)
    return [parent, *_list_ancestors(parent)] if parent else []
