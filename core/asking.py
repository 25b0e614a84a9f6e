"""What a person filled in -> the cells of a job: the preset's values where nothing was said, a seed for each picture.

A stage (`hires`, `detail`, `grain`) is said as true or false, or as a table of those of its settings that are not
the preset's. A page says it in pieces: `hires` and `hires_factor`, each from its own control.
"""

import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from core import hub, limits, presets, pulled, shelf, tools
from core.beforehand import Elsewhere
from core.details import ANIMEFACE
from core.expand import Expanded, check, expand
from core.hires import LANCZOS, LATENT
from core.types import Cell, Detail, Expand, Grain, Hires, LoraUse, Recipe, Request, UserError

RANDOM = -1
"""The seed that stands for 'any'."""
STAGES = {"hires": Hires, "detail": Detail, "grain": Grain, "expand": Expand}
TOOLS = {"hires": ("upscaler", (LANCZOS, LATENT)), "detail": ("detector", (ANIMEFACE,)), "expand": ("expander", ())}
"""Stage -> the field that names its model, and what it takes that is no model."""


def recipe(values: Mapping[str, Any]) -> Recipe:
    """The preset that was chosen; it must be known."""
    return presets.recipes()[values.get("preset") or "nano"]


def stage(name: str, values: Mapping[str, Any]) -> Any:
    """The record of a stage, or `None` when it is off. Raises `UserError` for a setting that does not exist."""
    kind, chosen = STAGES[name], recipe(values)
    said, pieces = values.get(name), {key.removeprefix(f"{name}_"): value for key, value in values.items() if key.startswith(f"{name}_")}
    if isinstance(said, kind) or said is False or (said is None and name not in chosen.on):
        return said or None
    if not (said is None or said is True or isinstance(said, Mapping)):
        raise UserError(f"{name}: {str(said)[:40]!r} is not allowed; it takes true, false or a table of its settings.")
    settings = {**(said if isinstance(said, Mapping) else {}), **pieces}
    known = [f.name for f in fields(kind)]
    for key in settings:
        if key not in known:
            raise UserError(f"{name}.{str(key)[:40]} is not a setting; the settings are {', '.join(known)}.")
    made = replace(getattr(chosen, name), **{key: _plain(value) for key, value in settings.items()})
    field = TOOLS[name][0] if name in TOOLS else None
    if field in pulled.TOOLS and hub.is_id(asked := getattr(made, field)):
        with suppress(Elsewhere):
            return replace(made, **{field: pulled.exact(field, asked)})
    return made


def _plain(value: Any) -> Any:
    """What JSON and sliders give, as the records keep it: a list is a tuple, 25.0 is 25."""
    if isinstance(value, list):
        return tuple(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def choices(name: str) -> list[str]:
    """The models that a stage takes."""
    field, others = TOOLS[name]
    return [*tools.names(field), *others]


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """`Request`'s fields, `count` and `expand`: what was said, else the preset's. The preset must be known."""
    said = {name: value for name, value in values.items() if value is not None}
    names = {field.name for field in fields(Request)} | {"count"}
    found = {"prompt": "", "count": 1, "clip_skip": 2, **vars(recipe(values)), **said}
    if found.get("seed", RANDOM) == RANDOM:
        found["seed"] = secrets.randbelow(limits.SEED[1] + 1)
    return {name: found[name] for name in names if name in found} | {name: stage(name, values) for name in STAGES}


def problems(values: Mapping[str, Any]) -> dict[str, str]:
    """Field -> sentence for everything that is not allowed; empty when `cells` can be called."""
    preset = values.get("preset")
    if preset is not None and preset not in list(presets.recipes()):
        return {"preset": f"preset: {str(preset)[:40]!r} is unknown; it takes {', '.join(presets.recipes())}."}
    for name in STAGES:
        try:
            stage(name, values)
        except UserError as error:
            return {name: str(error)}
    found: dict[str, str] = {}
    try:
        with suppress(Elsewhere):
            loras(values)
    except UserError as error:
        found[next((name for name in ("lora_file", "loras") if values.get(name)), "prompt")] = str(error)
    asked = filled(values)
    if asked["expand"] and not limits.problems({"expand": asked["expand"]}):
        try:
            check(asked["expand"])
        except UserError as error:
            return {"expand": str(error)}
    found |= limits.problems(asked)
    for name, (field, _) in TOOLS.items():
        own = field in pulled.TOOLS
        if asked[name] is not None and (chosen := getattr(asked[name], field)) not in choices(name) and not (own and hub.is_id(chosen)):
            taken = ", ".join(choices(name)) + (f", or a Hub id owner/name:file{pulled.TOOLS[field]}" if own else "")
            found[f"{name}.{field}"] = f"{name}.{field}: {str(chosen)[:40]!r} is unknown; it takes {taken}."
    return found


def advice(values: Mapping[str, Any]) -> list[str]:
    """What is allowed, but not what the preset's author advises."""
    chosen, asked = recipe(values), filled(values)
    (low, high), (least, most) = chosen.cfg_range, chosen.size_range
    said = []
    if not low <= asked["cfg"] <= high:
        said.append(f"cfg: {asked['cfg']:g} is outside the {low:g} to {high:g} that {chosen.title} is made for.")
    for side in ("width", "height"):
        if not least <= asked[side] <= most:
            said.append(f"{side}: {asked[side]} is outside the {least} to {most} pixels that {chosen.title} is made for.")
    beyond, longest = chosen.ultrawide_beyond, max(asked["width"], asked["height"])
    if beyond and longest > beyond and asked["width"] < 2 * asked["height"]:
        said.append(f"{asked['width']} x {asked['height']}: sides beyond {beyond} are for ultrawide pictures only.")
    return said


def loras(values: Mapping[str, Any]) -> tuple[LoraUse, ...]:
    """The LoRAs that are asked for: `lora_file` with `lora_strength`, the list `loras`, and the prompt's `<lora:...>` tags.

    Raises `UserError` for a file that cannot be used, a name that is not on the shelf, a strength or blocks not allowed.
    """
    prompt, listed = values.get("prompt"), values.get("loras")
    found = shelf.listed(listed) if listed else ()
    if values.get("lora_file"):
        strength = values.get("lora_strength")
        found = (LoraUse(path=str(values["lora_file"]), strength=1.0 if strength is None else strength), *found)
    said = shelf.uses(prompt) if isinstance(prompt, str) and len(prompt) <= limits.PROMPT else ()
    return shelf.checked([*found, *said])


def settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the seed that 'any' stands for this time, so that every stage of the job has the same one."""
    return {**values, "seed": filled(values)["seed"]}


def expanded(values: Mapping[str, Any]) -> Expanded | None:
    """The prompt with what DanTagGen adds to it, if that is asked for; the picture's seed is its seed."""
    asked = filled(values)
    if asked["expand"] is None:
        return None
    how: Expand = asked["expand"]
    tags = shelf.tags(loras(values))
    if how.lora_tags == "ban":
        how, tags = replace(how, ban=(*how.ban, *map(re.escape, tags))), ()
    return expand(asked["prompt"], how, width=int(asked["width"]), height=int(asked["height"]), seed=int(asked["seed"]), known=tags)


def cells(values: Mapping[str, Any], expanded: str | None = None) -> list[Cell]:
    """One cell a picture, with seeds that count up from the first; call `problems` before.

    `expanded` is the prompt before tags were added to it.
    """
    asked, worn = filled(values), loras(values)
    from_prompt = shelf.uses(asked["prompt"])
    written = " ".join(map(shelf.tag, worn[: len(worn) - len(from_prompt)]))  # what the prompt does not say yet
    asked["prompt"] = f"{asked['prompt'].strip()} {written}".strip()
    whole = {name: int(asked[name]) for name in ("width", "height", "steps", "clip_skip")}
    texts = {name: asked[name].replace("\r\n", "\n").strip() for name in ("prompt", "negative")}
    stages = {name: asked[name] for name in ("hires", "detail", "grain")}
    seeds = [(int(asked["seed"]) + i) % (limits.SEED[1] + 1) for i in range(int(asked["count"]))]
    request = Request(
        model=asked["model"], sampler=asked["sampler"], cfg=float(asked["cfg"]), seed=seeds[0], expanded=expanded, loras=worn, **whole, **texts, **stages
    )
    return [Cell(label=f"seed {seed}", request=replace(request, seed=seed)) for seed in seeds]
