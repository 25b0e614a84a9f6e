"""A rescaled file at strength 1 is the old one at another, for PEFT as for us; matrices stay."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from core.lora import apply as lora
from core.lora import edit
from core.lora import file as lora_file
from core.lora.blocks import STYLE_BLOCKS, find_block
from core.models import bases
from core.schema.errors import UserError
from core.schema.types import LoraUse
from core.system import paths
from core.system.tensor_files import calculate_sha256
from tests.lora.parts import predict_noise
from tests.model import fingerprint


@pytest.mark.parametrize("kind", ["diffusers", "peft", "kohya", "kohya-diffusers"])
def test_strength_one_is_what_another_was(
    peft: StableDiffusionXLPipeline, folder: Path, tmp_path: Path, kind: str
) -> None:
    """For every format we read, kohya's is written; PEFT at the old strength is the reference."""
    ours, before = bases.load_model("nano"), fingerprint()
    file = edit.rewrite_lora(
        lora_file.read_lora_file(folder / f"{kind}.safetensors"), tmp_path, multiply=2.75
    )
    assert lora_file.read_lora_file(file).format == "kohya"
    peft.unet.set_adapters("it", [2.75])
    with lora.apply_loras(ours, [LoraUse(path=str(file), strength=1.0)]):
        assert (predict_noise(ours) - predict_noise(peft)).abs().max() <= 1e-4
    assert fingerprint() == before


def test_diffusers_itself_reads_the_new_alpha(
    peft: StableDiffusionXLPipeline, folder: Path, tmp_path: Path
) -> None:
    """Another program that loads the file the stock way gets the same picture at strength 1."""
    file = edit.rewrite_lora(lora_file.read_lora_file(folder / "kohya.safetensors"), tmp_path, multiply=1.75)
    stock = StableDiffusionXLPipeline.from_pretrained(paths.locate(bases.find_model("nano").source))
    stock.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name="it")
    stock.set_adapters("it", [1.0])
    peft.unet.set_adapters("it", [1.75])
    assert (predict_noise(stock) - predict_noise(peft)).abs().max() <= 1e-4


def test_no_matrix_is_touched(folder: Path, tmp_path: Path) -> None:
    before = load_file(folder / "kohya.safetensors")
    after = load_file(
        edit.rewrite_lora(lora_file.read_lora_file(folder / "kohya.safetensors"), tmp_path, multiply=3)
    )
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value * 3 if key.endswith(".alpha") else value), key


def test_metadata_follows(folder: Path, tmp_path: Path) -> None:
    found = lora_file.read_lora_file(
        edit.rewrite_lora(
            lora_file.read_lora_file(folder / "kohya.safetensors"), tmp_path, multiply=2, hint="Strength 1"
        )
    )
    assert found.trigger == "mystyle", "what held for the old file and holds for the new one stays"
    assert found.tags == {"1girl": 9, "smile": 3}
    assert found.metadata["ss_network_alpha"] == "4"
    assert found.metadata["modelspec.usage_hint"] == "Strength 1"


def test_the_same_content_is_the_same_file(folder: Path, tmp_path: Path) -> None:
    """Otherwise every publication would change its repository."""
    source = lora_file.read_lora_file(folder / "kohya.safetensors")
    assert (
        len(
            {
                calculate_sha256(
                    edit.rewrite_lora(
                        source, tmp_path / str(time), multiply=2, hint='Strength 1, über 2 "zuviel"'
                    )
                )
                for time in range(5)
            }
        )
        == 1
    )


def test_blocks_that_are_kept(folder: Path, tmp_path: Path) -> None:
    source = lora_file.read_lora_file(folder / "kohya.safetensors")
    style = lora_file.read_lora_file(edit.rewrite_lora(source, tmp_path, keep="style"))
    assert {find_block(module.name) for module in style.modules} == set(STYLE_BLOCKS)
    half = lora_file.read_lora_file(edit.rewrite_lora(source, tmp_path, blocks="0,0,0,0,0,0,0.5,0,0,0,0,1"))
    assert {(find_block(module.name), module.alpha) for module in half.modules} == {
        ("OUT00", 1.0),
        ("OUT05", 2.0),
    }


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"multiply": 0}, "multiply: 0 is not valid"),
        ({"multiply": float("nan")}, "multiply: nan"),
        ({"multiply": True}, "multiply: True"),
        ({"keep": "face"}, "keep: 'face' is not valid"),
        ({"blocks": "1,2"}, "blocks: '1,2'"),
        ({"blocks": ",".join(["0"] * 12)}, "kohya.safetensors has nothing in the chosen blocks"),
    ],
)
def test_what_is_not_allowed_writes_nothing(folder: Path, tmp_path: Path, asked: dict, why: str) -> None:
    with pytest.raises(UserError) as refused:
        edit.rewrite_lora(lora_file.read_lora_file(folder / "kohya.safetensors"), tmp_path, **asked)
    assert why in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_the_sidecar_names_the_strength_that_the_file_has(folder: Path) -> None:
    report = {
        "recommended": 2.75,
        "sweet_spot": [2.0, 3.5],
        "onset": 1.0,
        "breakdown": 4.0,
        "confidence": 0.9,
        "seeds": [1, 2],
        "model": "nano",
        "why": "",
    }
    found = lora_file.read_lora_file(folder / "kohya.safetensors")
    assert edit.build_sidecar(found, report)["preferred weight"] == 2.75
    after = edit.build_sidecar(found, report, multiply=2.75)
    assert (after["preferred weight"], after["activation text"]) == (1.0, "mystyle")
    assert after["description"] == "Strength 1, sweet spot 0.727 to 1.27, measured on nano."
    none = edit.build_sidecar(
        found,
        {
            **report,
            "recommended": None,
            "sweet_spot": None,
            "why": "No sweet spot yet: the effect is still growing at 3.5.",
        },
    )
    assert (none["preferred weight"], none["description"]) == (
        0.0,
        "Measured on nano: No sweet spot yet: the effect is still growing at 3.5.",
    )
