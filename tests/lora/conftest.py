"""One random LoRA on nano by diffusers and PEFT, the reference, and in every format we read."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from core.lora.blocks import to_sai
from core.models import bases
from core.system import paths
from tests.lora.parts import ALPHA, RANK, TARGETS


@pytest.fixture(scope="module")
def peft() -> StableDiffusionXLPipeline:
    """nano with a random LoRA of alpha 2 at rank 4, put on by diffusers and PEFT: the reference."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(bases.find_model("nano").source))
    torch.manual_seed(0)
    pipeline.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=TARGETS), "it")
    pipeline.text_encoder_2.add_adapter(
        LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=["q_proj", "fc1"]), "it"
    )
    for name, parameter in [*pipeline.unet.named_parameters(), *pipeline.text_encoder_2.named_parameters()]:
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return pipeline


@pytest.fixture(scope="module")
def folder(peft: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference LoRA in every format we read."""
    where = tmp_path_factory.mktemp("loras")
    unet = get_peft_model_state_dict(peft.unet, adapter_name="it")
    text = get_peft_model_state_dict(peft.text_encoder_2, adapter_name="it")
    dotted = {f"unet.{k}": v for k, v in convert_state_dict_to_diffusers(unet).items()}
    dotted |= {f"text_encoder_2.{k}": v for k, v in text.items()}
    metadata = {
        "lora_adapter_metadata": json.dumps(
            {
                f"{part}.{key}": value
                for part in ("unet", "text_encoder_2")
                for key, value in (("r", RANK), ("lora_alpha", ALPHA))
            }
        )
    }
    save_file(
        {
            k.replace("lora.down", "lora_A").replace("lora.up", "lora_B"): v.contiguous()
            for k, v in dotted.items()
        },
        where / "diffusers.safetensors",
        metadata,
    )
    only = {f"base_model.model.{k}": v.contiguous() for k, v in unet.items()}
    save_file(
        only,
        where / "peft.safetensors",
        {"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": ALPHA})},
    )
    for kind, rename in (("kohya", to_sai), ("kohya-diffusers", str)):
        flat: dict[str, torch.Tensor] = {}
        for prefix, state, name in (("lora_unet_", unet, rename), ("lora_te2_", text, str)):
            for key, value in state.items():
                stem = key.removesuffix(".weight").rsplit(".", 1)
                module = f"{prefix}{name(stem[0].replace('.', '_'))}"
                flat[f"{module}.{'lora_down' if stem[1] == 'lora_A' else 'lora_up'}.weight"] = (
                    value.contiguous()
                )
                flat[f"{module}.alpha"] = torch.tensor(ALPHA)
        save_file(
            flat,
            where / f"{kind}.safetensors",
            {
                "ss_tag_frequency": json.dumps({"10_style": {"1girl": 9, "smile": 3}}),
                "modelspec.trigger_phrase": "mystyle",
            },
        )
    return where
