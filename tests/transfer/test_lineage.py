"""Which base model was trained from which."""

from core.schema import presets
from core.schema.types import Model
from core.transfer.claims import find_ancestors, find_relation, format_tree, lineage_distance


def make_model(name: str, *parents: str) -> Model:
    return Model(name=name, title=name, source=name, licence="none", parents=parents)


TABLE = {
    each.name: each
    for each in (
        make_model("a"),
        make_model("b", "a"),
        make_model("c", "a"),
        make_model("both", "b", "c"),
        make_model("other"),
    )
}


def test_steps_go_by_the_nearest_common_ancestor() -> None:
    assert find_ancestors("both", TABLE) == {"both": 0, "b": 1, "c": 1, "a": 2}
    assert [
        lineage_distance(*pair, TABLE)
        for pair in (("a", "a"), ("a", "b"), ("b", "c"), ("a", "both"), ("b", "both"), ("a", "other"))
    ] == [
        0,
        1,
        2,
        2,
        1,
        None,
    ]


def test_relations_are_said_from_the_home() -> None:
    said = {
        pair: find_relation(*pair, TABLE)
        for pair in (("a", "a"), ("a", "both"), ("both", "a"), ("b", "c"), ("b", "other"))
    }
    assert list(said.values()) == ["home", "ancestor", "descendant", "relative", "stranger"]


def test_the_tree_has_a_line_for_each_way_down() -> None:
    assert format_tree(["both", "other"], TABLE) == [
        "a",
        "   └─ b",
        "      └─ both",
        "   └─ c",
        "      └─ both",
        "other",
    ]


def test_the_embedded_family_is_one() -> None:
    table = presets.get_models()
    assert find_relation("nano", "nano-merge", table) == "ancestor"
    assert lineage_distance("nano-cel", "nano-paint", table) == 2
    assert find_relation("nano", "sdxl-base", table) == "stranger"
