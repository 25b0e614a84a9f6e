"""A base model whose configs are larger than any SDXL's is refused before anything is built."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.models import config_limits
from core.schema.types import Model
from tests.models.parts import NANO, link_folder, make_model

SDXL_CONFIGS: dict[str, dict[str, Any]] = {
    "unet/config.json": {
        "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048, "layers_per_block": 2, "norm_num_groups": 32,
        "projection_class_embeddings_input_dim": 2816, "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10], "only_cross_attention": False,
        "_use_default_values": ["dropout"] * 20,
    },
    "vae/config.json": {
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 1024,
        "scaling_factor": 0.13025,
    },
    "text_encoder/config.json": {
        "bos_token_id": 0, "eos_token_id": 2, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12,
    },
    "text_encoder_2/config.json": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1280,
        "vocab_size": 49408,
    },
    "scheduler/scheduler_config.json": {
        "num_train_timesteps": 1000, "lambda_min_clipped": float("-inf"), "solver_order": 2,
        "trained_betas": None,
    },
}  # fmt: skip
EXCESSIVE_VALUES = [
    (
        "unet/config.json",
        {"layers_per_block": 3},
        "3 as layers_per_block in unet/config.json; the limit is 2;",
    ),
    (
        "unet/config.json",
        {"transformer_layers_per_block": [1, [2, 11]]},
        "11 as transformer_layers_per_block in unet/config.json; the limit is 10;",
    ),
    (
        "unet/config.json",
        {"down_block_types": ["DownBlock2D"] * 9},
        "9 entries in down_block_types of unet/config.json; the limit is 8;",
    ),
    (
        "vae/config.json",
        {"layers_per_block": 1e300},
        "1e+300 as layers_per_block in vae/config.json; the limit is 2;",
    ),
    (
        "text_encoder/config.json",
        {"num_hidden_layers": 33},
        "33 as num_hidden_layers in text_encoder/config.json; the limit is 32;",
    ),
    (
        "text_encoder_2/config.json",
        {"num_labels": 10**6},
        "1000000 as num_labels in text_encoder_2/config.json; the limit is 256;",
    ),
    (
        "scheduler/scheduler_config.json",
        {"num_train_timesteps": 1001},
        "1001 as num_train_timesteps in scheduler/scheduler_config.json; the limit is 1,000;",
    ),
]


@pytest.mark.parametrize(("file", "says", "sentence"), EXCESSIVE_VALUES)
def test_a_model_that_says_it_is_larger_is_refused(
    file: str, says: dict[str, Any], sentence: str, refusal_of: Callable[[Model], str], tmp_path: Path
) -> None:
    folder = link_folder(NANO, tmp_path / "folder")
    told = json.loads((folder / file).read_text())
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(told | says))
    assert f"The wrong has {sentence}" in refusal_of(make_model("wrong", folder))


def test_a_checkpoint_of_too_many_tensors_is_refused(
    refusal_of: Callable[[Model], str], tmp_path: Path
) -> None:
    save_file(
        {
            f"model.diffusion_model.input_blocks.{i}": torch.zeros(1)
            for i in range(config_limits.MAX_TENSORS + 1)
        },
        tmp_path / "wrong.safetensors",
    )
    assert "has 10,001 tensors; the limit is 10,000;" in refusal_of(
        make_model("wrong", tmp_path / "wrong.safetensors", config=str(NANO))
    )


def test_sdxl_is_not_larger_than_itself(tmp_path: Path) -> None:
    for file, told in SDXL_CONFIGS.items():
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(json.dumps(told))
    assert config_limits.find_excess(tmp_path) is None
