"""Frozen dataclasses that check the types and bounds of their fields when they are made."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, dataclass_transform, get_type_hints

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, ErrorDetails

from core.schema.bounds import format_value
from core.schema.errors import UserError

Record = TypeVar("Record")
TYPES = {
    "string_type": "is not text",
    "bool_type": "is not valid. Use true or false",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "tuple_type": "is not a list",
    "list_type": "is not a list",
    "dict_type": "is not a table",
    "dataclass_type": "is not a table",
}
"""Pydantic's error type -> what the message says about the value."""


CONFIG = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, use_attribute_docstrings=True)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(kind: type[Record]) -> type[Record]:
    """Make a class a frozen, keyword-only dataclass that checks its fields.

    They are checked when a record is made, also by `dataclasses.replace`. Types are strict: a
    number written as text is not a number. Bounds stand beside the fields (`core.schema.bounds`).

    Raises:
        UserError: When a record is made, for the first field that is unknown, missing or not
            allowed.
    """
    made: Any = dataclass(
        frozen=True,
        kw_only=True,
        config=CONFIG,
    )(kind)

    def __init__(self: Any, /, **values: Any) -> None:
        try:
            made.__pydantic_validator__.validate_python(ArgsKwargs((), values), self_instance=self)
        except ValidationError as error:
            field, sentence = next(iter(_explain(made, error).items()))
            raise UserError(field, sentence) from None

    made.__init__ = __init__
    return made


def find_problems(kind: type, values: Mapping[str, Any]) -> dict[str, str]:
    """Return field -> sentence for each field that is unknown, missing or not allowed.

    The sentences lack the field's name. Returns an empty dict if `kind` accepts the values.
    """
    try:
        validator = kind.__pydantic_validator__  # type: ignore[attr-defined]
        validator.validate_python(ArgsKwargs((), dict(values)), self_instance=object.__new__(kind))
    except ValidationError as error:
        return _explain(kind, error)
    except UserError as error:
        return {str(error.field): error.sentence}
    return {}


def read_form(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """Make a form from what a page or a client sent; `None` leaves a field at its default.

    Raises:
        UserError: For the first field that is unknown, missing or not allowed.
    """
    return kind(**{name: value for name, value in values.items() if value is not None})


def make_record(kind: type[Record], table: Mapping[str, Any], where: str) -> Record:
    """Make a record from a table of TOML or JSON: lists become tuples, and tables become records.

    Raises:
        UserError: For the first field that is not allowed; the error's field is `where`, such as a
            file's name, and its sentence begins with the record's field.
    """
    try:
        return kind(**{name: _convert(hint, table[name]) for name, hint in _list_types(kind, table)})
    except UserError as error:
        raise UserError(where, str(error)) from None


def read_help(kind: type) -> dict[str, str]:
    """Return field -> the docstring below it in the class."""
    described = kind.__pydantic_fields__.items()  # type: ignore[attr-defined]
    return {name: field.description for name, field in described if field.description}


def _list_types(kind: type, table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    hints = get_type_hints(kind)
    return [(name, hints.get(name)) for name in table]


def _convert(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Mapping) and hasattr(hint, "__pydantic_validator__"):
        return hint(**{name: _convert(part, value[name]) for name, part in _list_types(hint, value)})
    return value


def _explain(kind: type, error: ValidationError) -> dict[str, str]:
    """Return field -> sentence; fields of records within records are dotted."""
    return {
        ".".join(str(part) for part in each["loc"] if isinstance(part, str)): _say(kind, each)
        for each in error.errors()
    }


def _say(kind: type, error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])  # type: ignore[typeddict-item]
    if error["type"] in ("missing", "too_long", "too_short"):
        in_tuple = error["type"] != "missing" or any(isinstance(part, int) for part in error["loc"])
        return "it has too few or too many entries." if in_tuple else "it is missing."
    if error["type"] == "unexpected_keyword_argument":
        return (
            "it is not a field; "
            f"the fields are {', '.join(field.name for field in fields(kind))}."  # type: ignore[arg-type]
        )
    return f"{format_value(error['input'])} {TYPES.get(error['type'], 'is not valid')}."
