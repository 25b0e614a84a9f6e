"""Read `presets/*.toml` into records; a wrong preset stops the start with one sentence."""

import json
import string
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core.schema import toml
from core.schema.errors import UserError
from core.schema.records import make_record
from core.schema.samplers import split_sampler
from core.schema.types import Model, PromptPreset, Request, Tool, check_picture_size

PRESETS_FOLDER = Path(__file__).resolve().parent.parent.parent / "presets"
STAGE_NAMES = ("hires", "detail", "expand", "grain")
PROMPT_PARTS = ("subject", "character", "general", "quality")


@cache
def get_models() -> dict[str, Model]:
    """Return the base models of `presets/models.toml` by name."""
    entries = _read_tables("models.toml")
    found = {
        name: make_record(Model, {"name": name, **entry}, f"models.toml, [{name}]")
        for name, entry in entries.items()
    }
    for model in found.values():
        if unknown := next((name for name in (*model.merge, *model.parents) if name not in found), None):
            raise UserError(
                f"models.toml, [{model.name}]", f"{unknown!r} is not in the table; it has {', '.join(found)}."
            )
    return found


@cache
def get_tools() -> dict[str, Tool]:
    """Return the tools of `presets/tools.toml`, such as upscalers and detectors, by name."""
    entries = _read_tables("tools.toml")
    return {
        name: make_record(Tool, {"name": name, **entry}, f"tools.toml, [{name}]")
        for name, entry in entries.items()
    }


@cache
def get_prompt_presets() -> dict[str, PromptPreset]:
    """Return the prompt presets of `presets/prompts/` by name.

    nano's, which are always there, come first. A preset that is `like` another takes from it
    whatever it does not set itself.
    """
    files = sorted(
        (PRESETS_FOLDER / "prompts").glob("*.toml"),
        key=lambda file: (not file.stem.startswith("nano"), file.stem),
    )
    tables = {file.stem: read_preset_toml(file) for file in files}
    found = {}
    for name, table in tables.items():
        like = table.pop("like", name)
        if not isinstance(like, str) or like not in tables:
            raise UserError(
                f"prompts/{name}.toml", f"like: {like!r:.40} is unknown. Use one of: {', '.join(tables)}."
            )
        found[name] = parse_prompt_preset({**tables[like], **table}, name)
    return found


def get_prompt_preset(name: str) -> PromptPreset:
    """Return the prompt preset with this name. Raises `UserError` if it is unknown."""
    known = get_prompt_presets()
    if name not in known:
        raise UserError("preset", f"{name[:40]!r} is unknown. Use one of: {', '.join(known)}.")
    return known[name]


def parse_prompt_preset(table: dict[str, Any], name: str) -> PromptPreset:
    """Make a prompt preset from its TOML table.

    Raises `UserError` that names the file, the field, the value and what is allowed.
    """
    where = f"prompts/{name}.toml"
    if isinstance(table.get("sampler"), str):  # `DPM++ 2M Karras`, as presets of version 0.1 say
        sampler, schedule = split_sampler(table["sampler"])
        table = {**table, "sampler": sampler, **({"schedule": schedule} if schedule else {})}
    found = make_record(PromptPreset, {"name": name, **table}, where)
    if not found.neutral:
        raise UserError(where, "neutral: it is empty; a sweep needs at least one prompt.")
    for stage in found.on:
        if stage not in STAGE_NAMES:
            raise UserError(where, f"on: {stage!r} is not a stage; the stages are {', '.join(STAGE_NAMES)}.")
    if found.model not in get_models():
        raise UserError(
            where, f"model: {found.model!r} is not in models.toml; it has {', '.join(get_models())}."
        )
    try:
        fields_of = [
            (name, spec, conversion)
            for _, name, spec, conversion in string.Formatter().parse(found.template)
            if name is not None
        ]
    except ValueError as error:
        raise UserError(where, f"template: {found.template[:60]!r} has unbalanced braces.") from error
    for name, spec, conversion in fields_of:
        if name not in PROMPT_PARTS or spec or conversion:
            raise UserError(
                where,
                f"template: {{{name[:40]}}} is not a part of a prompt; "
                f"the parts are {', '.join(PROMPT_PARTS)}.",
            )
    names = ("model", "negative", "width", "height", "steps", "cfg", "cfg_rescale", "sampler", "schedule")
    shared = {name: getattr(found, name) for name in names}
    try:
        check_picture_size(Request(**shared, prompt="-", seed=0, hires=found.hires))
    except UserError as error:
        raise UserError(where, str(error)) from error
    for field, value, (low, high) in (
        ("cfg", found.cfg, found.cfg_range),
        ("width", found.width, found.size_range),
        ("height", found.height, found.size_range),
    ):
        if not low <= value <= high:
            raise UserError(where, f"{field}: {value} is outside its own range, {low} to {high}.")
    return found


def format_prompt_preset(preset: PromptPreset) -> str:
    """Return the prompt preset as TOML without its name, as `parse_prompt_preset` reads it back."""
    plain, nested = [], []
    for field in fields(preset):
        value = getattr(preset, field.name)
        if is_dataclass(value):
            nested.append(
                f"\n[{field.name}]\n"
                + "".join(f"{k} = {_format_toml_value(v)}\n" for k, v in vars(value).items() if v is not None)
            )
        elif field.name != "name" and value is not None:
            plain.append(f"{field.name} = {_format_toml_value(value)}\n")
    return "".join(plain + nested)


def _format_toml_value(value: Any) -> str:
    """Return a value as TOML, by way of JSON.

    Both write text, numbers, switches and lists alike, except for text that JSON would escape as
    UTF-16.
    """
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _read_tables(name: str) -> dict[str, dict[str, Any]]:
    """Return the tables of a file of `presets/`, unchecked."""
    tables = read_preset_toml(PRESETS_FOLDER / name)
    if wrong := next((key for key, table in tables.items() if not isinstance(table, dict)), None):
        raise UserError(name, f"{wrong[:40]!r} is not a table; begin it with [{wrong[:40]}].")
    return tables


def read_preset_toml(file: Path) -> dict[str, Any]:
    """Return the table of a preset's TOML file, unchecked. Raises `UserError` if it is not TOML."""
    return toml.read_toml(
        file,
        f"presets/{file.relative_to(PRESETS_FOLDER)}" if file.is_relative_to(PRESETS_FOLDER) else file.name,
    )
