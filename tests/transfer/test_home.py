"""Which base model a LoRA was trained on, by the names under which people train."""

from dataclasses import replace

import pytest

from core.lora.file import read_lora_file
from core.transfer.plan import find_home_model
from tests.publish.test_card import EXAMPLE


def name_base(said: str = "", peft: str = "") -> str | None:
    """Return the home of a LoRA whose metadata, or PEFT's settings, name this base."""
    metadata = {"ss_sd_model_name": said} if said else {}
    return find_home_model(replace(read_lora_file(EXAMPLE), base=peft, metadata=metadata))


@pytest.mark.parametrize(
    ("said", "home"),
    [
        ("sd_xl_base_1.0.safetensors", "sdxl-base"),
        ("sd_xl_base_1.0_0.9vae.safetensors", "sdxl-base"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl-base"),
        ("sdXL_v10VAEFix.safetensors", "sdxl-base"),
        ("ponyDiffusionV6XL_v6StartWithThisOne.safetensors", "pony-v6"),
        ("ponyDiffusionV6XL.safetensors", "pony-v6"),
        ("kitty7779/ponyDiffusionV6XL", "pony-v6"),
        ("animagineXLV31_v31.safetensors", "animagine-xl-3.1"),
        ("animagine-xl-3.1.safetensors", "animagine-xl-3.1"),
        ("cagliostrolab/animagine-xl-4.0", "animagine-xl-4.0"),
        ("illustriousXL_v01.safetensors", "illustrious-xl"),
        ("Illustrious-XL-v0.1.safetensors", "illustrious-xl"),
        ("OnomaAIResearch/Illustrious-xl-early-release-v0", "illustrious-xl"),
        ("Illustrious-XL-v2.0.safetensors", "illustrious-xl-2.0"),
        ("noobaiXLNAIXL_epsilonPred10Version.safetensors", "noobai-xl"),
        ("noobaiXLNAIXL_vPred10Version.safetensors", "noobai-xl-vpred"),
        ("Laxhar/noobai-XL-1.0", "noobai-xl"),
        ("kohakuXLDelta_rev1.safetensors", "kohaku-xl-delta"),
        ("D:\\models\\sd_xl_base_1.0.safetensors", "sdxl-base"),
        ("/models/SD_XL_base_1.0.ckpt", "sdxl-base"),
        ("nano", "nano"),
    ],
)
def test_the_names_of_trainers_lead_home(said: str, home: str) -> None:
    """Without a home a LoRA has no licence to inherit, and Transfer has nothing to compare with."""
    assert name_base(said) == home
    assert name_base(peft=said) == home
    assert name_base("nano-cel", peft=said) == home, "PEFT's settings come first"


@pytest.mark.parametrize(
    "said", ["", "myMerge_v3.safetensors", "illustriousXL_v11.safetensors", "sdxl", "xl/"]
)
def test_a_name_that_is_not_known_is_not_guessed(said: str) -> None:
    assert name_base(said) is None
