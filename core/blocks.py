"""SDXL's U-Net by its sets of names: diffusers', the original's (SAI) that kohya's files use, and the 12 of block weights.

A module's flat name is its path in diffusers with `_` for `.`: `down_blocks_1_attentions_0_proj_in`. The map holds for
any U-Net of SDXL's topology, nano among them.
"""

import re

BLOCKS = {
    "BASE": "text encoders",
    "IN04": "down_blocks_1_attentions_0",
    "IN05": "down_blocks_1_attentions_1",
    "IN07": "down_blocks_2_attentions_0",
    "IN08": "down_blocks_2_attentions_1",
    "M00": "mid_block_attentions_0",
    "OUT00": "up_blocks_0_attentions_0",
    "OUT01": "up_blocks_0_attentions_1",
    "OUT02": "up_blocks_0_attentions_2",
    "OUT03": "up_blocks_1_attentions_0",
    "OUT04": "up_blocks_1_attentions_1",
    "OUT05": "up_blocks_1_attentions_2",
}
"""The 12 weights of sd-webui-lora-block-weight for SDXL, in their order, and what they stand for."""
CONTENT, STYLE = ("OUT00",), ("OUT01",)
"""The blocks that B-LoRA (Frenkel et al. 2024, arXiv 2403.14572) finds to hold content and style."""

_RESNET = {
    "in_layers_0": "norm1", "in_layers_2": "conv1", "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2", "out_layers_3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_WHOLE = {
    "input_blocks_0_0": "conv_in", "input_blocks_3_0_op": "down_blocks_0_downsamplers_0_conv", "input_blocks_6_0_op": "down_blocks_1_downsamplers_0_conv",
    "output_blocks_2_2_conv": "up_blocks_0_upsamplers_0_conv", "output_blocks_5_2_conv": "up_blocks_1_upsamplers_0_conv",
    "time_embed_0": "time_embedding_linear_1", "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1", "label_emb_0_2": "add_embedding_linear_2", "out_2": "conv_out", "out_0": "conv_norm_out",
}  # fmt: skip


def from_sai(name: str) -> str:
    """The flat diffusers name of a flat SAI name: `input_blocks_4_1_proj_in` -> `down_blocks_1_attentions_0_proj_in`.

    A name that is not SAI's comes back as it is.
    """
    if name in _WHOLE:
        return _WHOLE[name]
    if match := re.fullmatch(r"middle_block_([012])_(.+)", name):
        part, rest = int(match[1]), match[2]
        return f"mid_block_attentions_0_{rest}" if part == 1 else f"mid_block_resnets_{part // 2}_{_RESNET.get(rest, rest)}"
    if not (match := re.fullmatch(r"(input|output)_blocks_(\d+)_([01])_(.+)", name)):
        return name
    side, number, part, rest = match[1], int(match[2]), int(match[3]), match[4]
    block, layer = divmod(number - 1 if side == "input" else number, 3)
    kind = "attentions" if part else "resnets"
    return f"{'down' if side == 'input' else 'up'}_blocks_{block}_{kind}_{layer}_{rest if part else _RESNET.get(rest, rest)}"


def to_sai(name: str) -> str:
    """The flat SAI name of a flat diffusers name; the inverse of `from_sai`."""
    for theirs, ours in _WHOLE.items():
        if name == ours:
            return theirs
    resnet = {ours: theirs for theirs, ours in _RESNET.items()}
    if match := re.fullmatch(r"mid_block_(attentions|resnets)_(\d)_(.+)", name):
        return f"middle_block_1_{match[3]}" if match[1] == "attentions" else f"middle_block_{2 * int(match[2])}_{resnet.get(match[3], match[3])}"
    if match := re.fullmatch(r"(down|up)_blocks_(\d)_(attentions|resnets)_(\d)_(.+)", name):
        number = 3 * int(match[2]) + int(match[4]) + (match[1] == "down")
        part, rest = (1, match[5]) if match[3] == "attentions" else (0, resnet.get(match[5], match[5]))
        return f"{'input' if match[1] == 'down' else 'output'}_blocks_{number}_{part}_{rest}"
    return name


def block_of(name: str) -> str | None:
    """Which of the 12 a U-Net module belongs to, by its flat diffusers name; `None` for one that has no weight of its own.

    A resnet goes with the attention beside it, as `input_blocks.4.0` and `.4.1` do.
    """
    if name.startswith("mid_block_"):
        return "M00"
    upsampler = re.match(r"up_blocks_([01])_upsamplers_0", name)  # output_blocks_2_2 and 5_2
    beside = f"up_blocks_{upsampler[1]}_attentions_2_" if upsampler else name.replace("_resnets_", "_attentions_")
    return next((block for block, start in BLOCKS.items() if beside.startswith(f"{start}_")), None)


def weights(text: str) -> dict[str, float]:
    """`lbw=`: 12 numbers, or the 20 of the longer form, by the names of `BLOCKS`. Raises `ValueError`.

    A word stands for a choice: `ALL`, `CONTENT`, `STYLE`.
    """
    words = {"ALL": tuple(BLOCKS), "CONTENT": CONTENT, "STYLE": STYLE}
    if text.strip().upper() in words:
        return {block: float(block in words[text.strip().upper()]) for block in BLOCKS}
    numbers = [float(part) for part in text.split(",")]
    places = {12: list(BLOCKS), 20: ["BASE", *(f"IN{i:02d}" for i in range(9)), "M00", *(f"OUT{i:02d}" for i in range(9))]}
    if len(numbers) not in places:
        raise ValueError(f"{len(numbers)} block weights; SDXL has 12 (or 20): {', '.join(BLOCKS)}")
    if not all(abs(number) <= 100 for number in numbers):  # false for NaN
        raise ValueError("a block weight is not a number from -100 to 100")
    said = dict(zip(places[len(numbers)], numbers, strict=True))
    return {block: said[block] for block in BLOCKS}
