"""Helpers of the tests of core.models.bases: files, tables of models, pictures to compare."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from core.models.files import SDXL_CONFIGS
from core.schema.types import Model
from core.system.device import Machine

ROOT = Path(__file__).resolve().parent.parent.parent
NANO = ROOT / "core/nano/weights/nano"
NANO_FILES = sorted(
    str(file.relative_to(NANO)) for file in NANO.rglob("*.*") if file.suffix in (".json", ".safetensors")
)
COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae")

CPU_MACHINE = Machine(
    device="cpu",
    name="CPU",
    memory=2**34,
    dtype=torch.float32,
    attention="sdpa",
    tile_vae=False,
    offload=False,
)

ModelTable = dict[str, Model]


class PickleCanary:
    """An object that leaves a file behind when a loader trusts its pickle."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable, tuple[str, str]]:
        return open, (str(self.file), "w")


def make_model(name: str, source: Path | str, **fields: Any) -> Model:
    return Model(
        **{"name": name, "title": f"The {name}", "source": str(source), "licence": "apache-2.0", **fields}
    )


def draw_picture(pipeline: StableDiffusionXLPipeline) -> np.ndarray:
    """Return a picture, (64, 64, 3) in 0..1, after two steps."""
    seed = torch.Generator().manual_seed(1)
    return np.asarray(
        pipeline(
            "1girl, smile", width=64, height=64, num_inference_steps=2, generator=seed, output_type="np"
        ).images[0]
    )


def link_folder(nano_files: Path, folder: Path) -> Path:
    """Return a copy whose files can be replaced (unlink first: they are links)."""
    shutil.copytree(nano_files, folder, copy_function=os.symlink)
    return folder


def assert_same_weights(ours: StableDiffusionXLPipeline, theirs: StableDiffusionXLPipeline) -> None:
    for part in COMPONENTS:
        a, b = getattr(ours, part).state_dict(), getattr(theirs, part).state_dict()
        assert a.keys() == b.keys(), f"{part}: other weights than diffusers'"
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, f"{part}: {len(different)} weights differ, {different[0]} first"


@cache
def build_full_size_parts() -> dict[str, torch.nn.Module]:
    """Build SDXL's U-Net, text encoders and VAE from the studio's configs, on the meta device."""
    makers = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "vae": AutoencoderKL,
    }
    built: dict[str, torch.nn.Module] = {}
    with torch.device("meta"):
        for part, kind in makers.items():
            folder = SDXL_CONFIGS / part
            built[part] = (
                kind(kind.config_class.from_pretrained(folder))  # type: ignore[attr-defined]
                if part.startswith("text")
                else kind.from_config(kind.load_config(folder))  # type: ignore[attr-defined]
            )
    return built
