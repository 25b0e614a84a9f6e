"""Which base goes back to which."""

from core import presets
from core.transfer.lineage import ancestors, distance, relation, tree
from core.types import Model


def model(name: str, *parents: str) -> Model:
    return Model(name=name, title=name, source=name, licence="none", parents=parents)


TABLE = {each.name: each for each in (model("a"), model("b", "a"), model("c", "a"), model("both", "b", "c"), model("other"))}


def test_steps_go_by_the_nearest_common_ancestor() -> None:
    assert ancestors("both", TABLE) == {"both": 0, "b": 1, "c": 1, "a": 2}
    assert [distance(*pair, TABLE) for pair in (("a", "a"), ("a", "b"), ("b", "c"), ("a", "both"), ("b", "both"), ("a", "other"))] == [0, 1, 2, 2, 1, None]


def test_relations_are_said_from_the_home() -> None:
    said = {pair: relation(*pair, TABLE) for pair in (("a", "a"), ("a", "both"), ("both", "a"), ("b", "c"), ("b", "other"))}
    assert list(said.values()) == ["home", "ancestor", "descendant", "relative", "stranger"]


def test_the_tree_has_a_line_for_each_way_down() -> None:
    assert tree(["both", "other"], TABLE) == ["a", "   └─ b", "      └─ both", "   └─ c", "      └─ both", "other"]


def test_the_embedded_family_is_one() -> None:
    table = presets.models()
    assert relation("nano", "nano-merge", table) == "ancestor"
    assert distance("nano-cel", "nano-paint", table) == 2
    assert relation("nano", "sdxl-base", table) == "stranger"
