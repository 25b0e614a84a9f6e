"""Prompt text: fills in a preset's template, and parses A1111's grammar.

The grammar (`modules/prompt_parser.py`, `modules/extra_networks.py` of A1111): `(x)` is x times
1.1, `[x]` divided by 1.1, `(x:1.3)` times 1.3, nested ones multiply, `\\(` is a literal bracket;
`[a:b:0.5]` switches from a to b, `[a|b]` alternates, `BREAK` begins a new chunk, `<lora:name:1.5>`
asks for a LoRA. As in A1111, it is read in two passes: what changes from step to step makes a text, and
that text's brackets are weights. What does not fit is text: parsing takes linear time and never fails.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

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
LORA_KINDS = ("lora", "lyco")
"""`<lyco:...>` is another name of `<lora:...>` in A1111, too."""


@dataclass(frozen=True, kw_only=True)
class LoraTag:
    """A `<lora:name:te:unet:blocks>` tag of a prompt.

    One number is both strengths; two are the text encoders' and the U-Net's.
    """

    name: str
    strength: float = 1.0
    """Of the U-Net."""
    text_strength: float = 1.0
    """Of the text encoders."""
    blocks: str | None = None
    """Block weights, with or without `lbw=` before them."""
    start: int | None = None
    """The step with which it begins, of `start=` or `step=5-10`."""
    stop: int | None = None
    """The step with which it ends."""


def extract_lora_tags(prompt: str) -> tuple[str, list[LoraTag], list[str]]:
    """Return the prompt without `<kind:...>` tags, its LoRA tags, and the tags that do not fit."""
    found: list[LoraTag] = []
    unread: list[str] = []

    def take(match: re.Match[str]) -> str:
        try:
            found.append(read_lora_tag(match[0]))
        except ValueError:
            unread.append(match[0])
        return ""

    return EXTRA_NETWORK.sub(take, prompt), found, unread


def is_lora_tag(tag: str) -> bool:
    """Whether a `<kind:...>` tag is meant to be a LoRA's, well written or not."""
    return tag[1:].partition(":")[0].lower() in LORA_KINDS


def read_lora_tag(tag: str) -> LoraTag:
    """Read a LoRA's tag. Raises `ValueError`, saying what is wrong, for any other text."""
    if not is_lora_tag(tag):
        raise ValueError("it is no LoRA")
    name, *rest = (part.strip() for part in tag[1:-1].split(":")[1:])
    said = dict(part.split("=", 1) for part in rest if "=" in part)
    if unknown := [*(said.keys() - {"te", "unet", "lbw", "start", "stop", "step"})]:
        raise ValueError(f"{min(unknown)}= is not applied here")
    plain = [part for part in rest if "=" not in part]
    # As sd-webui-lora-block-weight takes it, `lbw=` can be left out after a strength.
    listed = [part for part in plain[1:] if not NUMBER.fullmatch(part)][-1:] if "lbw" not in said else []
    numbers = [part for part in plain if part not in listed]
    if not name or len(numbers) > 2:
        raise ValueError("the name is missing" if not name else "it has more than two strengths")
    te = _read_strength(said.get("te", numbers[0] if numbers else "1"))
    unet = _read_strength(said["unet"] if "unet" in said else numbers[1] if len(numbers) > 1 else repr(te))
    start, stop = said.get("start"), said.get("stop")
    if "step" in said:
        start, dash, stop = said["step"].partition("-")
        if not dash:
            raise ValueError(f"step={start[:40]} names one step; write it as step=5-10")
    return LoraTag(
        name=name,
        strength=unet,
        text_strength=te,
        blocks=said.get("lbw", *listed or [None]),
        start=_read_step("start", start),
        stop=_read_step("stop", stop),
    )


def _read_step(name: str, text: str | None) -> int | None:
    if text is not None and not re.fullmatch(r"[0-9]{1,4}", text.strip()):
        raise ValueError(f"{name} {text[:40]!r} is no step")
    return None if text is None else int(text)


def _read_strength(text: str) -> float:
    if not text:
        raise ValueError("a strength is empty")
    if not NUMBER.fullmatch(text):
        point = text.replace(",", ".", 1)
        raise ValueError(
            f"{text[:40]!r} is no strength" + (f"; write {point[:40]}" if NUMBER.fullmatch(point) else "")
        )
    if not abs(strength := float(text)) <= 1e6:
        raise ValueError(f"{text[:40]!r} is too large")
    return strength


# --- prompts joined by AND -----------------------------------------------------------------------

AND = re.compile(r"\bAND\b")
PART_WEIGHT = re.compile(r"\s*([-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+))")


class PromptPart(NamedTuple):
    """One of several prompts that guide a picture together."""

    text: str
    weight: float = 1.0
    """Of its guidance."""


def split_parts(prompt: str) -> list[PromptPart]:
    """Split `a AND b :0.5` into its prompts, without their `<lora:...>` tags.

    As in A1111, a weight ends a part of one line. There it also ends a prompt without `AND`, where a tag
    such as `:3` makes the guidance three times as strong; here such a prompt is one part of weight 1.
    """
    texts = AND.split(extract_lora_tags(prompt)[0])
    return [_read_part(text) for text in texts] if len(texts) > 1 else [PromptPart(texts[0])]


def _read_part(text: str) -> PromptPart:
    head, colon, tail = text.rstrip().rpartition(":")
    if colon and "\n" not in text.strip() and (weight := PART_WEIGHT.fullmatch(tail)):
        return PromptPart(head.rstrip(), float(weight[1]))
    return PromptPart(text)


# --- schedules -----------------------------------------------------------------------------------


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
        at = max(-1e6, min(float(self.when), 1e6))
        return step > int((at - (steps_before > 0)) * steps if "." in self.when else at - steps_before)


@dataclass(frozen=True)
class Alternating:
    """`[a|b|c]`: one of them in each step, in turn."""

    options: "tuple[Parts, ...]"


Part = str | Scheduled | Alternating
Parts = tuple[Part, ...]
"""A prompt; its texts still have their brackets, weights and backslashes."""

NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
PIECE = re.compile(r"(?:[^\\()\[\]:|]|\\.)+|[()\[\]:|]|\\")


@dataclass
class _Bracket:
    """An open bracket and what has been read in it, cut at its `:` and `|`."""

    mark: str
    cuts: list[list[Part]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def flatten(self) -> list[Part]:
        """Return the bracket and its content as they were written."""
        found: list[Part] = [self.mark, *self.cuts[0]]
        for separator, parts in zip(self.separators, self.cuts[1:], strict=True):
            found += [separator, *parts]
        return found

    def close(self) -> list[Part] | None:
        """Return what the bracket is once it is closed; `None` if A1111's grammar knows no such one."""
        kinds, last = set(self.separators), _join_texts(self.cuts[-1])
        if not kinds or (self.mark == "(" and self.separators == [":"]):
            return [*self.flatten(), {"(": ")", "[": "]"}[self.mark]]  # its weight is read later
        if self.mark == "[" and kinds == {"|"}:
            return [Alternating(tuple(map(_join_texts, self.cuts)))]
        when = last[0].strip() if len(last) == 1 and isinstance(last[0], str) else ""
        if self.mark == "[" and len(self.cuts) <= 3 and kinds == {":"} and NUMBER.fullmatch(when):
            before, after = self.cuts[:-1] if len(self.cuts) == 3 else ([], self.cuts[0])
            return [Scheduled(_join_texts(before), _join_texts(after), when)]
        return None


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
    """Parse what changes from step to step, as the grammar of A1111 does.

    A bracket that does not fit is text, and with it each one around it that is still open. A `|`
    outside `[a|b]` and a backslash before nothing are not in the grammar: with one of them, nothing
    of the prompt changes.
    """
    if "[" not in prompt:
        return (prompt,) if prompt else ()
    stack = [_Bracket("")]

    def flatten_all() -> None:
        text = [part for bracket in stack[1:] for part in bracket.flatten()]
        stack[0].cuts[0] += text
        del stack[1:]

    for match in PIECE.finditer(prompt):
        piece = match[0]
        if piece in ("(", "["):
            if len(stack) > MAX_DEPTH:
                flatten_all()
            stack.append(_Bracket(piece))
        elif piece in (")", "]"):
            fits = len(stack) > 1 and stack[-1].mark == {")": "(", "]": "["}[piece]
            closed = stack[-1].close() if fits else None
            if closed is not None:
                stack.pop()
                stack[-1].cuts[-1] += closed
                continue
            if any("|" in bracket.separators for bracket in stack):
                return (prompt,)
            flatten_all()
            stack[0].cuts[0].append(piece)
        elif piece == "\\" or (piece == "|" and stack[-1].mark != "["):
            return (prompt,)
        elif piece in (":", "|") and len(stack) > 1:
            stack[-1].separators.append(piece)
            stack[-1].cuts.append([])
        else:
            stack[-1].cuts[-1].append(piece)
    if any("|" in bracket.separators for bracket in stack):
        return (prompt,)
    flatten_all()
    return _join_texts(stack[0].cuts[0])


def iterate_texts(parts: Parts) -> Iterator[str]:
    """Yield the texts of a prompt, whatever step they are for, without brackets and weights."""
    for part in parts:
        match part:
            case str():
                yield from (span.text for span in parse_weights(part) if isinstance(span, Span))
            case Scheduled():
                yield from iterate_texts(part.before)
                yield from iterate_texts(part.after)
            case Alternating():
                for option in part.options:
                    yield from iterate_texts(option)


def resolve_text(parts: Parts, step: int, steps: int, steps_before: int = 0) -> str:
    """Return the prompt's text at a step, with its brackets and weights.

    `step` counts from 1 to `steps`; `steps_before` are the steps of a pass before this one, in which
    `[a|b]` begins anew.
    """
    texts: list[str] = []

    def walk(parts: Parts) -> None:
        for part in parts:
            match part:
                case str():
                    texts.append(part)
                case Scheduled():
                    walk(part.after if part.has_switched(step, steps, steps_before) else part.before)
                case Alternating():
                    walk(part.options[(step - 1) % len(part.options)])

    walk(parts)
    return "".join(texts)


# --- weights -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """Text of one weight, within one chunk or more."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Break:
    """`BREAK`: what follows begins a new chunk of 75 tokens."""


WEIGHT_END = re.compile(r":([+-]?(?:\d+\.?\d*|\.\d+))\)")
WEIGHT_PIECE = re.compile(rf"\\[()\[\]\\]|\\|[(\[]|{WEIGHT_END.pattern}|[)\]]|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\bBREAK\b")


def parse_weights(text: str) -> list[Span | Break]:
    """Return the texts of a prompt with their weights, equal neighbours joined.

    Round and square brackets are paired each among themselves, so that `(a [b) c]` overlap; one that is
    not closed reaches to the end, one that was not opened is text. A backslash makes a bracket text, and
    is dropped elsewhere.
    """
    said: list[str | Break] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def add(part: str | Break) -> None:
        said.append(part)
        weights.append(1.0)

    def multiply(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    for match in WEIGHT_PIECE.finditer(text):
        piece, weight = match[0], match[1]
        if piece[0] == "\\":
            add(piece[1:])
        elif piece in opened and len(opened[piece]) < MAX_DEPTH:
            opened[piece].append(len(said))
        elif weight is not None and opened["("]:
            start = opened["("].pop()
            multiply(start, _bound(float(weight)))
            weights[start:] = map(_bound, weights[start:])
        elif piece == ")" and opened["("]:
            multiply(opened["("].pop(), BRACKET_WEIGHT)
        elif piece == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / BRACKET_WEIGHT)
        else:
            first, *others = BREAK.split(piece) if "BREAK" in piece else [piece]
            add(first.rstrip() if others else first)
            for number, each in enumerate(others, 1):
                add(Break())
                add(each.strip() if number < len(others) else each.lstrip())
    if opened["("] or opened["["]:
        weights = [
            _weigh_unclosed(weight, bisect_right(opened["("], place), bisect_right(opened["["], place))
            for place, weight in enumerate(weights)
        ]
    return _join_spans(said, weights)


@lru_cache(4096)
def _weigh_unclosed(weight: float, rounds: int, squares: int) -> float:
    """Return a weight within brackets that are not closed: one factor after the other, as A1111 rounds."""
    for factor in (*[BRACKET_WEIGHT] * rounds, *[1 / BRACKET_WEIGHT] * squares):
        weight *= factor
    return weight


def _bound(weight: float) -> float:
    """Keep a product of many weights finite."""
    return max(-1e6, min(1e6, weight))


def _join_spans(said: Sequence[str | Break], weights: Sequence[float]) -> list[Span | Break]:
    found: list[Span | Break] = []
    pairs = zip(said, weights, strict=True)
    for weight, group in groupby(pairs, key=lambda pair: pair[1] if isinstance(pair[0], str) else None):
        same = [part for part, _ in group]
        if weight is None:
            found += [Break()] * len(same)
        elif joined := "".join(map(str, same)):
            found.append(Span(joined, max(-MAX_WEIGHT, min(MAX_WEIGHT, weight))))
    return found


def resolve_spans(parts: Parts, step: int = 1, steps: int = 1, steps_before: int = 0) -> list[Span | Break]:
    """Return what the prompt contains at a step: texts with their weights, equal neighbours joined.

    `step` counts from 1 to `steps`; `steps_before` are the steps of a pass before this one.
    """
    return parse_weights(resolve_text(parts, step, steps, steps_before))


def escape_brackets(text: str) -> str:
    """Return the text with its brackets escaped: `name (series)` -> `name \\(series\\)`."""
    return re.sub(r"([()\[\]\\])", r"\\\1", text)
