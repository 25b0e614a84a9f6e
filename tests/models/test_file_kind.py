"""A file is what its header says, whatever it is called; a checkpoint that is none says what it is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.models.file_kind import UNET_PREFIX, find_missing_parts, find_obstacle, find_vae_obstacle
from tests.models.parts import build_full_size_parts

Tensors = dict[str, torch.Tensor]
ATTENTION = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
PARTS = {
    "first_stage_model.decoder.conv_in.weight": torch.ones(1),
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": torch.ones(1),
    "conditioner.embedders.1.model.ln_final.weight": torch.ones(1),
}


def make_checkpoint(channels: int = 4, width: int = 2048, **parts: torch.Tensor) -> Tensors:
    return {
        f"{UNET_PREFIX}input_blocks.0.0.weight": torch.ones(8, channels, 3, 3),
        f"{UNET_PREFIX}{ATTENTION}": torch.ones(8, width),
        **(parts or PARTS),
    }


def leave_out(start: str) -> Tensors:
    return {key: value for key, value in make_checkpoint().items() if not key.startswith(start)}


# Half of them are called what they are not.
FILES: dict[str, tuple[str, Tensors, str | None]] = {
    "sdxl": ("SDXL_inpainting_lora.safetensors", make_checkpoint(), None),
    "v-pred": ("noob-eps.safetensors", {**make_checkpoint(), "v_pred": torch.ones(0)}, None),
    "with ema": ("refiner.safetensors", {**make_checkpoint(), "model_ema.decay": torch.ones(1)}, None),
    "position ids": (
        "vae.safetensors",
        {**make_checkpoint(), "conditioner.embedders.0.position_ids": torch.ones(1)},
        None,
    ),
    "inpainting": (
        "base.safetensors",
        make_checkpoint(channels=9),
        "is an inpainting model (9 input channels",
    ),
    "editing": (
        "base.safetensors",
        make_checkpoint(channels=8),
        "is an image-editing model (8 input channels",
    ),
    "refiner": ("base.safetensors", make_checkpoint(width=1280), "is made for the SDXL refiner"),
    "sd 1.5": ("my-sdxl.safetensors", make_checkpoint(width=768), "is made for SD 1.5"),
    "sd 2": ("sdxl-lora.safetensors", make_checkpoint(width=1024), "is made for SD 2"),
    "no vae": ("full.safetensors", leave_out("first_stage_model."), None),
    "pruned": ("full.safetensors", leave_out("conditioner."), None),
    "scaled fp8": (
        "full.safetensors",
        {**make_checkpoint(), "scaled_fp8": torch.ones(2)},
        "holds fp8 weights with scales",
    ),
    "unet": ("vae.safetensors", {"input_blocks.0.0.weight": torch.ones(8, 4, 3, 3)}, "is a U-Net alone"),
    "diffusers unet": ("a.safetensors", {"down_blocks.0.x.weight": torch.ones(1)}, "is a U-Net alone"),
    "vae": ("checkpoint.safetensors", {"decoder.conv_in.weight": torch.ones(8, 4, 3, 3)}, "is a VAE alone"),
    "vae of a checkpoint": ("a.safetensors", {"first_stage_model.x": torch.ones(1)}, "is a VAE alone"),
    "encoder": ("unet.safetensors", {"text_model.x": torch.ones(1)}, "is a text encoder alone"),
    "lora": (
        "checkpoint.safetensors",
        {"lora_unet_middle_block_1_proj_in.lora_down.weight": torch.ones(4, 8)},
        "is a LoRA. Put it into models/loras",
    ),
    "peft": (
        "checkpoint.safetensors",
        {"base_model.model.unet.mid_block.x.lora_A.weight": torch.ones(4, 8)},
        "is a LoRA",
    ),
    "embedding": (
        "lora.safetensors",
        {"clip_l": torch.ones(4, 768), "clip_g": torch.ones(4, 1280)},
        "is an embedding",
    ),
    "flux": ("sdxl.safetensors", {"double_blocks.0.img_attn.qkv.weight": torch.ones(1)}, "is a Flux model"),
    "sd 3": ("sdxl.safetensors", {f"{UNET_PREFIX}joint_blocks.0.x": torch.ones(1)}, "is an SD 3 model"),
    "nothing": ("sdxl.safetensors", {"x": torch.ones(1)}, "holds no U-Net"),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_header_decides(kind: str, tmp_path: Path) -> None:
    name, tensors, said = FILES[kind]
    save_file(tensors, tmp_path / name)
    found = find_obstacle(tmp_path / name)
    assert found is None if said is None else (found or "").startswith(said), found


@pytest.mark.parametrize(
    ("start", "parts"),
    [
        ("nothing", set()),
        ("first_stage_model.", {"vae"}),
        ("conditioner.embedders.1.", {"text_encoder_2"}),
        ("conditioner.", {"text_encoder", "text_encoder_2"}),
    ],
)
def test_the_parts_that_a_checkpoint_lacks_are_named(start: str, parts: set[str], tmp_path: Path) -> None:
    save_file(leave_out(start), tmp_path / "a.safetensors")
    assert find_missing_parts(tmp_path / "a.safetensors").keys() == parts


VAES: dict[str, tuple[Tensors, str | None]] = {
    "vae": ({"decoder.conv_in.weight": torch.ones(8, 4, 3, 3)}, None),
    "of a checkpoint": ({"first_stage_model.decoder.conv_in.weight": torch.ones(8, 4, 3, 3)}, None),
    "flux": ({"decoder.conv_in.weight": torch.ones(8, 16, 3, 3)}, "is a VAE of 16 channels"),
    "checkpoint": (
        {**make_checkpoint(), "first_stage_model.decoder.conv_in.weight": torch.ones(8, 4, 3, 3)},
        "is a checkpoint",
    ),
    "lora": ({"lora_unet_x.lora_down.weight": torch.ones(4, 8)}, "is no VAE"),
}


@pytest.mark.parametrize("kind", VAES)
def test_the_header_decides_what_a_vae_is(kind: str, tmp_path: Path) -> None:
    tensors, said = VAES[kind]
    save_file(tensors, tmp_path / "sdxl_vae.safetensors")
    found = find_vae_obstacle(tmp_path / "sdxl_vae.safetensors")
    assert found is None if said is None else (found or "").startswith(said), found


def test_nanos_checkpoint_is_one(checkpoint: Path) -> None:
    assert load_file(checkpoint)
    assert find_obstacle(checkpoint) is None


def test_a_part_of_the_full_size_model_is_named(tmp_path: Path) -> None:
    """The names are those of real files: of diffusers' own parts."""
    wanted = {
        "unet": "is a U-Net alone",
        "vae": "is a VAE alone",
        "text_encoder_2": "is a text encoder alone",
    }
    for part, said in wanted.items():
        keys = build_full_size_parts()[part].state_dict()
        save_file({key: torch.ones(1) for key in keys}, tmp_path / f"{part}.safetensors")
        assert (find_obstacle(tmp_path / f"{part}.safetensors") or "").startswith(said), part
