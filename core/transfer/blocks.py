"""Find which blocks of a LoRA carry style and which carry content.

It reads a study whose rows are the single blocks of one LoRA.
"""

from core.lora.blocks import BLOCKS, parse_block_weights
from core.transfer.study import TransferPair, TransferStudy

MIN_BLOCK_LOSS = 0.02
"""Least loss of composition or of the base's own style, as a share, that is worth reporting."""


def describe_blocks(study: TransferStudy) -> list[str]:
    """Return a sentence for each LoRA that was split into blocks, on each base.

    The numbers are those at the greatest strength that all of them were made at.
    """
    groups: dict[tuple[str, str], dict[str, TransferPair]] = {}
    for pair in study.pairs.values():
        if pair.curves and (block := find_only_block(pair.row.lora.blocks)):
            groups.setdefault((pair.row.name.rpartition(":")[0], pair.model), {})[block] = pair
    return [_describe_model_blocks(name, model, by) for (name, model), by in groups.items() if len(by) > 1]


def find_only_block(blocks: str | None) -> str | None:
    """Return the only block that has a weight, or `None` if not exactly one has."""
    chosen = (
        [block for block, weight in parse_block_weights(blocks).by_block.items() if weight] if blocks else []
    )
    return chosen[0] if len(chosen) == 1 else None


def _describe_model_blocks(name: str, model: str, by: dict[str, TransferPair]) -> str:
    strength = max(set.intersection(*(set(pair.strengths) for pair in by.values())), key=abs)

    def average(measure: str) -> dict[str, float]:
        return {
            block: float(pair.curves[measure][pair.strengths.index(strength)].mean())
            for block, pair in by.items()
        }

    style = {block: 1 - kept for block, kept in average("own_style").items()}
    content = {block: 1 - kept for block, kept in average("composition").items()}
    effect = average("effect")
    if max(*style.values(), *content.values()) < MIN_BLOCK_LOSS:
        return (
            f"{name} on {model}: no single block changes style or composition "
            f"by {100 * MIN_BLOCK_LOSS:.0f} % at {strength:g}."
        )
    first, second = max(style, key=lambda block: style[block]), max(content, key=lambda block: content[block])
    order = sorted(BLOCKS, key=lambda block: -effect.get(block, 0.0))
    told = ", ".join(f"{block} {effect[block]:.2f}" for block in order if block in effect)
    return (
        f"{name} on {model} at {strength:g}: {first} changes the style most (by {100 * style[first]:.0f} %, "
        f"the composition by {100 * content[first]:.0f} %), {second} the composition "
        f"(by {100 * content[second]:.0f} %, the style by {100 * style[second]:.0f} %). "
        f"Effect by block: {told}."
    )
