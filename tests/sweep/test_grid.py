"""Lists of numbers as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.schema.errors import UserError
from core.sweep import plan


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0, 0.5, 1", [0, 0.5, 1]),
        ("0-1 (+0.25)", [0, 0.25, 0.5, 0.75, 1]),
        ("0-1(+0.3)", [0, 0.3, 0.6, 0.9]),
        ("0-3.5 [15]", [i * 0.25 for i in range(15)]),
        ("0-3", [0, 1, 2, 3]),
        ("-1-1 (+0.5)", [-1, -0.5, 0, 0.5, 1]),
        ("-2--1 (+0.5)", [-2, -1.5, -1, 0]),
        ("2\n1, 2", [0, 1, 2]),
        ("0-0.3 (+0.1)", [0, 0.1, 0.2, 0.3]),
    ],
)
def test_strengths(text: str, expected: list[float]) -> None:
    assert plan.parse_strengths(text) == pytest.approx(sorted(expected), abs=1e-9)
    assert 0 in plan.parse_strengths(text), "strength 0 is what all others are measured against"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("a", "neither a number nor a range"),
        ("0 to 3", "neither a number nor a range"),
        ("3-0", "ends before it begins"),
        ("0-3 (+0)", "above 0"),
        ("0-3 (+-1)", "above 0"),
        ("0-5 (+0.001)", "limit is 64"),
        ("0-3 [1]", "from 2 to 64"),
        ("0-3 [9999]", "from 2 to 64"),
        ("9", "from -5 to 5"),
        ("1e9", "neither a number"),
        ("nan", "neither a number"),
        ("0," * 20_000, "use a list"),
        ("9" * 400, "neither a number"),
    ],
)
def test_a_list_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(UserError, match=r"^strengths: ") as refused:
        plan.parse_strengths(text)
    assert why in str(refused.value)
    assert len(str(refused.value)) < 200


@given(st.floats(-5, 5), st.floats(0.02, 5))
def test_an_end_is_never_overshot(first: float, step: float) -> None:
    first, step = round(first, 3), round(step, 3)
    found = plan.parse_numbers(f"{first:g}-5 (+{step:g})", "strengths", 1000)
    assert found[0] == pytest.approx(first)
    assert max(found) <= 5


@given(st.text(alphabet="0123456789-+()[]., \n", max_size=40))
def test_any_text_is_a_list_or_a_sentence(text: str) -> None:
    try:
        said = f"strengths: {plan.parse_strengths(text)}"
    except UserError as error:
        said = str(error)
    assert said.startswith("strengths: ")


def test_seeds_are_whole_and_keep_their_order() -> None:
    assert plan.parse_seeds("7, 1-3, 7") == [7, 1, 2, 3]
    assert plan.parse_seeds("18446744073709551613-18446744073709551615")[1:] == [2**64 - 2, 2**64 - 1]
    for text in ("1.5", "-1", "18446744073709551616", "1-17"):
        with pytest.raises(UserError, match=r"^seeds: "):
            plan.parse_seeds(text)
