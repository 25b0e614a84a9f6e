"""Translate between the three naming schemes of SDXL's U-Net.

They are diffusers', the original's (SAI), which kohya's files use, and the 12 of block weights.
A module's flat name is its path in diffusers with `_` for `.`, such as
`down_blocks_1_attentions_0_proj_in`. The mapping holds for any U-Net of SDXL's topology, nano's
included.
"""

import re
from typing import NamedTuple

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
"""The 12 blocks of sd-webui-lora-block-weight for SDXL, in its order -> what each stands for."""
ALL_BLOCKS = ("BASE", *(f"IN{i:02d}" for i in range(9)), "M00", *(f"OUT{i:02d}" for i in range(9)))
"""The 20 blocks of its longer form; those that are not among the 12 have no attention."""
BLOCK_FORMS = {
    12: tuple(BLOCKS),
    17: ("BASE", *(f"IN{i:02d}" for i in (1, 2, 4, 5, 7, 8)), "M00", *(f"OUT{i:02d}" for i in range(3, 12))),
    20: ALL_BLOCKS,
    26: ("BASE", *(f"IN{i:02d}" for i in range(12)), "M00", *(f"OUT{i:02d}" for i in range(12))),
}
"""How many numbers a value has -> the blocks that they are for, as the extension reads it for any model.

17 and 26 are SD 1.5's: on SDXL a number counts for the block of its name, and a block that has none is
off, such as OUT00 to OUT02 with 17.
"""
PRESETS = {
    "NONE": "0," * 16 + "0",
    "ALL": "1," * 16 + "1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": "0.5," * 16 + "0.5",
}
"""The presets that the extension comes with, each with 17 numbers."""
CONTENT_BLOCKS, STYLE_BLOCKS = ("OUT00",), ("OUT01",)
"""The blocks that hold content and style by B-LoRA (Frenkel et al. 2024, arXiv 2403.14572)."""

_RESNET_LAYERS = {
    "in_layers_0": "norm1", "in_layers_2": "conv1", "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2", "out_layers_3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_SINGLE_LAYERS = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_3_0_op": "down_blocks_0_downsamplers_0_conv",
    "input_blocks_6_0_op": "down_blocks_1_downsamplers_0_conv",
    "output_blocks_2_2_conv": "up_blocks_0_upsamplers_0_conv",
    "output_blocks_5_2_conv": "up_blocks_1_upsamplers_0_conv",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "out_2": "conv_out",
    "out_0": "conv_norm_out",
}


def from_sai(name: str) -> str:
    """Translate a flat SAI name into the flat diffusers name.

    For example `input_blocks_4_1_proj_in` -> `down_blocks_1_attentions_0_proj_in`. A name that is
    not SAI's is returned unchanged.
    """
    if name in _SINGLE_LAYERS:
        return _SINGLE_LAYERS[name]
    if match := re.fullmatch(r"middle_block_([012])_(.+)", name):
        part, rest = int(match[1]), match[2]
        return (
            f"mid_block_attentions_0_{rest}"
            if part == 1
            else f"mid_block_resnets_{part // 2}_{_RESNET_LAYERS.get(rest, rest)}"
        )
    if not (match := re.fullmatch(r"(input|output)_blocks_(\d+)_([01])_(.+)", name)):
        return name
    side, number, part, rest = match[1], int(match[2]), int(match[3]), match[4]
    block, layer = divmod(number - 1 if side == "input" else number, 3)
    kind = "attentions" if part else "resnets"
    return (
        f"{'down' if side == 'input' else 'up'}_blocks_{block}_{kind}_{layer}"
        f"_{rest if part else _RESNET_LAYERS.get(rest, rest)}"
    )


def to_sai(name: str) -> str:
    """Translate a flat diffusers name into the flat SAI name; the inverse of `from_sai`."""
    for theirs, ours in _SINGLE_LAYERS.items():
        if name == ours:
            return theirs
    resnet = {ours: theirs for theirs, ours in _RESNET_LAYERS.items()}
    if match := re.fullmatch(r"mid_block_(attentions|resnets)_(\d)_(.+)", name):
        return (
            f"middle_block_1_{match[3]}"
            if match[1] == "attentions"
            else f"middle_block_{2 * int(match[2])}_{resnet.get(match[3], match[3])}"
        )
    if match := re.fullmatch(r"(down|up)_blocks_(\d)_(attentions|resnets)_(\d)_(.+)", name):
        number = 3 * int(match[2]) + int(match[4]) + (match[1] == "down")
        part, rest = (1, match[5]) if match[3] == "attentions" else (0, resnet.get(match[5], match[5]))
        return f"{'input' if match[1] == 'down' else 'output'}_blocks_{number}_{part}_{rest}"
    return name


def find_block(name: str) -> str | None:
    """Return which of the 12 blocks a U-Net module belongs to, by its flat diffusers name.

    `None` for a module that has no block weight. A resnet belongs to the block of the attention
    beside it, as `input_blocks.4.0` and `.4.1` do.
    """
    if name.startswith("mid_block_"):
        return "M00"
    upsampler = re.match(r"up_blocks_([01])_upsamplers_0", name)  # output_blocks_2_2 and 5_2
    beside = (
        f"up_blocks_{upsampler[1]}_attentions_2_" if upsampler else name.replace("_resnets_", "_attentions_")
    )
    return next((block for block, start in BLOCKS.items() if beside.startswith(f"{start}_")), None)


def find_exact_block(name: str) -> str | None:
    """Return which of `ALL_BLOCKS` a U-Net module belongs to, by its flat diffusers name.

    `None` for the layers before and after all blocks, such as `time_embedding`.
    """
    place = re.match(r"(input|output)_blocks_(\d+)_", f"{to_sai(name)}_")
    if place:
        return f"{'IN' if place[1] == 'input' else 'OUT'}{int(place[2]):02d}"
    return "M00" if name.startswith("mid_block_") else None


class BlockWeights(NamedTuple):
    """The value of `lbw=`."""

    by_block: dict[str, float]
    """Weights by the names of `ALL_BLOCKS`, or of SD 1.5's; a block that is not named is off."""
    other: float
    """The weight of what belongs to no block."""

    def get_weight(self, component: str, name: str) -> float:
        """Return the weight of a module, by its component and its flat diffusers name."""
        block = find_exact_block(name) if component == "unet" else "BASE"
        return self.by_block.get(block, 0.0) if block else self.other


def parse_block_weights(text: str) -> BlockWeights:
    """Parse the value of `lbw=` as sd-webui-lora-block-weight reads it.

    The value is 12, 17, 20 or 26 numbers, the name of one of its presets, or one of our own words
    `CONTENT` and `STYLE`. What belongs to no block stays as it is, and is off with 12 numbers and our
    words. Raises `ValueError` for anything else.
    """
    word = text.strip().upper()
    own = {"CONTENT": CONTENT_BLOCKS, "STYLE": STYLE_BLOCKS}
    if word in own:
        return BlockWeights(dict.fromkeys(own[word], 1.0), 0.0)
    parts = PRESETS.get(word, text).split(",")
    if len(parts) not in BLOCK_FORMS:
        raise ValueError(
            f"{len(parts)} block weights; SDXL has 12 ({', '.join(BLOCKS)}) or 20, and 17 and 26 of SD 1.5 "
            f"are read. The presets are {', '.join((*own, *PRESETS))}"
        )
    numbers = [_parse_weight(part) for part in parts]
    return BlockWeights(
        dict(zip(BLOCK_FORMS[len(parts)], numbers, strict=True)), float(len(parts) != len(BLOCKS))
    )


def _parse_weight(text: str) -> float:
    if text.strip().upper()[:1] in ("R", "U", "X"):
        raise ValueError(
            f"{text.strip()[:20]!r} is no block weight; random and inherited weights are not read"
        )
    number = float(text)
    if not abs(number) <= 100:  # true for NaN
        raise ValueError("a block weight is not a number from -100 to 100")
    return number
