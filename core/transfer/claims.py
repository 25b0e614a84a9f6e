"""The two claims of 'A Certain Theory for LoRA Transfer', held against a study: what training on an ancestor, and near a model, does."""

from collections.abc import Iterator

import numpy as np

from core import presets
from core.transfer.judge import Claim, claim
from core.transfer.lineage import distance, relation
from core.transfer.study import Pair, Study

FOLLOWS = "Training on an ancestor lets the style follow the base"
KEEPS = "Training near a model keeps the trained style on it"


def claims(study: Study) -> list[Claim]:
    """Both, each over all pairs of rows that were trained on the same pictures, on the same base, each at its strength at home."""
    table = presets.models()
    follows, keeps = [], []
    for one, other in _beside(study):
        mine, its = _home(one), _home(other)
        if relation(mine, one.model, table) == "ancestor" and relation(its, one.model, table) != "ancestor":
            follows.append((_at_home(study, one, "own_style"), _at_home(study, other, "own_style")))
        near, far = distance(mine, one.model, table), distance(its, one.model, table)
        if near is not None and (far is None or near < far):
            keeps.append((_at_home(study, one, "style"), _at_home(study, other, "style")))
    return [
        claim(FOLLOWS, "the base's own style kept", [a for a, _ in follows], [b for _, b in follows], ("with those of an ancestor", "with the others")),
        claim(KEEPS, "likeness to the trained style", [a for a, _ in keeps], [b for _, b in keeps], ("with those of the nearer model", "with the others")),
    ]


def _beside(study: Study) -> Iterator[tuple[Pair, Pair]]:
    """All ordered pairs of rows on one base that were trained on the same pictures on different bases."""
    whole = [pair for pair in study.pairs.values() if pair.curves and pair.row.home]
    for one in whole:
        for other in whole:
            if one.model == other.model and one.row.data is not None and one.row.data == other.row.data and one.row.home != other.row.home:
                yield one, other


def _home(pair: Pair) -> str:
    assert pair.row.home is not None
    return pair.row.home


def _at_home(study: Study, pair: Pair, measure: str) -> np.ndarray:
    """A measure at the strength that the row has at home, (items,)."""
    home = study.pairs.get((pair.row.name, _home(pair)))
    strength = study.home_strength(home if home is not None and home.curves else pair)
    return pair.curves[measure][study.strengths.index(strength)]
