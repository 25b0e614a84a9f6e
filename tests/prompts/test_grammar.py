"""A1111's prompt grammar means what it means there, is stable, and breaks on no text."""

import random
import re
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.prompts.grammar import (
    MAX_WEIGHT,
    Break,
    LoraTag,
    Span,
    escape_brackets,
    extract_lora_tags,
    parse_prompt,
    read_lora_tag,
    resolve_spans,
    split_parts,
)

PIECES = [
    "(",
    ")",
    "[",
    "]",
    ":",
    "|",
    "\\",
    " BREAK ",
    "BREAK",
    "a",
    "b c",
    "1.5",
    "0.5",
    " ",
    ", ",
    "日本",
    r"\(",
    r"\)",
    "<lora:x:1>",
]
PROMPTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=24).map("".join)

TAGS = [
    "1girl", "(blue hair:1.2)", "[smile|frown]", r"arona \(blue archive\)", "a BREAK b", "((halo))",
    "(never closed", "never opened]", "<lora:a:1.5>", "[red:blue:0.5]", "日本語", "\\", "(x:-3)",
    "(a:99999999)", "[[[less]]]", "::", "||",
]  # fmt: skip


def weigh_spans(prompt: str, step: int = 1, steps: int = 10) -> list[tuple[str, float]]:
    return [
        (part.text, round(part.weight, 4)) if isinstance(part, Span) else ("BREAK", -1)
        for part in resolve_spans(parse_prompt(prompt), step, steps)
    ]


# Expected values as A1111's `parse_prompt_attention` gives them (its docstring and tests).
@pytest.mark.parametrize(
    ("prompt", "means"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("[less] ((more))", [("less", 0.9091), (" ", 1.0), ("more", 1.21)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        ("(a, b:1.2)", [("a, b", 1.2)]),
        ("(x:-0.5)", [("x", -0.5)]),
        ("(x:1.2.3)", [("x:1.2.3", 1.1)]),
        ("(x: 1.3)", [("x: 1.3", 1.1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 0.9091)]),
        ("[(a:b:3]", [("a:b:3", 1.0)]),
        ("(a]:1.3)", [("a]", 1.3)]),
        (r"a\b, \:c, (d\:1.5)", [("ab, :c, ", 1.0), ("d", 1.5)]),
        ("a\\", [("a", 1.0)]),
        ("(emoticon :d)", [("emoticon :d", 1.1)]),
        ("a BREAK b", [("a", 1.0), ("BREAK", -1), ("b", 1.0)]),
        ("(a BREAK b:2)", [("a", 2.0), ("BREAK", -1), ("b", 2.0)]),
        (r"arona \(blue archive\), smile", [("arona (blue archive), smile", 1.0)]),
        ("", []),
    ],
)
def test_weights_are_a1111s(prompt: str, means: list) -> None:
    assert weigh_spans(prompt) == means


# Expected values as A1111's `get_learned_conditioning_prompt_schedules` gives them.
@pytest.mark.parametrize(
    ("prompt", "by_step"),
    [
        ("[a:b:3]", "aaabbbbbbb"),
        ("[a:b:0.5]", "aaaaabbbbb"),
        ("[b:0.25]", "  bbbbbbbb"),
        ("[a::2]", "aa        "),
        ("[a|b]", "ababababab"),
        ("[[a|c]:b:2]", "acbbbbbbbb"),
        ("[a:b:3 ]", "aaabbbbbbb"),
        ("[a:b:-1]", "bbbbbbbbbb"),
        ("[a|(b)]", "ababababab"),
        ("(x [a:b:3]", ["x a"] * 3 + ["x b"] * 7),
        ("[(x [a:b:3]", ["x a"] * 3 + ["x b"] * 7),
        ("x [a:b:3]]", ["x a]"] * 3 + ["x b]"] * 7),
        ("[a:(b:3]", ["a:b:3"] * 10),
        ("a | [a:b:3]", ["a | a:b:3"] * 10),
        ("[a:b:3]\\", ["a:b:3"] * 10),
        ("([a:b:3]:1.2)", "aaabbbbbbb"),
        (r"[\[:\]:3]", "[[[]]]]]]]"),
    ],
)
def test_turns_happen_at_their_steps(prompt: str, by_step: list[str] | str) -> None:
    said = ["".join(text for text, _ in weigh_spans(prompt, step)) or " " for step in range(1, 11)]
    assert said == [*by_step]


def test_a_second_pass_goes_on_where_the_first_ended() -> None:
    """In A1111 shares below 1 belong to the first pass.

    See `get_learned_conditioning_prompt_schedules` with `hires_steps`.
    """

    def join_spans(prompt: str, step: int) -> str:
        return "".join(
            part.text
            for part in resolve_spans(parse_prompt(prompt), step, 10, steps_before=10)
            if isinstance(part, Span)
        )

    assert join_spans("[red:blue:0.5]", 1) == "blue"
    assert [join_spans("[red:blue:1.5]", step) for step in (5, 6)] == ["red", "blue"]
    assert [join_spans("[red:blue:15]", step) for step in (5, 6)] == ["red", "blue"]
    assert [join_spans("[a|b|c]", step) for step in (1, 2)] == ["a", "b"]


def test_a_number_of_any_length_is_a_step() -> None:
    assert resolve_spans(parse_prompt("[a:b:" + "9" * 400 + "]"))


@pytest.mark.parametrize(
    ("tag", "lora"),
    [
        ("<lora:style>", LoraTag(name="style")),
        ("<lora:style:1.5>", LoraTag(name="style", strength=1.5, text_strength=1.5)),
        ("<lora:style:0:2>", LoraTag(name="style", strength=2, text_strength=0)),
        ("<lora:style:1:unet=3:te=0.5>", LoraTag(name="style", strength=3, text_strength=0.5)),
        (
            "<lora:my style:-1:lbw=1,0,0,0,0,0,1,0,0,0,0,0>",
            LoraTag(name="my style", strength=-1, text_strength=-1, blocks="1,0,0,0,0,0,1,0,0,0,0,0"),
        ),
        (
            "<lora:style:1:step=5-10>",
            LoraTag(name="style", start=5, stop=10),
        ),
        ("<lora:style:1:stop=10>", LoraTag(name="style", stop=10)),
        ("<lyco:style:1.5>", LoraTag(name="style", strength=1.5, text_strength=1.5)),
        ("<lora:style:2:MIDD>", LoraTag(name="style", strength=2, text_strength=2, blocks="MIDD")),
        (
            "<lora:style:1:0.5:0,1,0,0,0,0,0,0,0,0,0,0>",
            LoraTag(name="style", strength=0.5, blocks="0,1,0,0,0,0,0,0,0,0,0,0"),
        ),
    ],
)
def test_loras_are_read_and_taken_out(tag: str, lora: LoraTag) -> None:
    assert extract_lora_tags(f"1girl, {tag} smile") == ("1girl,  smile", [lora], [])


@pytest.mark.parametrize("tag", ["<lora:a:x>", "<lora:a:nan>", "<lora::1>", "<lora:a:inf>", "<hypernet:a:1>"])
def test_what_is_no_lora_is_told(tag: str) -> None:
    assert extract_lora_tags(f"a {tag}") == ("a ", [], [tag])


@pytest.mark.parametrize(
    ("tag", "wrong"),
    [
        ("<lora:a:0,8>", "'0,8' is no strength; write 0.8"),
        ("<lora:a:>", "a strength is empty"),
        ("<lora:a:1:te=>", "a strength is empty"),
        ("<lora:a:ALL>", "'ALL' is no strength"),
        ("<lora:a:1:2:3>", "it has more than two strengths"),
        ("<lora:a:1:step=4>", "step=4 names one step; write it as step=5-10"),
        ("<lora:a:1:start=x>", "start 'x' is no step"),
        ("<lora:a:1:dyn=4>", "dyn= is not applied here"),
        ("<lora::1>", "the name is missing"),
    ],
)
def test_what_is_wrong_with_a_lora_tag_is_said(tag: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(wrong)}$"):
        read_lora_tag(tag)


# Expected values as A1111's `get_multicond_prompt_list` gives them.
@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a AND b :0.5", [("a ", 1.0), (" b", 0.5)]),
        ("a:1.2 AND b: -1 <lora:x:1>", [("a", 1.2), (" b", -1.0)]),
        ("(a:1.2) AND b:c", [("(a:1.2) ", 1.0), (" b:c", 1.0)]),
        ("a\nb :2 AND c", [("a\nb :2 ", 1.0), (" c", 1.0)]),
        ("SAND ANDY and", [("SAND ANDY and", 1.0)]),
        ("cat :3", [("cat :3", 1.0)]),
    ],
)
def test_prompts_joined_by_and_are_told_apart(prompt: str, parts: list[tuple[str, float]]) -> None:
    assert [tuple(part) for part in split_parts(prompt)] == parts


@settings(deadline=None, max_examples=400)
@given(PROMPTS)
@example("(" * 70 + "a")
@example("(" * 70 + "[a:b:3]" + ":9999)" * 70 + "(x:0)")
def test_case_02_any_prompt_has_finite_weights(prompt: str) -> None:
    tree = parse_prompt(prompt)
    assert all(abs(part.weight) <= MAX_WEIGHT for part in resolve_spans(tree) if not isinstance(part, Break))


@given(st.text())
def test_escaped_text_is_meant(text: str) -> None:
    said = "".join(
        part.text for part in resolve_spans(parse_prompt(escape_brackets(text))) if isinstance(part, Span)
    )
    assert "BREAK" in text or said == text


@pytest.mark.parametrize("piece", ["(", "[a:", "(a:1.5", "[a|", "\\", "a, ", "((a)", " ", "<lora:"])
@pytest.mark.timeout(30)
def test_case_02_a_hostile_prompt_does_not_hang(piece: str) -> None:
    """In linear time 200,000 pieces take a second; in quadratic time they would take hours."""
    resolve_spans(parse_prompt(extract_lora_tags(piece * 200_000)[0]))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), many=st.integers(1, 2000))
@example(seed=0, many=2000)
def test_case_02_thousands_of_tags_are_read(seed: int, many: int) -> None:
    prompt, found, _ = extract_lora_tags(", ".join(random.Random(seed).choices(TAGS, k=many)))
    tree = parse_prompt(prompt)
    assert all(abs(part.weight) <= MAX_WEIGHT for part in resolve_spans(tree) if not isinstance(part, Break))
    assert all(tag.strength == 1.5 for tag in found)


def count_calls(prompt: str) -> int:
    """Return the number of calls that reading the prompt takes, those of C among them."""
    counted = 0

    def count(_frame: object, event: str, _what: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        resolve_spans(parse_prompt(extract_lora_tags(prompt)[0]))
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.parametrize("piece", [*TAGS, "(", "[a:", "[a|", "((a)", "<lora:"])
def test_case_02_twice_as_many_tags_are_twice_the_work(piece: str) -> None:
    once, twice = (count_calls(f"{piece}, " * many) for many in (1000, 2000))
    assert twice <= 2.1 * once
