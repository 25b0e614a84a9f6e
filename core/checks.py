"""Ways to hold a value against its bounds: each makes a check that gives a sentence for the person, or `None` where all is well.

They take anything that a client may send: wrong types, NaN, infinities, huge numbers and texts.
"""

import re
from collections.abc import Callable
from typing import Any

from core.samplers import SAMPLERS

FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, those that turn the direction of writing, halves of UTF-16 pairs."""
Check = Callable[[str, Any], str | None]
"""Takes a field's name and its value."""


def whole(low: int, high: int, step: int = 1) -> Check:
    """For whole numbers."""
    allowed = f"a whole number from {low} to {high}" + (f" in steps of {step}" if step > 1 else "")

    def why(field: str, value: Any) -> str | None:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # false for NaN
        if fits and value == int(value) and value % step == 0:
            return None
        return f"{field}: {shown(value)} is not allowed; it takes {allowed}."

    return why


def whole_or_none(low: int, high: int) -> Check:
    """The same where nothing may be said."""
    number = whole(low, high)
    return lambda field, value: None if value is None else number(field, value)


def denoise(field: str, value: Any) -> str | None:
    """For a share of the noise: none, or enough for a step."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and (value == 0 or 0.05 <= value <= 1)
    return None if fits else f"{field}: {shown(value)} is not allowed; it takes 0, or a number from 0.05 to 1."


def real(low: float, high: float) -> Check:
    """For numbers."""

    def why(field: str, value: Any) -> str | None:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # false for NaN
        return None if fits else f"{field}: {shown(value)} is not allowed; it takes a number from {low:g} to {high:g}."

    return why


def real_or_none(low: float, high: float) -> Check:
    """The same where nothing may be said."""
    number = real(low, high)
    return lambda field, value: None if value is None else number(field, value)


def text(most: int, empty: bool = True) -> Check:
    """For words of up to so many characters."""

    def why(field: str, value: Any) -> str | None:
        if not isinstance(value, str):
            return f"{field}: {shown(value)} is not text."
        if not empty and not value.strip():
            return f"{field}: it is empty; write what the picture should show."
        if len(value) > most:
            return f"{field}: {len(value):,} characters are too many; it takes up to {most:,}."
        if FORBIDDEN.search(value):
            return f"{field}: it holds a control character or half of one; only text and line breaks are allowed."
        return None

    return why


def texts(most: int, longest: int) -> Check:
    """For lists of up to `most` of them."""
    one = text(longest)

    def why(field: str, value: Any) -> str | None:
        if not isinstance(value, list | tuple):
            return f"{field}: {shown(value)} is not a list of texts."
        if len(value) > most:
            return f"{field}: {len(value)} entries are too many; it takes up to {most}."
        return next((problem for part in value if (problem := one(field, part))), None)

    return why


def switch(field: str, value: Any) -> str | None:
    """For yes and no."""
    return None if isinstance(value, bool) else f"{field}: {shown(value)} is not allowed; it takes true or false."


def sampler(field: str, value: Any) -> str | None:
    """For a sampler's name."""
    return None if value in list(SAMPLERS) else f"{field}: {shown(value)} is unknown; it takes {', '.join(SAMPLERS)}."


def shown(value: Any) -> str:
    """The value as a message may repeat it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
