"""DanTagGen adds only what it may, and leaves everything else as it was."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.generate.tag_expander import (
    CATEGORY_PATTERNS,
    Expansion,
    append_tags,
    check_expand_settings,
    expand,
    extract_prompt_tags,
)
from core.nano.world import GROUPS, TAGS
from core.prompts.tag_patterns import compile_patterns
from core.schema.errors import UserError
from core.schema.presets import get_prompt_presets
from core.schema.records import find_problems
from core.schema.types import Expand

NANO_EXPAND = Expand(expander="nano DanTagGen", ban=("low quality",))


def expand_tags(prompt: str, settings: Expand = NANO_EXPAND, seed: int = 1) -> tuple[str, ...]:
    return expand(prompt, settings, width=128, height=128, seed=seed).added


def test_the_prompt_comes_through_letter_by_letter() -> None:
    prompt = r"1girl, (blue hair:1.3), [smile], name \(series\) BREAK <lora:style:2>"
    found = expand(prompt, NANO_EXPAND, width=128, height=192, seed=4)
    assert found.prompt == f"{prompt}, {', '.join(found.added)}"
    assert found.added
    assert set(found.added) <= set(TAGS), "only tags of the drawn world"
    assert not {"1girl", "blue hair", "smile", "name (series)"} & set(found.added)


def read_rng_states() -> tuple:
    return (
        torch.get_rng_state().tolist(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        random.getstate(),
    )


def test_the_same_seed_adds_the_same_and_takes_no_randomness() -> None:
    before = read_rng_states()
    first = expand_tags("1girl", seed=9)
    assert read_rng_states() == before
    assert expand_tags("1girl", seed=9) == first
    assert len({expand_tags("1girl", seed=seed) for seed in range(4)}) > 1


def test_there_are_never_more_tags_than_allowed() -> None:
    assert len(expand_tags("1girl", replace(NANO_EXPAND, max_tags=2, length="very_long"))) == 2


def test_what_is_banned_is_not_added() -> None:
    how = replace(
        NANO_EXPAND, ban=(".*halo.*", "*sky", "portrait"), without=("hair", "clothes"), length="very_long"
    )
    found = [tag for seed in range(5) for tag in expand_tags("1girl", how, seed)]
    assert found
    assert not [
        tag
        for tag in found
        if any(
            word in tag
            for word in (
                "halo",
                "sky",
                "portrait",
                "hair",
                "twintails",
                "ponytail",
                "hoodie",
                "maid",
                "kimono",
            )
        )
    ]


def test_tags_of_a_lora_are_known_and_not_added() -> None:
    known = ("maid", "red eyes")
    for seed in range(4):
        found = expand("1girl", NANO_EXPAND, width=128, height=128, seed=seed, known_tags=known).added
        assert not set(known) & set(found)


def test_tags_seldom_contradict_each_other() -> None:
    """A short form of tests/bench/recipe.py, whose bar is 0.95 of 200 prompts."""
    clashes = []
    for seed in range(24):
        prompt = ["1girl, blue hair", "1girl, smile, hoodie", "no humans, apple", "scenery"][seed % 4]
        whole = [*extract_prompt_tags(prompt), *expand_tags(prompt, seed=seed)]
        if any(len(set(group) & set(whole)) > 1 for group in GROUPS):
            clashes.append(whole)
    assert len(clashes) <= 2, clashes


@pytest.mark.parametrize(
    ("pattern", "bans", "leaves"),
    [
        ("mecha", ["mecha", "mecha musume"], ["mechanical arms"]),
        ("flat color", ["flat color"], ["color"]),
        ("flat_color", ["flat color"], []),
        (".*official.*", ["official art", "unofficial"], ["office"]),
        ("*boy*", ["1boy", "boyfriend"], ["girl"]),
        ("score_?", ["score_9"], ["score"]),
        ("^text$", ["text"], ["text focus"]),
        ("(red|blue) eyes", ["red eyes"], ["green eyes"]),
    ],
)
def test_patterns_are_words_globs_or_regexes(pattern: str, bans: list, leaves: list) -> None:
    (found,) = compile_patterns([pattern])
    assert [bool(found.match(tag)) for tag in bans + leaves] == [True] * len(bans) + [False] * len(leaves)


@pytest.mark.parametrize(
    "bad",
    [
        "(a+)+$",
        "(.*)*",
        ".*a.*b.*c.*d",
        "(a",
        r"(a)\1",
        "(?=a)b",
        "x" * 101,
        ".?" * 49 + "!",
        "(|.)" * 24 + "z",
        ".a{9999999999}",
    ],
)
def test_a_bad_pattern_is_refused_by_name(bad: str) -> None:
    with pytest.raises(UserError, match="ban: ") as caught:
        compile_patterns(["smile", bad])
    assert bad[:30] in str(caught.value).replace("\\\\", "\\")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"length": "huge"}, "expand.length: 'huge' is unknown. Use one of: very_short"),
        ({"without": ("feet",)}, "expand.without: 'feet' is unknown. Use one of: hair"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(change: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_expand_settings(replace(NANO_EXPAND, **change))


def test_numbers_are_checked_with_the_others() -> None:
    assert list(find_problems(Expand, {"temperature": 0, "top_k": 0, "max_tags": 0})) == [
        "temperature",
        "top_k",
        "max_tags",
    ]


def test_the_page_of_baxl_is_kept() -> None:
    how = get_prompt_presets()["baxl-v3"].expand
    assert how.temperature < 1
    assert how.length == "short"
    banned = check_expand_settings(how)
    for tag in (
        "sketch",
        "comic",
        "flat color",
        "official art",
        "1boy",
        "mecha",
        "no humans",
        "text",
        "pixel art",
        "speech bubble",
    ):
        assert any(pattern.match(tag) for pattern in banned), tag
    assert set(CATEGORY_PATTERNS) == {"hair", "eyes", "clothes", "background"}


def test_tags_are_read_without_their_marks() -> None:
    assert extract_prompt_tags(
        r"1girl, (blue hair:1.2), [smile|frown], <lora:a:1> name \(series\) BREAK red  eyes"
    ) == [
        "1girl",
        "blue hair",
        "smile",
        "name (series)",
        "red eyes",
    ]
    assert append_tags("1girl, ", ["a (b)"]) == r"1girl, a \(b\)"
    assert append_tags("1girl", []) == "1girl"
    assert Expansion(prompt="a", added=()).added == ()
