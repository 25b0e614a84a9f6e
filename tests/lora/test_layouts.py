"""Layouts that trainers and programs write: each key finds its layer, and alpha its place."""

import json
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from core.generate.request import PictureForm, fill_form
from core.lora import apply as lora
from core.lora import file as lora_file
from core.models import bases, from_hub
from core.schema.errors import UserError
from core.sweep.cell_cache import hash_request
from core.system.tensor_files import SETTLE_SECONDS
from tabs.shared import hub_fetch
from tests.hub.server_state import Hub
from tests.lora.parts import ALPHA, RANK

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("stem", "component", "path"),
    [
        ("lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", "unet", ATTENTION),
        ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k", "unet", ATTENTION),
        ("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k", "unet", ATTENTION),
        ("diffusion_model.middle_block.0.in_layers.2", "unet", "mid_block.resnets.0.conv1"),
        ("diffusion_model.output_blocks.5.2.conv", "unet", "up_blocks.1.upsamplers.0.conv"),
        ("diffusion_model.time_embed.2", "unet", "time_embedding.linear_2"),
        ("diffusion_model.out.2", "unet", "conv_out"),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k", "unet", ATTENTION),
        (ATTENTION, "unet", ATTENTION),
        ("add_embedding.linear_1", "unet", "add_embedding.linear_1"),
        (f"base_model.model.unet.{ATTENTION}", "unet", ATTENTION),
        (f"base_model.model.{ATTENTION}", "unet", ATTENTION),
        (f"text_encoders.clip_l.transformer.text_model.{TEXT}", "text_encoder", TEXT),
        (f"text_encoders.clip_g.transformer.text_model.{TEXT}", "text_encoder_2", f"text_model.{TEXT}"),
        (f"text_encoders.clip_g.text_model.{TEXT}", "text_encoder_2", f"text_model.{TEXT}"),
    ],
)
@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_down.weight", "lora_up.weight"),
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.style.weight", "lora_B.style.weight"),
    ],
)
def test_a_key_finds_its_layer(
    stem: str, component: str, path: str, down: str, up: str, tmp_path: Path
) -> None:
    ours = bases.load_model("nano")
    layer = getattr(ours, component).get_submodule(path)
    out, inputs, *kernel = layer.weight.shape
    tensors = {
        f"{stem}.{down}": torch.full((2, inputs, *kernel), 0.1),
        f"{stem}.{up}": torch.full((out, 2, *[1] * len(kernel)), 0.1),
    }
    save_file(tensors, tmp_path / "it.safetensors")
    ((_, found),) = lora.match_layers(ours, lora_file.read_lora_file(tmp_path / "it.safetensors"))
    assert found is layer


def test_peft_stores_alpha_beside_the_file(folder: Path, tmp_path: Path) -> None:
    """Read as alpha = rank, a LoRA of rank 16 and alpha 4 would be four times too strong."""
    file = tmp_path / "adapter_model.safetensors"
    save_file(load_file(folder / "peft.safetensors"), file)
    unknown = lora_file.read_lora_file(file)
    assert unknown.scale == 1
    assert "alpha stands in an adapter_config.json that is not beside the file" in unknown.notes[0]
    assert unknown.notes[0] in lora.describe_expected_strength(unknown)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "alpha_pattern": {r"^.*x$": 1, "to_q": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="only names of layers are read"):
        lora_file.read_lora_file(file)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "alpha_pattern": {"to_q": 1}}))
    told = lora_file.read_lora_file(file)
    assert (told.scale, told.notes) == (8 / RANK, ())
    assert {module.scale for module in told.modules if module.name.endswith("to_q")} == {1 / RANK}


@pytest.mark.parametrize("inside", ["", "unet/"])
def test_the_hub_brings_the_config_too(inside: str, folder: Path, tmp_path: Path, hub_server: Hub) -> None:
    """From the file's folder, or from the one above it."""
    api, file = HfApi(token="hf_ann"), tmp_path / "adapter_model.safetensors"
    save_file(load_file(folder / "peft.safetensors"), file)
    api.create_repo("ann/peft")
    api.upload_file(path_or_fileobj=file, path_in_repo=f"{inside}{file.name}", repo_id="ann/peft")
    config = json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8}).encode()
    api.upload_file(path_or_fileobj=config, path_in_repo="adapter_config.json", repo_id="ann/peft")
    assert lora_file.read_lora_file(from_hub.fetch_lora("ann/peft")).scale == 8 / RANK
    *_, (_, shown) = hub_fetch.fetch_lora_to_file("ann/peft", None)
    assert lora_file.read_lora_file(Path(shown)).scale == 8 / RANK, "the page's copy has lost it"


def test_a_config_that_comes_later_is_read(folder: Path, tmp_path: Path) -> None:
    """The page asks for it; without a restart, the pictures that a sweep kept are of another strength."""
    file = tmp_path / "style.safetensors"
    save_file(load_file(folder / "peft.safetensors"), file)
    request = fill_form(PictureForm(prompt="1girl", lora_file=str(file), seed=1)).request
    time.sleep(2 * SETTLE_SECONDS)
    assert lora.get_lora_file(str(file)).scale == 1
    before = hash_request(request)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8})
    )
    assert lora.get_lora_file(str(file)).scale == 8 / RANK
    assert hash_request(request) != before


def test_a_config_of_another_file_says_nothing(folder: Path, tmp_path: Path) -> None:
    """In a folder of many LoRAs, nobody knows whose it is."""
    for name in ("mine.safetensors", "other.safetensors"):
        save_file(load_file(folder / "peft.safetensors"), tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 64}))
    assert lora_file.read_lora_file(tmp_path / "mine.safetensors").scale == 1


@pytest.mark.parametrize(
    ("alpha", "scale", "note"),
    [(0.0, 1.0, "alpha is 0 in"), (-ALPHA, -ALPHA / RANK, "alpha is negative in")],
)
def test_a_strange_alpha_is_read_as_kohya_does_and_said(
    alpha: float, scale: float, note: str, folder: Path, tmp_path: Path
) -> None:
    state = load_file(folder / "kohya.safetensors")
    changed = {key: torch.tensor(alpha) if key.endswith(".alpha") else value for key, value in state.items()}
    save_file(changed, tmp_path / "it.safetensors")
    found = lora_file.read_lora_file(tmp_path / "it.safetensors")
    assert found.scale == scale
    assert found.notes[0].startswith(note)


@pytest.mark.parametrize("part", ["diff", "oft_R.weight"])
def test_an_alpha_that_means_nothing_is_said(part: str, tmp_path: Path) -> None:
    stem = "lora_unet_input_blocks_4_1_proj_in"
    tensors = {f"{stem}.{part}": torch.ones(64, 28), f"{stem}.alpha": torch.tensor(8.0)}
    save_file(tensors, tmp_path / "it.safetensors")
    (note,) = lora_file.read_lora_file(tmp_path / "it.safetensors").notes
    assert note == "alpha stands beside 1 layers whose kind has none, and changes nothing there."


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_read(dtype: torch.dtype, folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "kohya.safetensors")
    small = {key: value if key.endswith(".alpha") else value.to(dtype) for key, value in state.items()}
    save_file(small, tmp_path / "it.safetensors")
    found = lora_file.read_lora_file(tmp_path / "it.safetensors")
    for key, value in found.load_tensors().items():
        assert torch.equal(value.float(), small[key].float())
