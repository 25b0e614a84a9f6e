"""Which base descends from which, and two claims of 'A Certain Theory for LoRA Transfer' tested.

The claims are tested on the pairs of a study.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from core.schema import presets
from core.schema.types import Model
from core.transfer.judge import Claim, evaluate_claim
from core.transfer.study import TransferPair, TransferStudy

ModelTable = Mapping[str, Model]


def find_ancestors(name: str, table: ModelTable) -> dict[str, int]:
    """Return each model that this one descends from, itself included -> steps to it."""
    found, edge = {name: 0}, [name]
    while edge:
        child = edge.pop(0)
        for parent in table[child].parents if child in table else ():
            if parent not in found:
                found[parent] = found[child] + 1
                edge.append(parent)
    return found


def lineage_distance(one: str, other: str, table: ModelTable) -> int | None:
    """Return the steps between two models by way of their nearest common ancestor.

    `None` if they have none.
    """
    mine, its = find_ancestors(one, table), find_ancestors(other, table)
    return min((mine[name] + its[name] for name in mine if name in its), default=None)


def find_relation(home: str, model: str, table: ModelTable) -> str:
    """Return what `home` is to `model`.

    One of `home`, `ancestor`, `descendant`, `relative` and `stranger`.
    """
    if home == model:
        return "home"
    if home in find_ancestors(model, table):
        return "ancestor"
    if model in find_ancestors(home, table):
        return "descendant"
    return "relative" if lineage_distance(home, model, table) is not None else "stranger"


def format_tree(names: Iterable[str], table: ModelTable) -> list[str]:
    """Return the models and their ancestors as indented lines.

    A model with several parents stands below each of them.
    """
    shown = {name for own in names for name in find_ancestors(own, table)}
    children = {
        name: sorted(child for child in shown if child in table and name in table[child].parents)
        for name in shown
    }

    def format_subtree(name: str, depth: int) -> list[str]:
        return [
            f"{'   ' * depth}{'└─ ' if depth else ''}{name}",
            *(line for child in children[name] for line in format_subtree(child, depth + 1)),
        ]

    roots = sorted(name for name in shown if name not in table or not table[name].parents)
    return [line for root in roots for line in format_subtree(root, 0)]


STYLE_FOLLOWS_BASE = "Training on an ancestor lets the style follow the base"
STYLE_STAYS_NEAR = "Training near a model keeps the trained style on it"


def evaluate_claims(study: TransferStudy) -> list[Claim]:
    """Test both claims on a study.

    Each claim compares all pairs of rows trained on the same pictures, on the same base, each at
    the strength that it has at home.
    """
    table = presets.get_models()
    follows, keeps = [], []
    for one, other in _list_comparable_pairs(study):
        mine, its = _get_home_model(one), _get_home_model(other)
        if (
            find_relation(mine, one.model, table) == "ancestor"
            and find_relation(its, one.model, table) != "ancestor"
        ):
            follows.append(
                (_measure_at_home(study, one, "own_style"), _measure_at_home(study, other, "own_style"))
            )
        near, far = lineage_distance(mine, one.model, table), lineage_distance(its, one.model, table)
        if near is not None and (far is None or near < far):
            keeps.append((_measure_at_home(study, one, "style"), _measure_at_home(study, other, "style")))
    return [
        evaluate_claim(
            STYLE_FOLLOWS_BASE,
            "the base's own style kept",
            [a for a, _ in follows],
            [b for _, b in follows],
            ("with those of an ancestor", "with the others"),
        ),
        evaluate_claim(
            STYLE_STAYS_NEAR,
            "likeness to the trained style",
            [a for a, _ in keeps],
            [b for _, b in keeps],
            ("with those of the nearer model", "with the others"),
        ),
    ]


def _list_comparable_pairs(study: TransferStudy) -> Iterator[tuple[TransferPair, TransferPair]]:
    """Yield ordered pairs of rows on one base, trained on the same pictures on different bases."""
    whole = [pair for pair in study.pairs.values() if pair.curves and pair.row.home_model]
    for one in whole:
        for other in whole:
            if (
                one.model == other.model
                and one.row.training_set is not None
                and one.row.training_set == other.row.training_set
                and one.row.home_model != other.row.home_model
            ):
                yield one, other


def _get_home_model(pair: TransferPair) -> str:
    assert pair.row.home_model is not None
    return pair.row.home_model


def _measure_at_home(study: TransferStudy, pair: TransferPair, measure: str) -> np.ndarray:
    """Return a measure at the strength that the row has at home, (items,)."""
    home = study.pairs.get((pair.row.name, _get_home_model(pair)))
    strength = study.find_home_strength(home if home is not None and home.curves else pair)
    return pair.curves[measure][study.strengths.index(strength)]
