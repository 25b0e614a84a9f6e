"""Prompt text: a recipe's parts put together, and A1111's grammar read.

The grammar (`modules/prompt_parser.py`, `modules/extra_networks.py` of A1111): `(x)` is x times 1.1, `[x]` divided by
1.1, `(x:1.3)` times 1.3, nested ones multiply, `\\(` is a bracket that is meant; `[a:b:0.5]` turns from a to b,
`[a|b]` takes turns, `BREAK` begins a new chunk, `<lora:name:1.5>` asks for a LoRA. What does not fit is text: reading
takes linear time and never fails.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, groupby

from core.types import Recipe

PLACES = 75
"""CLIP's places for tokens beside its start and end marks."""
STRONGER = 1.1
HEAVIEST = 10.0
"""Bound of a weight, so that ten thousand brackets stay finite."""
DEEPEST = 64
"""Brackets inside brackets; deeper ones are read as text."""


def compose(recipe: Recipe, *, subject: str, character: str, general: str, quality: str) -> str:
    """The recipe's template with its parts filled in; a part left empty takes its comma along."""
    text = recipe.template.format(subject=subject, character=character, general=general, quality=quality)
    return ", ".join(part for part in (part.strip() for part in _apart(text)) if part)


def add_missing(prompt: str, text: str) -> str:
    """The prompt, letter by letter, and behind it the tags of `text` that do not stand in it yet."""
    there = {part.strip() for part in _apart(prompt)}
    missing = [tag for part in _apart(text) if (tag := part.strip()) and tag not in there]
    return ", ".join([prompt.rstrip().rstrip(","), *missing]) if missing else prompt


def _apart(text: str) -> list[str]:
    """The text cut at its commas, but not inside brackets such as `(a, b:1.2)`."""
    parts, depth = [""], 0
    for piece in re.split(r"([,()])", text):
        depth = max(0, depth + (piece == "(") - (piece == ")"))
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


# --- extra networks ------------------------------------------------------------------------------

EXTRA = re.compile(r"<(\w+):([^<>]+)>")


@dataclass(frozen=True, kw_only=True)
class LoraTag:
    """`<lora:name:te:unet:lbw=...>`: one number is both strengths, two are the text encoders' and the U-Net's."""

    name: str
    strength: float = 1.0
    """Of the U-Net."""
    text_strength: float = 1.0
    """Of the text encoders."""
    blocks: str | None = None
    """The text of `lbw=`."""


def networks(prompt: str) -> tuple[str, list[LoraTag], list[str]]:
    """The prompt without its `<kind:...>` tags, its LoRAs, and the tags that were not understood."""
    found: list[LoraTag] = []
    unread: list[str] = []

    def take(match: re.Match[str]) -> str:
        tag = _lora(match[2]) if match[1].lower() == "lora" else None
        found.append(tag) if tag else unread.append(match[0])
        return ""

    return EXTRA.sub(take, prompt), found, unread


def _lora(text: str) -> LoraTag | None:
    name, *rest = (part.strip() for part in text.split(":"))
    said = dict(part.split("=", 1) for part in rest if "=" in part)
    numbers = [part for part in rest if "=" not in part]
    try:
        te = float(numbers[0]) if numbers else 1.0
        unet = float(numbers[1]) if len(numbers) > 1 else te
        te, unet = float(said.get("te", te)), float(said.get("unet", unet))
    except ValueError:
        return None
    finite = abs(te) <= 1e6 and abs(unet) <= 1e6  # false for NaN
    return LoraTag(name=name, strength=unet, text_strength=te, blocks=said.get("lbw")) if name and finite else None


# --- weights and schedules -----------------------------------------------------------------------


@dataclass(frozen=True)
class Weighted:
    """Its parts at `weight` times the weight around it."""

    parts: "Parts"
    weight: float


@dataclass(frozen=True)
class Turning:
    """`[before:after:when]`: `before` up to step `when` (a number with a point is a share of the steps), then `after`."""

    before: "Parts"
    after: "Parts"
    when: str

    def turned(self, step: int, steps: int, gone: int) -> bool:
        """At a step of a pass; in a second one (`gone` steps of the first are) shares count from 1, steps go on."""
        at = min(float(self.when), 1e6)
        return step > int((at - (gone > 0)) * steps if "." in self.when else at - gone)


@dataclass(frozen=True)
class Alternating:
    """`[a|b|c]`: one of them in each step, in turn."""

    options: "tuple[Parts, ...]"


@dataclass(frozen=True)
class Break:
    """`BREAK`: what follows begins a new chunk of 75 tokens."""


Part = str | Weighted | Turning | Alternating | Break
Parts = tuple[Part, ...]

TOKEN = re.compile(r"\\[()\[\]:|\\]|[()\[\]:|]|\s*\bBREAK\b\s*|(?:(?!\bBREAK\b)[^\\()\[\]:|\s])+|\s+|\\")
WEIGHT = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*")
WHEN = re.compile(r"\s*(?:\d+\.?\d*|\.\d+)\s*")


@dataclass
class _Bracket:
    """An open bracket and what has been read in it, cut at its `:` and `|`."""

    mark: str
    cuts: list[list[Part]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def add(self, part: Part) -> None:
        self.cuts[-1].append(part)

    def cut(self, separator: str) -> None:
        self.separators.append(separator)
        self.cuts.append([])

    def flat(self, count: int | None = None) -> Parts:
        """What stands in it, its separators as text; only the first `count` cuts if said."""
        first, *others = self.cuts[:count]
        return _joined(chain(first, *((mark, *parts) for mark, parts in zip(self.separators, others, strict=False))))

    def last(self) -> str:
        """The text after the last separator, or nothing if it is not plain text."""
        parts = _joined(self.cuts[-1])
        return parts[0] if len(self.cuts) > 1 and len(parts) == 1 and isinstance(parts[0], str) else ""


def _joined(parts: Iterable[Part]) -> Parts:
    """The parts with neighbouring texts as one, put together at once: one by one would copy all that came before."""
    found: list[Part] = []
    for text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        same = list(group)
        found += ["".join(map(str, same))] if text else same
    return tuple(found)


def parse(prompt: str) -> Parts:
    """The prompt's tree; a bracket that is not closed reaches to the end, one that was not opened is text."""
    stack = [_Bracket("")]
    for match in TOKEN.finditer(prompt):
        token = match[0]
        if token.strip() == "BREAK":
            stack[-1].add(Break())
        elif len(token) == 2 and token[0] == "\\":
            stack[-1].add(token[1])
        elif token in ("(", "[") and len(stack) <= DEEPEST:
            stack.append(_Bracket(token))
        elif token in (")", "]") and len(stack) > 1 and stack[-1].mark == {")": "(", "]": "["}[token]:
            closed = stack.pop()
            stack[-1].add(_round(closed) if token == ")" else _square(closed))
        elif token in (":", "|") and len(stack) > 1:
            stack[-1].cut(token)
        else:
            stack[-1].add(token)
    while len(stack) > 1:
        opened = stack.pop()
        stack[-1].add(Weighted(opened.flat(), STRONGER if opened.mark == "(" else 1 / STRONGER))
    return _joined(stack[0].cuts[0])


def _round(bracket: _Bracket) -> Part:
    if WEIGHT.fullmatch(bracket.last()) and bracket.separators[-1] == ":":
        return Weighted(bracket.flat(-1), float(bracket.last()))
    return Weighted(bracket.flat(), STRONGER)


def _square(bracket: _Bracket) -> Part:
    kinds = set(bracket.separators)
    if kinds == {"|"}:
        return Alternating(tuple(map(_joined, bracket.cuts)))
    if kinds == {":"} and len(bracket.cuts) <= 3 and WHEN.fullmatch(bracket.last()):
        before, after = bracket.cuts[:-1] if len(bracket.cuts) == 3 else ([], bracket.cuts[0])
        return Turning(_joined(before), _joined(after), bracket.last().strip())
    return Weighted(bracket.flat(), 1 / STRONGER)


def written(parts: Parts) -> str:
    """The text that `parse` reads as these parts."""

    def one(part: Part) -> str:
        match part:
            case str():
                return re.sub(r"([()\[\]:|\\])", r"\\\1", part)
            case Weighted():
                return f"({written(part.parts)}:{Decimal(repr(part.weight)):f})"
            case Turning():
                return f"[{written(part.before)}:{written(part.after)}:{part.when}]"
            case Alternating():
                return f"[{'|'.join(map(written, part.options))}]"
            case Break():
                return " BREAK "

    return "".join(map(one, parts))


def escaped(text: str) -> str:
    """Text whose brackets are meant: `name (series)` -> `name \\(series\\)`."""
    return re.sub(r"([()\[\]\\])", r"\\\1", text)


@dataclass(frozen=True)
class Span:
    """Text of one weight, within one chunk or more."""

    text: str
    weight: float = 1.0


def spans(parts: Parts, step: int = 1, steps: int = 1, gone: int = 0) -> list[Span | Break]:
    """What is said at a step (from 1) of so many: texts with their weights, equal neighbours in one.

    `gone` are the steps of a pass before this one.
    """
    said: list[tuple[str | Break, float]] = []

    def walk(parts: Parts, weight: float) -> None:
        for part in parts:
            match part:
                case str() | Break():
                    said.append((part, weight))
                case Weighted():
                    walk(part.parts, max(-HEAVIEST, min(HEAVIEST, weight * part.weight)))
                case Turning():
                    walk(part.after if part.turned(step, steps, gone) else part.before, weight)
                case Alternating():
                    walk(part.options[(gone + step - 1) % len(part.options)], weight)

    walk(parts, 1.0)
    found: list[Span | Break] = []
    for weight, group in groupby(said, key=lambda one: one[1] if isinstance(one[0], str) else None):
        same = [part for part, _ in group]
        found += [Break()] * len(same) if weight is None else [Span("".join(map(str, same)), weight)]
    return found
