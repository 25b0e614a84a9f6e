"""Which blocks of a LoRA carry style and which content: a study whose rows are one LoRA's blocks, read for that."""

from core.blocks import BLOCKS, weights
from core.transfer.study import Pair, Study

SEEN = 0.02
"""Least loss of composition or of the base's own style, of 1, that is worth a name."""


def blocks(study: Study) -> list[str]:
    """For each LoRA that was taken apart, on each base, a sentence; at the greatest strength."""
    groups: dict[tuple[str, str], dict[str, Pair]] = {}
    for pair in study.pairs.values():
        if pair.curves and (block := only(pair.row.lora.blocks)):
            groups.setdefault((pair.row.name.rpartition(":")[0], pair.model), {})[block] = pair
    return [_sentence(name, model, by) for (name, model), by in groups.items() if len(by) > 1]


def only(said: str | None) -> str | None:
    """The one block that has a weight, if it is one."""
    chosen = [block for block, weight in weights(said).items() if weight] if said else []
    return chosen[0] if len(chosen) == 1 else None


def _sentence(name: str, model: str, by: dict[str, Pair]) -> str:
    style = {block: 1 - float(pair.curves["own_style"][-1].mean()) for block, pair in by.items()}
    content = {block: 1 - float(pair.curves["composition"][-1].mean()) for block, pair in by.items()}
    effect = {block: float(pair.curves["effect"][-1].mean()) for block, pair in by.items()}
    if max(*style.values(), *content.values()) < SEEN:
        return f"{name} on {model}: no block by itself changes style or composition by {100 * SEEN:.0f} %."
    first, second = max(style, key=lambda block: style[block]), max(content, key=lambda block: content[block])
    order = sorted(BLOCKS, key=lambda block: -effect.get(block, 0.0))
    told = ", ".join(f"{block} {effect[block]:.2f}" for block in order if block in effect)
    return (
        f"{name} on {model}: {first} changes the style most (by {100 * style[first]:.0f} %, the composition by {100 * content[first]:.0f} %), "
        f"{second} the composition (by {100 * content[second]:.0f} %, the style by {100 * style[second]:.0f} %). Effect by block: {told}."
    )
