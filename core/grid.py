"""Axes of a grid: lists of numbers as people write them, and the contact sheet."""

import re
from decimal import Decimal

from core import limits
from core.types import UserError

_NUMBER = r"-?\d{1,12}(?:\.\d{1,6})?"
RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*\+\s*({_NUMBER})\s*\)|\[\s*(\d{{1,4}})\s*\])?")
NEAR = 3  # decimals: strengths closer than that are one


def numbers(text: str, field: str, most: int) -> list[float]:
    """`0, 0.5, 1` · `0-3.5 (+0.25)` · `0-3.5 [15]` · `1-4` -> the numbers, each once, in the order said; an end is never overshot.

    Raises `UserError` for what is no such list, and for more than `most`.
    """
    if not isinstance(text, str) or len(text) > limits.PROMPT:
        raise UserError(f"{field}: it takes a list such as '0, 0.5, 1', '0-3.5 (+0.25)' or '0-3.5 [15]'.")
    found: list[Decimal] = []
    for part in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
        if re.fullmatch(_NUMBER, part):
            found.append(Decimal(part))
        elif match := RANGE.fullmatch(part):
            found += _range(match, field, part, most)
        else:
            raise UserError(f"{field}: {part[:40]!r} is no number and no range; it takes a list such as '0, 0.5, 1', '0-3.5 (+0.25)' or '0-3.5 [15]'.")
        if len(found) > most:
            raise UserError(f"{field}: {part[:40]!r} makes more than the {most} that are allowed.")
    if not found:
        raise UserError(f"{field}: it is empty; it takes a list such as '0, 0.5, 1', '0-3.5 (+0.25)' or '0-3.5 [15]'.")
    return list(dict.fromkeys(round(float(number), NEAR) for number in found))


def _range(match: re.Match[str], field: str, part: str, most: int) -> list[Decimal]:
    first, last = Decimal(match[1]), Decimal(match[2])
    if last < first:
        raise UserError(f"{field}: {part[:40]!r} ends before it begins.")
    if match[4]:
        many = int(match[4])
        if not 2 <= many <= most:
            raise UserError(f"{field}: {part[:40]!r} asks for {many} numbers; a range has from 2 to {most}.")
        return [first + (last - first) * i / (many - 1) for i in range(many)]
    step = Decimal(match[3] or 1)
    if step <= 0:
        raise UserError(f"{field}: {part[:40]!r} has no step forward; the number after + must be above 0.")
    many = int((last - first) / step) + 1
    if many > most:
        raise UserError(f"{field}: {part[:40]!r} makes {many} numbers; up to {most} are allowed.")
    return [first + step * i for i in range(many)]


def strengths(text: str, field: str = "strengths") -> list[float]:
    """A LoRA's strengths in rising order, 0 among them. Raises `UserError` as `numbers`, and for one that is out of range."""
    found = sorted({0.0, *numbers(text, field, limits.STRENGTHS)})
    low, high = limits.STRENGTH
    for strength in found:
        if not low <= strength <= high:
            raise UserError(f"{field}: {strength:g} is not allowed; it takes strengths from {low:g} to {high:g}.")
    return found


def seeds(text: str, field: str = "seeds") -> list[int]:
    """Seeds in the order said. Raises `UserError` as `numbers`, and for one that is not whole or out of range."""
    found = numbers(text, field, limits.SEEDS)
    low, high = limits.SEED
    for seed in found:
        if seed != int(seed) or not low <= seed <= high:
            raise UserError(f"{field}: {seed:g} is not allowed; it takes whole numbers from {low} to {high}.")
    return [int(seed) for seed in found]
