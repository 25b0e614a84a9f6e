"""Which base model goes back to which: the presets' tree, and how far two models are from each other in it."""

from collections.abc import Iterable, Mapping

from core.types import Model

Table = Mapping[str, Model]


def ancestors(name: str, table: Table) -> dict[str, int]:
    """Each model that this one goes back to, itself among them -> steps to it."""
    found, edge = {name: 0}, [name]
    while edge:
        child = edge.pop(0)
        for parent in table[child].parents if child in table else ():
            if parent not in found:
                found[parent] = found[child] + 1
                edge.append(parent)
    return found


def distance(one: str, other: str, table: Table) -> int | None:
    """Steps from one model to the other by way of their nearest common ancestor; `None` if they have none."""
    mine, its = ancestors(one, table), ancestors(other, table)
    return min((mine[name] + its[name] for name in mine if name in its), default=None)


def relation(home: str, model: str, table: Table) -> str:
    """What `home` is to `model`: `home`, `ancestor`, `descendant`, `relative` or `stranger`."""
    if home == model:
        return "home"
    if home in ancestors(model, table):
        return "ancestor"
    if model in ancestors(home, table):
        return "descendant"
    return "relative" if distance(home, model, table) is not None else "stranger"


def tree(names: Iterable[str], table: Table) -> list[str]:
    """The models and what they go back to as indented lines; one with several parents stands below each."""
    shown = {name for own in names for name in ancestors(own, table)}
    children = {name: sorted(child for child in shown if child in table and name in table[child].parents) for name in shown}

    def below(name: str, depth: int) -> list[str]:
        return [f"{'   ' * depth}{'└─ ' if depth else ''}{name}", *(line for child in children[name] for line in below(child, depth + 1))]

    roots = sorted(name for name in shown if name not in table or not table[name].parents)
    return [line for root in roots for line in below(root, 0)]
