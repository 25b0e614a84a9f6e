"""What a person filled in -> the cells of a job: the preset's values where nothing was said, a seed for each picture."""

import secrets
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from core import limits, presets
from core.types import Cell, Request

RANDOM = -1
"""The seed that stands for 'any'."""


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """`Request`'s fields and `count`: what was said, else the preset's. The preset must be known."""
    recipe = presets.recipes()[values.get("preset") or "nano"]
    said = {name: value for name, value in values.items() if value is not None}
    names = {field.name for field in fields(Request)} | {"count"}
    found = {"prompt": "", "count": 1, **vars(recipe), **said}
    if found.get("seed", RANDOM) == RANDOM:
        found["seed"] = secrets.randbelow(limits.SEED[1] + 1)
    return {name: found[name] for name in names if name in found}


def problems(values: Mapping[str, Any]) -> dict[str, str]:
    """Field -> sentence for everything that is not allowed; empty when `cells` can be called."""
    preset = values.get("preset")
    if preset is not None and preset not in list(presets.recipes()):
        return {"preset": f"preset: {str(preset)[:40]!r} is unknown; it takes {', '.join(presets.recipes())}."}
    return limits.problems(filled(values))


def advice(values: Mapping[str, Any]) -> list[str]:
    """What is allowed, but not what the preset's author advises."""
    recipe, asked = presets.recipes()[values.get("preset") or "nano"], filled(values)
    (low, high), (least, most) = recipe.cfg_range, recipe.size_range
    said = []
    if not low <= asked["cfg"] <= high:
        said.append(f"cfg: {asked['cfg']:g} is outside the {low:g} to {high:g} that {recipe.title} is made for.")
    for side in ("width", "height"):
        if not least <= asked[side] <= most:
            said.append(f"{side}: {asked[side]} is outside the {least} to {most} pixels that {recipe.title} is made for.")
    return said


def cells(values: Mapping[str, Any]) -> list[Cell]:
    """One cell a picture, with seeds that count up from the first; call `problems` before."""
    asked = filled(values)
    whole = {name: int(asked[name]) for name in ("width", "height", "steps")}
    texts = {name: asked[name].replace("\r\n", "\n").strip() for name in ("prompt", "negative")}
    seeds = [(int(asked["seed"]) + i) % (limits.SEED[1] + 1) for i in range(int(asked["count"]))]
    request = Request(model=asked["model"], sampler=asked["sampler"], cfg=float(asked["cfg"]), seed=seeds[0], **whole, **texts)
    return [Cell(label=f"seed {seed}", request=Request(**{**vars(request), "seed": seed})) for seed in seeds]
