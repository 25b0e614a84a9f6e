"""presets/*.toml -> records. A preset that is wrong stops the start with one sentence."""

import json
import string
import types
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from core import paths, toml
from core.checks import shown
from core.limits import PROMPT, problems
from core.types import Model, Recipe, Tool, UserError

FOLDER = paths.CODE / "presets"
STAGES = ("hires", "detail", "expand", "grain")
PARTS = ("subject", "character", "general", "quality")

Record = TypeVar("Record")


@cache
def models() -> dict[str, Model]:
    """The base models of `presets/models.toml` by name."""
    entries = read_toml(FOLDER / "models.toml")
    found = {name: record(Model, {"name": name, **entry}, f"models.toml, [{name}]") for name, entry in entries.items()}
    for model in found.values():
        if unknown := next((name for name in (*model.merge, *model.parents) if name not in found), None):
            raise UserError(f"models.toml, [{model.name}]: {unknown!r} is not in the table; it has {', '.join(found)}.")
    return found


@cache
def tools() -> dict[str, Tool]:
    """The upscalers, detectors and expanders of `presets/tools.toml` by name."""
    entries = read_toml(FOLDER / "tools.toml")
    return {name: record(Tool, {"name": name, **entry}, f"tools.toml, [{name}]") for name, entry in entries.items()}


@cache
def recipes() -> dict[str, Recipe]:
    """The recipes of `presets/prompts/` by name; nano's, which are always there, come first. One that is `like` another takes what it does not say from it."""
    files = sorted((FOLDER / "prompts").glob("*.toml"), key=lambda file: (not file.stem.startswith("nano"), file.stem))
    tables = {file.stem: read_toml(file) for file in files}
    return {name: recipe({**tables.get(table.pop("like", ""), {}), **table}, name) for name, table in tables.items()}


def recipe(table: dict[str, Any], name: str) -> Recipe:
    """A recipe from its TOML table; raises `UserError` naming file, field, value and what is allowed."""
    where = f"prompts/{name}.toml"
    found = record(Recipe, {"name": name, **table}, where)
    for stage in found.on:
        if stage not in STAGES:
            raise UserError(f"{where}: on: {stage!r} is not a stage; the stages are {', '.join(STAGES)}.")
    if found.model not in models():
        raise UserError(f"{where}: model: {found.model!r} is not in models.toml; it has {', '.join(models())}.")
    try:
        fields_of = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(found.template) if name is not None]
    except ValueError as error:
        raise UserError(f"{where}: template: {found.template[:60]!r} has a brace too many or too few.") from error
    for name, spec, conversion in fields_of:
        if name not in PARTS or spec or conversion:
            raise UserError(f"{where}: template: {{{name[:40]}}} is not a part of a prompt; the parts are {', '.join(PARTS)}.")
    texts = {name: getattr(found, name) for name in ("template", "help", *PARTS)}
    for name, text in texts.items():
        if len(text) > PROMPT:
            raise UserError(f"{where}: {name}: {len(text):,} characters are too many; it takes up to {PROMPT:,}.")
    numbers = {name: getattr(found, name) for name in ("width", "height", "steps", "cfg", "sampler", *STAGES)}
    for sentence in problems(numbers).values():
        raise UserError(f"{where}: {sentence}")
    for field, value, (low, high) in (
        ("cfg", found.cfg, found.cfg_range),
        ("width", found.width, found.size_range),
        ("height", found.height, found.size_range),
    ):
        if not low <= value <= high:
            raise UserError(f"{where}: {field}: {value} is outside its own range, {low} to {high}.")
    return found


def record(kind: type[Record], table: dict[str, Any], where: str) -> Record:
    """A record from a TOML table; each key must be a field and each value of the field's type."""
    hints = get_type_hints(kind)
    required = {f.name for f in fields(kind) if f.default is f.default_factory}  # type: ignore[arg-type]  (both MISSING)
    for missing in sorted(required - table.keys()):
        raise UserError(f"{where}: {missing} is missing.")
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise UserError(f"{where}: {shown(key)} is not a field; the fields are {', '.join(hints)}.")
        values[key] = _typed(value, hints[key], f"{where}: {key}")
    return kind(**values)


def _typed(value: Any, hint: Any, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):  # `X | None`: TOML has no null, so a value is an X
        return _typed(value, get_args(hint)[0], where)
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{where}: {shown(value)} is not a table.")
        return record(hint, value, where)  # type: ignore[type-var]
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        if not isinstance(value, list):
            raise UserError(f"{where}: {shown(value)} is not a list.")
        return tuple(_typed(v, get_args(hint)[0], where) for v in value)
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or len(value) != len(get_args(hint)):
            raise UserError(f"{where}: {shown(value)} is not a list of {len(get_args(hint))} numbers.")
        return tuple(_typed(v, h, where) for v, h in zip(value, get_args(hint), strict=True))
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise UserError(f"{where}: {str(value)[:40]}… is not allowed; it takes a number.") from error
    if type(value) is not hint:
        raise UserError(f"{where}: {shown(value)} is not of type {hint.__name__}.")
    return value


def written(recipe: Recipe) -> str:
    """The recipe as TOML, without its name: what `recipe` reads back as the same."""
    plain, nested = [], []
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if is_dataclass(value):
            nested.append(f"\n[{field.name}]\n" + "".join(f"{k} = {_toml(v)}\n" for k, v in vars(value).items() if v is not None))
        elif field.name != "name" and value is not None:
            plain.append(f"{field.name} = {_toml(value)}\n")
    return "".join(plain + nested)


def _toml(value: Any) -> str:
    """Text, numbers, switches and lists are the same in JSON, but for text that JSON would spell in UTF-16."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file as it is. Raises `UserError` for one that is none."""
    return toml.read_toml(file, f"presets/{file.relative_to(FOLDER)}" if file.is_relative_to(FOLDER) else file.name)
