"""Bounds of a record's fields, written beside each field: `steps: Annotated[int, Whole(1, 150)]`.

A bound checks a value, and its error says what is allowed. It copes with anything that a client
may send: wrong types, NaN, infinities, huge numbers and texts.
"""

import re
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

FORBIDDEN_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, characters that change the direction of writing, halves of UTF-16 pairs."""


EXACT_FLOATS = 2**53
"""Below, a float stands for one whole number only."""


def format_value(value: Any) -> str:
    """Return the value as a message may repeat it: one line of at most 41 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


def is_number(value: Any) -> bool:
    """Whether the value is an int or a float; `True` and `False` are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class Bound:
    """What a field accepts; pydantic calls `validate` with each value.

    A field that may be `None` also accepts `None`.
    """

    def validate(self, value: Any) -> Any:
        """Return the value as the record keeps it.

        Raises:
            ValueError: The value is not allowed; the sentence lacks the field's name.
        """
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        checked = core_schema.no_info_plain_validator_function(self.validate)
        return core_schema.nullable_schema(checked) if NoneType in get_args(source) else checked


@dataclass(frozen=True)
class Whole(Bound):
    """A whole number from `low` to `high`, and a multiple of `step`.

    25.0, as JSON and sliders send it, counts as 25. `also` is one more number that is allowed, such
    as -1 for any seed. A float from 2^53 is refused, since it may stand for its neighbours, too.
    """

    low: int
    high: int
    step: int = 1
    also: int | None = None

    def validate(self, value: Any) -> int:
        if is_number(value) and value == self.also:
            return int(value)
        # NaN and 2.5 fail this
        if is_number(value) and self.low <= value <= self.high and value % self.step == 0:
            if isinstance(value, float) and value >= EXACT_FLOATS:
                raise ValueError(f"{value:.20g} may be rounded. Send the digits as an integer or as text.")
            return int(value)
        steps = f" in steps of {self.step}" if self.step > 1 else ""
        allowed = f"a whole number from {self.low} to {self.high}{steps}"
        raise ValueError(f"{format_value(value)} is not valid. Use {allowed}.")


@dataclass(frozen=True)
class Seed(Whole):
    """A whole number that may also come as text, as from pages, whose own numbers are exact below 2^53.

    Blank text stands for `also`.
    """

    def validate(self, value: Any) -> int:
        if isinstance(value, str):
            text = value.strip()
            if re.fullmatch(r"-?[0-9]{1,20}", text):
                value = int(text)
            elif not text and self.also is not None:
                value = self.also
        return super().validate(value)


@dataclass(frozen=True)
class Real(Bound):
    """A number from `low` to `high`."""

    low: float
    high: float

    def validate(self, value: Any) -> float:
        if is_number(value) and self.low <= value <= self.high:  # NaN fails this
            return float(value)
        raise ValueError(
            f"{format_value(value)} is not valid. Use a number from {self.low:g} to {self.high:g}."
        )


@dataclass(frozen=True)
class Denoise(Bound):
    """A share of the noise: 0, or from `low`, which is enough for a step, to 1."""

    low: float = 0.05

    def validate(self, value: Any) -> float:
        if is_number(value) and (value == 0 or self.low <= value <= 1):
            return float(value)
        raise ValueError(f"{format_value(value)} is not valid. Use 0, or a number from {self.low:g} to 1.")


@dataclass(frozen=True)
class Text(Bound):
    """Text of at most `max_length` characters, without control characters.

    It may be blank only if `allow_empty`.
    """

    max_length: int
    allow_empty: bool = True

    def validate(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{format_value(value)} is not text.")
        if not self.allow_empty and not value.strip():
            raise ValueError("the prompt is empty. Describe the image.")
        if len(value) > self.max_length:
            raise ValueError(f"{len(value):,} characters are too many; the limit is {self.max_length:,}.")
        if FORBIDDEN_CHARACTERS.search(value):
            raise ValueError(
                "it contains a control character or half of one; only text and line breaks are allowed."
            )
        return value


@dataclass(frozen=True)
class PlainText(Bound):
    """Text of at most `max_length` characters.

    Control characters, and blanks at its ends, are removed.
    """

    max_length: int

    def validate(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{format_value(value)} is not text.")
        if len(value) > self.max_length:
            raise ValueError(f"{len(value):,} characters are too many; the limit is {self.max_length:,}.")
        return FORBIDDEN_CHARACTERS.sub("", value).strip()


@dataclass(frozen=True)
class Texts(Bound):
    """At most `max_count` texts of at most `max_length` characters each."""

    max_count: int
    max_length: int

    def validate(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{format_value(value)} is not a list of strings.")
        if len(value) > self.max_count:
            raise ValueError(f"{len(value)} entries are too many; the limit is {self.max_count}.")
        return tuple(Text(self.max_length).validate(part) for part in value)


@dataclass(frozen=True)
class OneOf(Bound):
    """One of these names."""

    names: tuple[str, ...]

    def validate(self, value: Any) -> str:
        if isinstance(value, str) and value in self.names:
            return value
        raise ValueError(f"{format_value(value)} is unknown. Use one of: {', '.join(self.names)}.")


@dataclass(frozen=True)
class Switch(Bound):
    """True or false."""

    def validate(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"{format_value(value)} is not valid. Use true or false.")
