"""What can be varied besides a LoRA's strength: each axis, its values, and what a value changes of a request.

An axis has numbers or names. The pictures of all its values are measured against those at its reference:
the preset's value, or no LoRA.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.lora.blocks import BLOCKS, parse_block_weights
from core.schema import limits
from core.schema.errors import UserError
from core.schema.samplers import AUTOMATIC, split_sampler
from core.schema.types import Request
from core.sweep.plan import parse_numbers, read_numbers

Value = float | str
"""A value of an axis."""
Point = tuple[Value, ...]
"""A value of each axis."""
NO_BLOCK, ALL_BLOCKS = "none", "whole"
"""The LoRA without a block, which is off, and with all of them."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Something that a study varies."""

    name: str
    label: str
    default: str
    """The values that are tried where none are given, as text."""
    get_reference: Callable[[Request], Value]
    """(settings) -> the value that the others are measured against."""
    apply: Callable[[Request, Value], Request]
    """(request, value) -> the request with this value. Raises `UserError` for one that is not allowed."""
    has_names: bool = False
    """Whether its values are names: they have no order."""
    lora: int | None = None
    """Which of the request's LoRAs it changes, from 0; `None` for none."""


def _vary_field(name: str, label: str, default: str, has_names: bool = False) -> Axis:
    """Return the axis of a field of `Request`."""
    return Axis(
        name=name,
        label=label,
        default=default,
        get_reference=lambda settings: getattr(settings, name),
        apply=lambda request, value: replace(request, **{name: value}),
        has_names=has_names,
    )


def _replace_lora(request: Request, place: int, **changes: Any) -> Request:
    uses = list(request.loras)
    uses[place] = replace(uses[place], **changes)
    return replace(request, loras=tuple(uses))


def _vary_strength(name: str, label: str, place: int) -> Axis:
    """Return the axis of the strength of one of the request's LoRAs."""
    return Axis(
        name=name,
        label=label,
        default="0-2 (+0.5)",
        get_reference=lambda _: 0.0,
        apply=lambda request, value: _replace_lora(request, place, strength=value),
        lora=place,
    )


def _apply_blocks(request: Request, value: Value) -> Request:
    """Return the request with these blocks of its first LoRA: a block, a word of `lbw=`, or `whole`."""
    word = str(value).upper()
    if word == NO_BLOCK.upper():
        return _replace_lora(request, 0, strength=0.0)
    if word == ALL_BLOCKS.upper():
        return request
    weights = ",".join(str(int(block == word)) for block in BLOCKS) if word in BLOCKS else word
    try:
        parse_block_weights(weights)
    except ValueError:
        raise UserError(
            "blocks",
            f"{str(value)[:40]!r} is unknown. Use {ALL_BLOCKS}, one of the blocks {', '.join(BLOCKS)}, or a "
            "preset of block weights such as STYLE.",
        ) from None
    return _replace_lora(request, 0, blocks=weights)


def _apply_sampler(request: Request, value: Value) -> Request:
    sampler, schedule = split_sampler(str(value))
    return replace(request, sampler=sampler, schedule=schedule or request.schedule)


def _apply_hires_denoise(request: Request, value: Value) -> Request:
    assert request.hires is not None, "the plan switches it on"
    return replace(request, hires=replace(request.hires, denoise=value))


AXES: dict[str, Axis] = {
    axis.name: axis
    for axis in (
        _vary_field("cfg", "CFG", "2-10 (+1)"),
        _vary_field("steps", "Steps", "10-40 (+5)"),
        _vary_field("cfg_rescale", "CFG rescale", "0-1 (+0.2)"),
        _vary_field("clip_skip", "Clip skip", "1, 2"),
        Axis(
            name="sampler",
            label="Sampler",
            default="Euler a, Euler, DPM++ 2M, DPM++ 2M SDE, DPM++ SDE, UniPC, DDIM",
            get_reference=lambda settings: settings.sampler,
            apply=_apply_sampler,
            has_names=True,
        ),
        _vary_field("schedule", "Schedule", f"{AUTOMATIC}, Karras, Exponential, SGM Uniform, Beta", True),
        Axis(
            name="hires_denoise",
            label="Hires denoise",
            default="0.2-0.7 (+0.1)",
            get_reference=lambda settings: settings.hires.denoise if settings.hires else 0.0,
            apply=_apply_hires_denoise,
        ),
        _vary_strength("strength", "LoRA's strength", 0),
        Axis(
            name="blocks",
            label="LoRA's blocks",
            default=", ".join((ALL_BLOCKS, *BLOCKS)),
            get_reference=lambda _: NO_BLOCK,
            apply=_apply_blocks,
            has_names=True,
            lora=0,
        ),
        _vary_strength("strength2", "Second LoRA's strength", 1),
    )
}
"""Name -> axis."""


def parse_values(axis: Axis, text: Any, field: str) -> tuple[Value, ...]:
    """Parse the values of an axis, each once: numbers in rising order, names in the order of the text.

    Names are separated by commas or lines, or come as a list. Blank text stands for the axis' default.
    Raises `UserError` for what is not such a list, or has more than `limits.STRENGTHS` values.
    """
    if not axis.has_names:
        return tuple(sorted(parse_numbers(read_numbers(text, axis.default), field, limits.STRENGTHS)))
    given = axis.default if text is None or text == "" else text
    parts = given.replace("\n", ",").split(",") if isinstance(given, str) else given
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise UserError(field, f"use a list of names, such as '{axis.default[:60]}'.")
    names = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not names or len(names) > limits.STRENGTHS:
        raise UserError(field, f"{len(names)} names are not allowed; use from 1 to {limits.STRENGTHS}.")
    return names


def apply_point(request: Request, axes: Sequence[Axis], point: Point) -> Request:
    """Return the request with a value of each axis. Raises `UserError` for one that is not allowed."""
    for axis, value in zip(axes, point, strict=True):
        request = axis.apply(request, value)
    return request


def format_value(value: Value) -> str:
    """Return a value of an axis as a label."""
    return value if isinstance(value, str) else f"{value:g}"


def format_point(axes: Sequence[Axis], point: Point) -> str:
    """Return a point as words, such as `CFG 5, Steps 25`."""
    return ", ".join(f"{axis.label} {format_value(value)}" for axis, value in zip(axes, point, strict=True))
