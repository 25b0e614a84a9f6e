"""A person's folder of LoRAs, and files for it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.system import paths


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of LoRAs, and no measurement yet."""
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    monkeypatch.setattr(paths, "MODEL_ROOTS", [])
    monkeypatch.setattr(paths, "MEASURED", tmp_path / "measured")
    folder = tmp_path / "models/loras"
    folder.mkdir(parents=True)
    return folder


def write_lora(file: Path, metadata: dict[str, str] | None = None, value: float = 1.0) -> Path:
    """Write a LoRA of rank 2 for one layer of SDXL."""
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    tensors = {f"{stem}.lora_down.weight": torch.full((2, 2048), value)}
    tensors |= {f"{stem}.lora_up.weight": torch.ones(640, 2), f"{stem}.alpha": torch.tensor(2.0)}
    save_file(tensors, file, metadata)
    return file
