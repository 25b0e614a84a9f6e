"""LoRA files of every format say what they are, and a bad one is refused with its reason."""

import json
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from core.lora import apply as lora
from core.lora import file as lora_file
from core.lora.blocks import BLOCKS, from_sai, parse_block_weights, to_sai
from core.lora.layer_delta import LayerDelta
from core.models import bases
from core.schema.errors import UserError
from tests.lora.parts import ALPHA, RANK


def test_a_file_tells_what_it_is(folder: Path) -> None:
    found = lora_file.read_lora_file(folder / "kohya.safetensors")
    assert (found.format, found.family, found.rank, found.scale) == ("kohya", "nano", RANK, ALPHA / RANK)
    assert found.components == ("unet", "text_encoder_2")
    assert (found.trigger, found.tags) == ("mystyle", {"1girl": 9, "smile": 3})
    assert [
        lora_file.read_lora_file(folder / f"{kind}.safetensors").format
        for kind in ("diffusers", "peft", "kohya-diffusers")
    ] == [
        "diffusers",
        "PEFT",
        "kohya",
    ]


@pytest.mark.parametrize(
    ("said", "scale"),
    [
        ({"lora_alpha": 8.0}, 2.0),
        ({"lora_alpha": 4.0, "use_rslora": True}, 2.0),
        ({"lora_alpha": 8.0, "alpha_pattern": {"to_q": 1.0}}, 2.0),
        ({}, 1.0),
    ],
)
def test_alpha_is_read_from_adapter_metadata(folder: Path, tmp_path: Path, said: dict, scale: float) -> None:
    save_file(
        load_file(folder / "peft.safetensors"),
        tmp_path / "peft.safetensors",
        {"lora_adapter_metadata": json.dumps(said)},
    )
    found = lora_file.read_lora_file(tmp_path / "peft.safetensors")
    assert found.scale == scale
    if "alpha_pattern" in said:
        assert {module.scale for module in found.modules if module.name.endswith("to_q")} == {0.25}


@pytest.mark.parametrize("alpha", [float("nan"), 10**400, 1e300])
def test_an_alpha_that_is_no_number_is_refused(folder: Path, tmp_path: Path, alpha: float) -> None:
    save_file(
        load_file(folder / "peft.safetensors"),
        tmp_path / "peft.safetensors",
        {"lora_adapter_metadata": json.dumps({"lora_alpha": alpha})},
    )
    with pytest.raises(UserError, match="has an invalid alpha"):
        lora_file.read_lora_file(tmp_path / "peft.safetensors")


def test_norms_are_those_of_the_whole_matrices(folder: Path) -> None:
    found = lora_file.read_lora_file(folder / "kohya.safetensors")
    tensors = found.load_tensors()
    for module, layer in lora.match_layers(bases.load_model("nano"), found)[::40]:
        parts = {part: tensors[key] for part, key in module.keys.items()}
        whole = module.scale * parts["up"].flatten(1) @ parts["down"].flatten(1)
        assert LayerDelta(layer, parts, module.scale).norm(layer.weight) == pytest.approx(
            float(whole.norm()), rel=1e-4
        )
    told = lora.measure_norms(bases.load_model("nano"), found)
    assert set(told) == {*BLOCKS, "other"}
    assert all(0 < value < 1 for value in told.values())


def test_names_of_the_original_are_diffusers_own(folder: Path) -> None:
    unet = bases.load_model("nano").unet
    names = [name.replace(".", "_") for name, layer in unet.named_modules() if hasattr(layer, "weight")]
    assert all(from_sai(to_sai(name)) == name for name in names)
    attentions = {
        k: v
        for k, v in load_file(folder / "kohya.safetensors").items()
        if "lora_unet" in k and "_resnets_" not in k and "_0_in_layers" not in k
    }
    save_file(attentions, folder / "attentions.safetensors")
    theirs = StableDiffusionXLPipeline.lora_state_dict(
        str(folder / "attentions.safetensors"), unet_config=unet.config
    )[0]
    # Without diffusers' older spelling.
    theirs = {
        re.sub(r"\.processor\.(\w+)_lora\.", r".\1.lora.", key).replace("to_out.lora", "to_out.0.lora")
        for key in theirs
    }
    flat = {
        key.removeprefix("unet.").partition(".lora_A")[0].partition(".lora.down")[0].replace(".", "_")
        for key in theirs
        if "lora_A" in key or "lora.down" in key
    }
    assert flat == {
        module.name for module in lora_file.read_lora_file(folder / "attentions.safetensors").modules
    }


@pytest.mark.parametrize("text", ["1,2", "a" * 9, "1," * 11, ",".join(["nan"] * 12), ",".join(["1e9"] * 12)])
def test_bad_block_weights_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"block weight|convert"):
        parse_block_weights(text)


def make_broken(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> Callable[[Path, Path], None]:
    return lambda good, bad: save_file(change(load_file(good)), bad)


def find_key(state: dict[str, torch.Tensor], suffix: str) -> str:
    return next(key for key in state if key.endswith(suffix))


def make_declared_matrix(size: int) -> bytes:
    """Return a file that claims to hold a matrix of this many bytes, and holds none."""
    header = {
        "lora_unet_a.lora_down.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    }
    told = json.dumps(header).encode()
    return struct.pack("<Q", len(told)) + told


REFUSED_FILES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "text": (lambda good, bad: bad.write_text("not a lora at all"), "is not a complete safetensors file"),
    "empty": (lambda good, bad: bad.write_bytes(b""), "is not a complete safetensors file"),
    "cut": (
        lambda good, bad: bad.write_bytes(good.read_bytes()[:-1000]),
        "is not a complete safetensors file",
    ),
    "header": (
        lambda good, bad: bad.write_bytes(struct.pack("<Q", 10**12) + b"{}"),
        "its header would be 1,000,000,000,000 bytes long",
    ),
    "declared": (
        lambda good, bad: bad.write_bytes(make_declared_matrix(5 * 2**30)),
        "is not a complete safetensors file",
    ),
    "pickle": (lambda good, bad: bad.write_bytes(pickle.dumps({"a": 1}, protocol=2)), "is a pickle"),
    "nan": (
        make_broken(
            lambda s: {**s, find_key(s, "lora_up.weight"): s[find_key(s, "lora_up.weight")] * float("nan")}
        ),
        "contains NaN or infinite",
    ),
    "zero": (
        make_broken(lambda s: {k: v * 0 if "lora_up" in k else v for k, v in s.items()}),
        "changes nothing",
    ),
    "half": (
        make_broken(lambda s: {k: v for k, v in s.items() if k != find_key(s, "lora_up.weight")}),
        "is incomplete: it only has lora_down",
    ),
    "rank": (
        make_broken(lambda s: {**s, find_key(s, "lora_down.weight"): torch.zeros(0, 48)}),
        "rank must be from 1",
    ),
    "alpha": (
        make_broken(lambda s: {**s, find_key(s, ".alpha"): torch.tensor(float("inf"))}),
        "has an invalid alpha",
    ),
    "loha": (
        make_broken(lambda s: {"lora_unet_a.hada_w1_a": torch.ones(2, 2)}),
        "is incomplete: it only has hada_w1_a",
    ),
    "boft of PEFT": (make_broken(lambda s: {"unet.a.boft_R": torch.ones(2, 2, 4, 4)}), "is PEFT's BOFT"),
    "ia3 of PEFT": (make_broken(lambda s: {"unet.a.ia3_l": torch.ones(2, 1)}), "is PEFT's IA3"),
    "t-lora": (
        make_broken(lambda s: {"lora_unet_a.lambda_layer": torch.ones(1, 4)}),
        "is a T-LoRA, whose rank changes with the step",
    ),
    "oft": (
        make_broken(lambda s: {"lora_unet_a.oft_blocks": torch.ones(2, 2, 3)}),
        r"has blocks of \(2, 2, 3\); OFT's are square",
    ),
    "boft": (
        make_broken(lambda s: {"lora_unet_a.oft_blocks": torch.ones(40, 2, 2, 2)}),
        r"has blocks of \(40, 2, 2, 2\); OFT's are square",
    ),
    "glora": (
        make_broken(
            lambda s: {f"lora_unet_a.{part}.weight": torch.ones(4, 2) for part in ("a1", "a2", "b1", "b2")}
        ),
        "has matrices that make no GLoRA",
    ),
    "ia3": (
        make_broken(
            lambda s: {"lora_unet_a.weight": torch.ones(2, 2), "lora_unet_a.on_input": torch.tensor(0)}
        ),
        r"has gains of \(2, 2\)",
    ),
    "a flag of two": (
        make_broken(
            lambda s: {"lora_unet_a.weight": torch.ones(2), "lora_unet_a.on_input": torch.tensor([0, 1])}
        ),
        "contains no known LoRA format",
    ),
    "a flag of NaN": (
        make_broken(
            lambda s: {
                "lora_unet_a.weight": torch.ones(2),
                "lora_unet_a.on_input": torch.tensor(float("nan")),
            }
        ),
        "has the flag on_input nan; it is 0 or 1",
    ),
    "an oft with magnitudes": (
        make_broken(
            lambda s: {"lora_unet_a.oft_blocks": torch.ones(1, 2, 2), "lora_unet_a.dora_scale": torch.ones(2)}
        ),
        "has magnitudes, which do not go with",
    ),
    "an oft of one block": (
        make_broken(lambda s: {"lora_unet_a.oft_blocks": torch.ones(1, 2561, 2561, dtype=torch.float16)}),
        "has blocks of 2561 outputs, which take too long to turn; the limit is 2560",
    ),
    "complex": (
        make_broken(lambda s: {**s, find_key(s, ".alpha"): torch.tensor(1j)}),
        "is a complex number",
    ),
    "an alpha of nothing": (
        make_broken(lambda s: {**s, "lora_unet_a.alpha": torch.tensor(1.0)}),
        r"contains 'lora_unet_a\.alpha', which is not supported",
    ),
    "lokr": (
        make_broken(lambda s: {"lora_unet_a.lokr_w1": torch.ones(2, 2)}),
        "is incomplete: it only has lokr_w1",
    ),
    "flux": (
        make_broken(lambda s: {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 2)}),
        "is made for Flux",
    ),
    "sd15": (
        make_broken(
            lambda s: {
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
                ".lora_down.weight": torch.ones(2, 768),
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
                ".lora_up.weight": torch.ones(320, 2),
            }
        ),
        r"is made for SD 1\.5",
    ),
    "magnitude": (
        make_broken(lambda s: {**s, "lora_unet_a.lora_magnitude_vector": torch.ones(2)}),
        "is incomplete: it only has lora_magnitude_vector",
    ),
    "more": (
        make_broken(lambda s: {**s, "lora_unet_a.scalar": torch.ones(1)}),
        r"contains 'lora_unet_a\.scalar', which is not supported",
    ),
    "none": (make_broken(lambda s: {"weight": torch.ones(2, 2)}), "contains no known LoRA format"),
    "elsewhere": (
        make_broken(
            lambda s: {
                "other.x.lora_down.weight": torch.ones(2, 2),
                "other.x.lora_up.weight": torch.ones(2, 2),
            }
        ),
        "belongs to no part of SDXL",
    ),
}


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_case_04_a_bad_file_is_refused_with_its_reason(folder: Path, tmp_path: Path, name: str) -> None:
    make, says = REFUSED_FILES[name]
    make(folder / "kohya.safetensors", tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=says):
        lora_file.read_lora_file(tmp_path / f"{name}.safetensors")
