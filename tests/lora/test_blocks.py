"""`lbw=` is read as A1111's extension reads it on SDXL, for each number of weights and each preset."""

from pathlib import Path

import pytest

from core.lora.blocks import PRESETS, parse_block_weights, to_sai
from core.models import bases
from core.schema.types import LoraUse
from tests.lora.parts import compute_changes

SD15 = ["BASE", *(f"IN{i:02d}" for i in range(12)), "M00", *(f"OUT{i:02d}" for i in range(12))]
"""The extension's 26 places, on which it puts the numbers of every shorter form."""
FORMS = {
    17: ["BASE", *(f"IN{i:02d}" for i in (1, 2, 4, 5, 7, 8)), "M00", *(f"OUT{i:02d}" for i in range(3, 12))],
    20: ["BASE", *(f"IN{i:02d}" for i in range(9)), "M00", *(f"OUT{i:02d}" for i in range(9))],
    26: SD15,
}
ON = {
    "NONE": "",
    "ALL": "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08",
    "INS": "BASE IN01 IN02 IN04",
    "IND": "BASE IN05 IN07 IN08",
    "INALL": "BASE IN01 IN02 IN04 IN05 IN07 IN08",
    "MIDD": "BASE IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06",
    "OUTD": "BASE OUT03 OUT04 OUT05 OUT06",
    "OUTS": "BASE OUT07 OUT08",
    "OUTALL": "BASE OUT03 OUT04 OUT05 OUT06 OUT07 OUT08",
}
"""The blocks of SDXL that each preset leaves on; its numbers for OUT09 to OUT11 have no block there."""


def name_block(path: str) -> str | None:
    """Return the extension's block of a layer of the U-Net, by the original's name."""
    name = to_sai(path.replace(".", "_"))
    if name.startswith("middle_block_"):
        return "M00"
    side, _, rest = name.partition("_blocks_")
    return f"{ {'input': 'IN', 'output': 'OUT'}[side] }{int(rest.split('_')[0]):02d}" if rest else None


@pytest.mark.parametrize("many", FORMS)
def test_each_number_is_for_the_block_of_its_name(many: int) -> None:
    """A block without a number is off, and what belongs to no block stays as it is."""
    numbers = [1 + place / 100 for place in range(many)]
    weights = parse_block_weights(",".join(map(str, numbers)))
    by_name = dict(zip(FORMS[many], numbers, strict=True))
    for path, layer in bases.load_model("nano").unet.named_modules():
        if hasattr(layer, "weight"):
            block = name_block(path)
            assert weights.get_weight("unet", path.replace(".", "_")) == (
                by_name.get(block, 0) if block else 1
            )
    assert weights.get_weight("text_encoder", "encoder_layers_0_mlp_fc1") == numbers[0]


@pytest.mark.parametrize("preset", [*ON, "ALL0.5"])
def test_a_preset_changes_the_blocks_that_it_names(preset: str, folder: Path) -> None:
    use = LoraUse(path=str(folder / "kohya.safetensors"), blocks=preset)
    every = compute_changes([LoraUse(path=use.path)])
    on = set(ON["ALL" if preset == "ALL0.5" else preset].split())
    for path, change in compute_changes([use]).items():
        share = (0.5 if preset == "ALL0.5" else 1) if name_block(path) in {*on, None} else 0
        assert (change - share * every[path]).abs().max() <= 1e-6, path
    assert {*ON, "ALL0.5"} == PRESETS.keys()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("XLALL", "1 block weights; SDXL has 12"),
        (",".join(["1"] * 61), "61 block weights"),
        (",".join(["R"] * 12), "'R' is no block weight; random and inherited weights are not read"),
        (",".join(["1", "X+0.5"] + ["1"] * 10), r"'X\+0.5' is no block weight"),
    ],
)
def test_what_is_not_read_is_one_sentence(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_block_weights(text)
