"""What the tests of core.models share: the embedded model's files, tables of models, pictures to tell models apart."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline

from core.device import Machine
from core.types import Model

ROOT = Path(__file__).resolve().parent.parent.parent
NANO = ROOT / "core/nano/weights/nano"
FILES = sorted(str(file.relative_to(NANO)) for file in NANO.rglob("*.*") if file.suffix in (".json", ".safetensors"))
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")

CPU = Machine(device="cpu", name="CPU", memory=2**34, dtype=torch.float32, attention="sdpa", tile_vae=False, offload=False)

Table = dict[str, Model]


class Canary:
    """Pickled, and loaded by whoever trusts it, it leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable, tuple[str, str]]:
        return open, (str(self.file), "w")


def model(name: str, source: Path | str, **fields: Any) -> Model:
    return Model(**{"name": name, "title": f"The {name}", "source": str(source), "licence": "apache-2.0", **fields})


def picture(pipeline: StableDiffusionXLPipeline) -> np.ndarray:
    """(64, 64, 3) in 0..1, after two steps."""
    seed = torch.Generator().manual_seed(1)
    return np.asarray(pipeline("1girl, smile", width=64, height=64, num_inference_steps=2, generator=seed, output_type="np").images[0])


def folder_of(nano_files: Path, folder: Path) -> Path:
    """A copy whose files can be replaced (unlink first: they are links)."""
    shutil.copytree(nano_files, folder, copy_function=os.symlink)
    return folder


def assert_same_weights(ours: StableDiffusionXLPipeline, theirs: StableDiffusionXLPipeline) -> None:
    for part in PARTS:
        a, b = getattr(ours, part).state_dict(), getattr(theirs, part).state_dict()
        assert a.keys() == b.keys(), f"{part}: other weights than diffusers'"
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, f"{part}: {len(different)} weights differ, {different[0]} first"
