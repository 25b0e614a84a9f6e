"""Captions by the embedded tagger, and edits of a table of captions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from core.dataset.dataset import Dataset, Sample
from core.dataset.tagging import advise_captions, count_tags, replace_tag, tag_dataset
from core.models.tagger import Tagger
from core.nano.draw import draw_scene
from core.nano.pictures import make_scene
from core.nano.world import list_tags
from core.schema.errors import UserError

SCENE_INDICES = range(1_000_000, 1_000_006)
SIZES = ((128, 128), (128, 192))


def make_dataset(*captions: str) -> Dataset:
    samples = (
        Sample(file=f"{i:04}.png", name="a", caption=text, width=64, height=64, group="a")
        for i, text in enumerate(captions, 1)
    )
    return Dataset(folder=Path("nowhere"), samples=tuple(samples))


def list_captions(dataset: Dataset) -> list[str]:
    return [sample.caption for sample in dataset.samples]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("drawings")
    scenes = [make_scene(index, SIZES[index % 2]) for index in SCENE_INDICES]
    for i, each in enumerate(scenes):
        draw_scene(each).save(folder / f"{i}.png")
    samples = [
        Sample(file=f"{i}.png", name=f"{i}", width=each.width, height=each.height, group="a")
        for i, each in enumerate(scenes)
    ]
    return Dataset(folder=folder, samples=tuple(samples))


def test_the_tagger_says_what_was_drawn(drawings: Dataset) -> None:
    found = tag_dataset(drawings, Tagger(), trigger="mystyle, by me")
    for index, sample in zip(SCENE_INDICES, found.samples, strict=True):
        first, second, *rest = sample.caption.split(", ")
        assert (first, second) == ("mystyle", "by me")
        truth = set(list_tags(make_scene(index, SIZES[index % 2])))
        assert len(truth ^ set(rest)) <= 1, "the tagger may be wrong about one"
    assert replace(found, samples=drawings.samples) == drawings, "nothing but captions changed"


def test_what_is_dropped_is_a_word_or_a_pattern(drawings: Dataset) -> None:
    full, less = (
        count_tags(tag_dataset(drawings, Tagger(), drop=drop))
        for drop in ((), ("1girl", "* hair", "(red|blue) eyes"))
    )
    gone = full.keys() - less.keys()
    assert "1girl" in gone
    assert {tag for tag in full if tag.endswith(" hair")} <= gone
    assert all(tag == "1girl" or tag.endswith(" hair") or tag in ("red eyes", "blue eyes") for tag in gone)
    with pytest.raises(UserError, match=r"^drop: '\(a' is not a valid pattern"):
        tag_dataset(drawings, Tagger(), drop=("(a",))


def test_captions_that_are_there_may_stay(drawings: Dataset) -> None:
    told = replace(drawings, samples=(replace(drawings.samples[0], caption="mine"), *drawings.samples[1:]))
    kept, new = (tag_dataset(told, Tagger(), trigger="x", keep_existing=keep) for keep in (True, False))
    assert kept.samples[0].caption == "mine"
    assert new.samples[0].caption != "mine"
    assert kept.samples[1:] == new.samples[1:]


def test_regularisation_pictures_get_no_trigger(drawings: Dataset) -> None:
    told = replace(
        drawings,
        samples=tuple(replace(sample, regularisation=i > 2) for i, sample in enumerate(drawings.samples)),
    )
    found = tag_dataset(told, Tagger(), trigger="mystyle")
    assert ["mystyle" in caption for caption in list_captions(found)] == [True] * 3 + [False] * 3
    assert count_tags(found)["mystyle"] == 3


class ConstantTagger(Tagger):
    """A tagger that sees the same in every picture."""

    def __init__(self) -> None:
        self.categories = {"hair": 0, "eyes": 0, "halo": 0, "someone": 4, "someone else": 4, "general": 9}

    def read_tags(self, pictures: Sequence[Image.Image]) -> list[dict[str, float]]:
        return [
            {"hair": 0.4, "eyes": 0.7, "halo": 0.3, "someone": 0.8, "someone else": 0.9, "general": 0.99}
            for _ in pictures
        ]


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        (0.35, "someone else, eyes, hair"),
        (0.4, "someone else, eyes, hair"),
        (0.5, "someone else, eyes"),
        (0.95, ""),
    ],
)
def test_the_surest_tag_comes_first_characters_must_be_surer_and_ratings_say_nothing(
    drawings: Dataset, threshold: float, said: str
) -> None:
    assert set(list_captions(tag_dataset(drawings, ConstantTagger(), threshold=threshold))) == {said}


@pytest.mark.parametrize("threshold", [0, 1.1, float("nan"), "0.5"])
def test_a_threshold_is_a_probability(drawings: Dataset, threshold: float) -> None:
    with pytest.raises(UserError, match=r"^threshold: .* is not valid. Use a number above 0, up to 1\.$"):
        tag_dataset(drawings, Tagger(), threshold=threshold)


def test_tags_are_counted_once_a_caption() -> None:
    told = make_dataset("a, b, a", "b\nc, b", "", "b,, ")
    assert list(count_tags(told).items()) == [("b", 3), ("a", 1), ("c", 1)]


@pytest.mark.parametrize(
    ("search", "replacement", "whole", "expected"),
    [
        ("hair", "fur", True, ["long hair, smile", "fur\nsmile"]),
        ("hair", "fur", False, ["long fur, smile", "fur\nsmile"]),
        ("smile", "", True, ["long hair", "hair"]),
        ("smile", "long hair", True, ["long hair", "hair\nlong hair"]),
        ("smile", "grin, teeth", True, ["long hair, grin, teeth", "hair\ngrin, teeth"]),
        ("absent", "x", True, ["long hair, smile", "hair\nsmile"]),
    ],
)
def test_tags_or_texts_are_replaced(search: str, replacement: str, whole: bool, expected: list[str]) -> None:
    assert (
        list_captions(
            replace_tag(make_dataset("long hair, smile", "hair\nsmile"), search, replacement, whole_tag=whole)
        )
        == expected
    )


def test_a_replacement_keeps_to_what_a_caption_may_be() -> None:
    with pytest.raises(UserError, match=r"^search: enter a tag"):
        replace_tag(make_dataset("a"), " ", "b")
    with pytest.raises(
        UserError, match=r"^caption: 90,\d\d\d characters are too many; the limit is 10,000\."
    ):
        replace_tag(make_dataset("a" * 9000), "a", "b" * 10, whole_tag=False)
    assert list_captions(replace_tag(make_dataset("a, b"), "a", "\x00c\x1b", whole_tag=False)) == ["c, b"]


@pytest.mark.parametrize(
    ("captions", "trigger", "says"),
    [
        (
            ("halo, smile", "halo, frown"),
            "mystyle",
            ["In every caption: halo. These are learned under their own names"],
        ),
        (("mystyle, smile", "mystyle, frown"), "mystyle", []),
        (
            ("a", "b", ""),
            "mystyle",
            ["1 of 3 images have no caption: everything in them goes into the trigger word."],
        ),
        (
            ("a", ""),
            "",
            ["1 of 2 images have no caption: everything in them goes into every prompt.", "No trigger word"],
        ),
        (("a", "b"), "blue_sky", ["The trigger word 'blue_sky' is an ordinary tag"]),
        (("halo",), "mystyle", []),
        ((", ".join("abcdefghijkl"),) * 2, "x", ["In every caption: a, b, c, d, e, f, g, h …."]),
    ],
)
def test_advice_names_what_the_trigger_will_not_learn(
    captions: tuple[str, ...], trigger: str, says: list[str]
) -> None:
    found = advise_captions(make_dataset(*captions), trigger, Tagger().tags)
    assert len(found) == len(says)
    for sentence, start in zip(found, says, strict=True):
        assert sentence.startswith(start)
