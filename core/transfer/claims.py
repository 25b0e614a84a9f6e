"""Which base descends from which, and two claims of 'A Certain Theory for LoRA Transfer' tested.

The claims are tested on the pairs of a study.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.schema import presets
from core.schema.types import Model
from core.sweep.resample import average_curve, draw_deviations
from core.sweep.verdict import Range
from core.transfer.judge import TAIL
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


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim about LoRAs, and what these pictures say about it."""

    says: str
    difference: float | None
    interval: Range | None
    why: str
    """The answer with its figures, one sentence."""


def evaluate_claim(
    says: str, measure: str, ones: Sequence[np.ndarray], others: Sequence[np.ndarray], labels: tuple[str, str]
) -> Claim:
    """Test the claim that `ones` are greater than `others`, pairs of LoRAs on the same base.

    `ones[i]` and `others[i]` are a measure of the same pictures, (prompts, seeds). `labels` name the
    two sides.
    """
    if not ones:
        return Claim(
            says=says,
            difference=None,
            interval=None,
            why=f"{says}: not tested; the table has no two LoRAs of the same training images whose strength "
            "at home is known.",
        )
    mine, its = np.stack(ones), np.stack(others)  # (comparisons, prompts, seeds)
    if np.isnan(mine).any() or np.isnan(its).any():
        return Claim(
            says=says, difference=None, interval=None, why=f"{says}: not measured, because {measure} was not."
        )
    apart = {"difference": (mine - its).mean(0)[None]}
    difference = float(average_curve(apart["difference"])[0])
    drawn = difference + draw_deviations(apart, np.random.default_rng(0), stretch=True)["difference"]
    low, high = (float(end) for end in np.quantile(drawn, [TAIL, 1 - TAIL]))
    answer = (
        "these images agree"
        if low > 0
        else "these images show the opposite"
        if high < 0
        else "these images are inconclusive"
    )
    figures = (
        f"{measure} {mine.mean():.2f} {labels[0]} against {its.mean():.2f} {labels[1]}, "
        f"{len(ones)} comparisons"
    )
    return Claim(
        says=says,
        difference=difference,
        interval=(low, high),
        why=f"{says}: {answer} ({figures}; difference {difference:+.3f}, {low:+.3f} to {high:+.3f}).",
    )


def evaluate_claims(study: TransferStudy) -> list[Claim]:
    """Test both claims on a study.

    Each claim compares all pairs of rows trained on the same pictures, on the same base, each at
    the strength that it has at home.
    """
    table = presets.get_models()
    follows, keeps = [], []
    for one, other in _list_comparable_pairs(study):
        mine, its = one.row.home_model or "", other.row.home_model or ""
        if (
            find_relation(mine, one.model, table) == "ancestor"
            and find_relation(its, one.model, table) != "ancestor"
        ):
            follows.append([_measure_at_home(study, pair, "own_style") for pair in (one, other)])
        near, far = lineage_distance(mine, one.model, table), lineage_distance(its, one.model, table)
        if near is not None and (far is None or near < far):
            keeps.append([_measure_at_home(study, pair, "style") for pair in (one, other)])
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
    whole = [pair for pair in study.pairs.values() if study.get_own_strength(pair.row) in pair.strengths]
    for one in whole:
        for other in whole:
            if (
                one.model == other.model
                and one.row.training_set is not None
                and one.row.training_set == other.row.training_set
                and one.row.home_model != other.row.home_model
            ):
                yield one, other


def _measure_at_home(study: TransferStudy, pair: TransferPair, measure: str) -> np.ndarray:
    """Return a measure at the strength that the row has at home, (prompts, seeds)."""
    strength = study.get_own_strength(pair.row)
    assert strength is not None, "the pair is among the comparable ones"
    return pair.curves[measure][pair.strengths.index(strength)]
