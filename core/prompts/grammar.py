"""Prompt text: fills in a preset's template, and parses A1111's grammar.

The grammar (`modules/prompt_parser.py`, `modules/extra_networks.py` of A1111): `(x)` is x times
1.1, `[x]` divided by 1.1, `(x:1.3)` times 1.3, nested ones multiply, `\\(` is a literal bracket;
`[a:b:0.5]` switches from a to b, `[a|b]` alternates, `BREAK` begins a new chunk, `<lora:name:1.5>`
asks for a LoRA. What does not fit is text: parsing takes linear time and never fails.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, groupby

from core.schema.types import PromptPreset

CHUNK_LENGTH = 75
"""CLIP's tokens in one chunk, without its start and end marks."""
BRACKET_WEIGHT = 1.1
MAX_WEIGHT = 10.0
"""Bound of a weight, so that ten thousand brackets stay finite."""
MAX_DEPTH = 64
"""Brackets inside brackets; deeper ones are read as text."""


def compose_prompt(preset: PromptPreset, *, subject: str, character: str, general: str, quality: str) -> str:
    """Fill in the preset's template; a part that is empty takes its comma along."""
    text = preset.template.format(subject=subject, character=character, general=general, quality=quality)
    return ", ".join(part for part in (part.strip() for part in _split_at_commas(text)) if part)


def add_missing_tags(prompt: str, tags: str) -> str:
    """Return the prompt unchanged, followed by those of `tags` that it does not contain."""
    there = {part.strip() for part in _split_at_commas(prompt)}
    missing = [tag for part in _split_at_commas(tags) if (tag := part.strip()) and tag not in there]
    return ", ".join([prompt.rstrip().rstrip(","), *missing]) if missing else prompt


def _split_at_commas(text: str) -> list[str]:
    """Split the text at its commas, but not inside brackets such as `(a, b:1.2)`."""
    parts, depth = [""], 0
    for piece in re.split(r"([,()])", text):
        depth = max(0, depth + (piece == "(") - (piece == ")"))
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


# --- extra networks ------------------------------------------------------------------------------

EXTRA_NETWORK = re.compile(r"<(\w+):([^<>]+)>")


@dataclass(frozen=True, kw_only=True)
class LoraTag:
    """A `<lora:name:te:unet:lbw=...>` tag of a prompt.

    One number is both strengths; two are the text encoders' and the U-Net's.
    """

    name: str
    strength: float = 1.0
    """Of the U-Net."""
    text_strength: float = 1.0
    """Of the text encoders."""
    blocks: str | None = None
    """The text of `lbw=`."""


def extract_lora_tags(prompt: str) -> tuple[str, list[LoraTag], list[str]]:
    """Return the prompt without `<kind:...>` tags, its LoRA tags, and the tags that do not fit."""
    found: list[LoraTag] = []
    unread: list[str] = []

    def take(match: re.Match[str]) -> str:
        tag = _parse_lora_tag(match[2]) if match[1].lower() == "lora" else None
        found.append(tag) if tag else unread.append(match[0])
        return ""

    return EXTRA_NETWORK.sub(take, prompt), found, unread


def _parse_lora_tag(text: str) -> LoraTag | None:
    name, *rest = (part.strip() for part in text.split(":"))
    said = dict(part.split("=", 1) for part in rest if "=" in part)
    numbers = [part for part in rest if "=" not in part]
    if len(numbers) > 2 or said.keys() - {"te", "unet", "lbw"}:
        return None
    try:
        te = float(numbers[0]) if numbers else 1.0
        unet = float(numbers[1]) if len(numbers) > 1 else te
        te, unet = float(said.get("te", te)), float(said.get("unet", unet))
    except ValueError:
        return None
    finite = abs(te) <= 1e6 and abs(unet) <= 1e6  # false for NaN
    return (
        LoraTag(name=name, strength=unet, text_strength=te, blocks=said.get("lbw"))
        if name and finite
        else None
    )


# --- weights and schedules -----------------------------------------------------------------------


@dataclass(frozen=True)
class Weighted:
    """Parts of a prompt at `weight` times the weight around them."""

    parts: "Parts"
    weight: float


@dataclass(frozen=True)
class Scheduled:
    """`[before:after:when]`: `before` up to step `when`, then `after`.

    A number with a point in `when` is a share of the steps.
    """

    before: "Parts"
    after: "Parts"
    when: str

    def has_switched(self, step: int, steps: int, steps_before: int) -> bool:
        """Whether `after` applies at a step of a pass.

        In a second pass, after `steps_before` steps of the first, shares count from 1 and steps go
        on.
        """
        at = min(float(self.when), 1e6)
        return step > int((at - (steps_before > 0)) * steps if "." in self.when else at - steps_before)


@dataclass(frozen=True)
class Alternating:
    """`[a|b|c]`: one of them in each step, in turn."""

    options: "tuple[Parts, ...]"


@dataclass(frozen=True)
class Break:
    """`BREAK`: what follows begins a new chunk of 75 tokens."""


Part = str | Weighted | Scheduled | Alternating | Break
Parts = tuple[Part, ...]

TOKEN = re.compile(r"\\[()\[\]:|\\]|[()\[\]:|]|\s*\bBREAK\b\s*|(?:(?!\bBREAK\b)[^\\()\[\]:|\s])+|\s+|\\")
WEIGHT = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*")
SWITCH_STEP = re.compile(r"\s*(?:\d+\.?\d*|\.\d+)\s*")


@dataclass
class _Bracket:
    """An open bracket and what has been read in it, cut at its `:` and `|`."""

    mark: str
    cuts: list[list[Part]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Append a part after the last separator."""
        self.cuts[-1].append(part)

    def cut(self, separator: str) -> None:
        """Begin a new cut at a `:` or `|`."""
        self.separators.append(separator)
        self.cuts.append([])

    def flatten(self, count: int | None = None) -> Parts:
        """Return its content, with the separators as text; only the first `count` cuts if given."""
        first, *others = self.cuts[:count]
        return _join_texts(
            chain(first, *((mark, *parts) for mark, parts in zip(self.separators, others, strict=False)))
        )

    def get_last_text(self) -> str:
        """Return the text after the last separator, or an empty string if it is not plain text."""
        parts = _join_texts(self.cuts[-1])
        return parts[0] if len(self.cuts) > 1 and len(parts) == 1 and isinstance(parts[0], str) else ""


def _join_texts(parts: Iterable[Part]) -> Parts:
    """Return the parts with neighbouring texts joined.

    Joined in one go: one by one would copy all that came before.
    """
    found: list[Part] = []
    for text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        same = list(group)
        found += ["".join(map(str, same))] if text else same
    return tuple(found)


def parse_prompt(prompt: str) -> Parts:
    """Parse the prompt into a tree.

    A bracket that is not closed reaches to the end; one that was not opened is text.
    """
    stack = [_Bracket("")]
    for match in TOKEN.finditer(prompt):
        token = match[0]
        if token.strip() == "BREAK":
            stack[-1].add(Break())
        elif len(token) == 2 and token[0] == "\\":
            stack[-1].add(token[1])
        elif token in ("(", "[") and len(stack) <= MAX_DEPTH:
            stack.append(_Bracket(token))
        elif token in (")", "]") and len(stack) > 1 and stack[-1].mark == {")": "(", "]": "["}[token]:
            closed = stack.pop()
            stack[-1].add(_close_round(closed) if token == ")" else _close_square(closed))
        elif token in (":", "|") and len(stack) > 1:
            stack[-1].cut(token)
        else:
            stack[-1].add(token)
    while len(stack) > 1:
        opened = stack.pop()
        stack[-1].add(
            Weighted(opened.flatten(), BRACKET_WEIGHT if opened.mark == "(" else 1 / BRACKET_WEIGHT)
        )
    return _join_texts(stack[0].cuts[0])


def iterate_texts(parts: Parts) -> Iterator[str]:
    """Yield the texts of a tree, whatever step they are for."""
    for part in parts:
        match part:
            case str():
                yield part
            case Weighted():
                yield from iterate_texts(part.parts)
            case Scheduled():
                yield from iterate_texts(part.before)
                yield from iterate_texts(part.after)
            case Alternating():
                for option in part.options:
                    yield from iterate_texts(option)


def _close_round(bracket: _Bracket) -> Part:
    if WEIGHT.fullmatch(bracket.get_last_text()) and bracket.separators[-1] == ":":
        return Weighted(bracket.flatten(-1), float(bracket.get_last_text()))
    return Weighted(bracket.flatten(), BRACKET_WEIGHT)


def _close_square(bracket: _Bracket) -> Part:
    kinds = set(bracket.separators)
    if kinds == {"|"}:
        return Alternating(tuple(map(_join_texts, bracket.cuts)))
    if kinds == {":"} and len(bracket.cuts) <= 3 and SWITCH_STEP.fullmatch(bracket.get_last_text()):
        before, after = bracket.cuts[:-1] if len(bracket.cuts) == 3 else ([], bracket.cuts[0])
        return Scheduled(_join_texts(before), _join_texts(after), bracket.get_last_text().strip())
    return Weighted(bracket.flatten(), 1 / BRACKET_WEIGHT)


def format_prompt(parts: Parts) -> str:
    """Return a text that `parse_prompt` reads as these parts."""

    def format_part(part: Part) -> str:
        match part:
            case str():
                return re.sub(r"([()\[\]:|\\])", r"\\\1", part)
            case Weighted():
                return f"({format_prompt(part.parts)}:{Decimal(repr(part.weight)):f})"
            case Scheduled():
                return f"[{format_prompt(part.before)}:{format_prompt(part.after)}:{part.when}]"
            case Alternating():
                return f"[{'|'.join(map(format_prompt, part.options))}]"
            case Break():
                return " BREAK "

    return "".join(map(format_part, parts))


def escape_brackets(text: str) -> str:
    """Return the text with its brackets escaped: `name (series)` -> `name \\(series\\)`."""
    return re.sub(r"([()\[\]\\])", r"\\\1", text)


@dataclass(frozen=True)
class Span:
    """Text of one weight, within one chunk or more."""

    text: str
    weight: float = 1.0


def resolve_spans(parts: Parts, step: int = 1, steps: int = 1, steps_before: int = 0) -> list[Span | Break]:
    """Return what the prompt contains at a step: texts with their weights, equal neighbours joined.

    `step` counts from 1 to `steps`; `steps_before` are the steps of a pass before this one.
    """
    said: list[tuple[str | Break, float]] = []

    def walk(parts: Parts, weight: float) -> None:
        for part in parts:
            match part:
                case str() | Break():
                    said.append((part, weight))
                case Weighted():
                    walk(part.parts, max(-MAX_WEIGHT, min(MAX_WEIGHT, weight * part.weight)))
                case Scheduled():
                    walk(part.after if part.has_switched(step, steps, steps_before) else part.before, weight)
                case Alternating():
                    walk(part.options[(steps_before + step - 1) % len(part.options)], weight)

    walk(parts, 1.0)
    found: list[Span | Break] = []
    for weight, group in groupby(said, key=lambda one: one[1] if isinstance(one[0], str) else None):
        same = [part for part, _ in group]
        found += [Break()] * len(same) if weight is None else [Span("".join(map(str, same)), weight)]
    return found
