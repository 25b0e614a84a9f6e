"""Captions vary as kohya varies them, draw by draw."""

import json
import random
from dataclasses import fields
from pathlib import Path

import pytest

from core.dataset.caption_variation import CaptionVariation, vary_caption
from core.schema.errors import UserError

KOHYA_CASES = json.loads((Path(__file__).parent / "kohya_captions.json").read_text())["cases"]


@pytest.mark.parametrize("case", KOHYA_CASES, ids=range(len(KOHYA_CASES)))
def test_the_same_seed_says_the_same_as_kohya(case: dict) -> None:
    chance = random.Random(case["seed"])
    assert (
        vary_caption(case["caption"], CaptionVariation(**case["how"]), chance, case["epoch"]) == case["said"]
    )
    assert chance.random() == case["next"], "as many draws were made"


def test_the_cases_try_every_setting() -> None:
    assert {name for case in KOHYA_CASES for name in case["how"]} == {
        field.name for field in fields(CaptionVariation)
    }


def test_braces_that_nothing_closes_are_text() -> None:
    assert (
        vary_caption("{a|a}, {b}, {c, {d" + "{" * 9999, CaptionVariation(wildcard=True), random.Random(0))
        == "a, b, {c, {d" + "{" * 5000
    )


def test_off_is_the_caption_itself() -> None:
    assert vary_caption("1girl,  smile ,", CaptionVariation(), random.Random(0)) == "1girl,  smile ,"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tag_dropout": 1.5}, r"^wording\.tag_dropout: 1\.5 is not valid. Use a number from 0 to 1\."),
        ({"caption_dropout": float("nan")}, r"^wording\.caption_dropout: nan is not valid"),
        ({"keep_tokens": -1}, r"^wording\.keep_tokens: -1 is not valid. Use a whole number from 0\."),
        ({"caption_dropout_every": 1.5}, r"^wording\.caption_dropout_every: 1\.5 is not valid"),
        ({"separator": ""}, r"^wording\.separator: it is empty"),
    ],
)
def test_a_setting_that_is_not_allowed_is_a_sentence(change: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        CaptionVariation(**change)
