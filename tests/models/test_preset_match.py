"""A checkpoint finds the preset of its family: with another family's words, its pictures are poor."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.hub import client as hub
from core.hub.preflight import enter_preflight
from core.models import catalogue, preset_match
from core.models.base_families import FAMILIES
from core.schema import presets
from core.schema.types import Model
from core.system import paths

NAMES = {
    "noobaiXLNAIXL_epsilonPred11Version": "noobai-xl",
    "waiIllustriousSDXL_v140": "wai-illustrious",
    "waiNSFWIllustrious_v110": "wai-illustrious",
    "animagine-xl-4.0-opt": "animagine-xl-4.0",
    "animagineXLV31_v31": "animagine-xl-3.1",
    "ponyDiffusionV6XL_v6StartWithThisOne": "pony-v6",
    "autismmixSDXL_autismmixPony": "pony-v6",
    "kohakuXLDelta_rev1": "kohaku-xl-delta",
    "Illustrious-XL-v2.0": "illustrious-xl-2.0",
    "illustriousXL_v01": "illustrious-xl",
    "hassakuXLIllustrious_v22": "illustrious-xl",
    "novaAnimeXL_ilV90": "illustrious-xl",
    "animagine-xl-3.1-step-4000": "animagine-xl-3.1",
    "waiANIPONYXL_v140": "pony-v6",
    "waiSHUFFLENOOB_v20": "noobai-xl",
    "waifu-diffusion-xl": "sdxl-base",
    "sailorMix": "sdxl-base",
    "sd_xl_base_1.0": "sdxl-base",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    monkeypatch.setattr(paths, "MODEL_ROOTS", [])
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("name", NAMES)
def test_the_name_tells_the_family(name: str, own: Path) -> None:
    save_file({"x": torch.ones(1)}, own / f"{name}.safetensors")
    match = preset_match.match_preset(catalogue.find_model(name))
    assert match.preset == NAMES[name], match.reason


def test_the_metadata_counts_before_the_name(own: Path) -> None:
    save_file(
        {"x": torch.ones(1)},
        own / "illustrious-merge.safetensors",
        metadata={"modelspec.title": "My Pony mix", "ss_sd_model_name": "ponyDiffusionV6XL.safetensors"},
    )
    match = preset_match.match_preset(catalogue.find_model("illustrious-merge"))
    assert (match.preset, match.reason) == ("pony-v6", "the file's metadata names the family")


def test_a_small_model_of_the_hub_gets_a_small_preset() -> None:
    """Its previews while it trains would be of 1024 pixels, where 128 were learnt."""
    small = Model(name="ann/tiny@1", title="ann/tiny", source="nowhere", native_size=128, licence="?")
    assert preset_match.match_preset(small).preset == "nano"


def test_a_model_that_must_be_fetched_gets_its_preset_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Open in Sweep` takes no turn: every visitor's press would go to the Hub, or show no reason."""
    monkeypatch.setattr(hub, "call_with_retry", lambda _: pytest.fail("the Hub is asked"))
    with enter_preflight():
        assert preset_match.find_preset(f"ann/pony@{'0' * 40}").name == "pony-v6"


def test_a_noobai_of_v_gets_the_preset_of_v(own: Path) -> None:
    """The numbers of an epsilon model burn the pictures of a v-prediction model."""
    save_file({"v_pred": torch.ones(0)}, own / "NoobAI-XL-mix.safetensors")
    assert preset_match.find_preset("NoobAI-XL-mix").name == "noobai-xl-vpred"


def test_a_noobai_of_v_on_the_hub_is_known_by_its_name() -> None:
    """Its header is not here yet."""
    model = replace(
        catalogue.find_model("sdxl-base"), name="x@y", title="Laxhar/noobai-XL-Vpred-1.0", revision="0" * 40
    )
    assert preset_match.match_preset(model).preset == "noobai-xl-vpred"


def test_every_family_has_a_preset_and_every_model_its_own() -> None:
    known = presets.get_prompt_presets()
    named = {preset for patterns in preset_match.MODEL_PATTERNS.values() for _, preset in patterns}
    named |= {family.preset for family in FAMILIES.values()} | set(preset_match.V_PREDICTION.values())
    assert named <= known.keys()
    for preset in known.values():
        if preset.name == preset.model:
            assert preset_match.find_preset(preset.model) == preset
