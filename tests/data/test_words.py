"""Captions vary as kohya varies them, draw by draw."""

import json
import random
from dataclasses import fields
from pathlib import Path

import pytest

from core.data.words import Wording, varied
from core.types import UserError

KOHYA = json.loads((Path(__file__).parent / "kohya_captions.json").read_text())["cases"]


@pytest.mark.parametrize("case", KOHYA, ids=range(len(KOHYA)))
def test_the_same_seed_says_the_same_as_kohya(case: dict) -> None:
    chance = random.Random(case["seed"])
    assert varied(case["caption"], Wording(**case["how"]), chance, case["epoch"]) == case["said"]
    assert chance.random() == case["next"], "as many draws were made"


def test_the_cases_try_every_setting() -> None:
    assert {name for case in KOHYA for name in case["how"]} == {field.name for field in fields(Wording)}


def test_braces_that_nothing_closes_are_text() -> None:
    assert varied("{a|a}, {b}, {c, {d" + "{" * 9999, Wording(wildcard=True), random.Random(0)) == "a, b, {c, {d" + "{" * 5000


def test_off_is_the_caption_itself() -> None:
    assert varied("1girl,  smile ,", Wording(), random.Random(0)) == "1girl,  smile ,"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tag_dropout": 1.5}, r"^wording\.tag_dropout: 1\.5 is not allowed; it takes a number from 0 to 1\."),
        ({"caption_dropout": float("nan")}, r"^wording\.caption_dropout: nan is not allowed"),
        ({"keep_tokens": -1}, r"^wording\.keep_tokens: -1 is not allowed; it takes a whole number from 0\."),
        ({"caption_dropout_every": 1.5}, r"^wording\.caption_dropout_every: 1\.5 is not allowed"),
        ({"separator": ""}, r"^wording\.separator: it is empty"),
    ],
)
def test_a_setting_that_is_not_allowed_is_a_sentence(change: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Wording(**change)
