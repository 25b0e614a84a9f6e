"""A LoRA for another family than the base model's is told, and nothing is said where nothing is known."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.generate.notes import list_file_notes
from core.generate.request import PictureForm, fill_form
from core.models.base_families import find_base_family, find_family, is_related
from core.schema import presets
from core.schema.types import Model
from tests.models.library import write_lora


def test_the_metadata_of_a_checkpoint_tell_its_family(tmp_path: Path) -> None:
    """As they tell its preset: a LoRA of another family is told on a renamed file, too."""
    titles = {"modelspec.title": "Illustrious-XL", "ss_base_model_version": "sdxl_base_v1-0"}
    save_file({"x": torch.ones(1)}, tmp_path / "mine.safetensors", metadata=titles)
    model = Model(name="mine", title="mine", source=str(tmp_path / "mine.safetensors"), licence="unknown")
    assert find_base_family(model) == "Illustrious"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("ponyDiffusionV6XL_v6StartWithThisOne.safetensors", "Pony"),
        ("Pony V7", None),
        ("waiNSFWIllustrious_v140", "Illustrious"),
        ("noobaiXLNAIXL_vPred10Version", "NoobAI"),
        ("noobai-illustrious-mix", "NoobAI"),
        ("ponyIllustriousMix", None),
        ("sdxl_base_v1-0", "SDXL"),
        ("stable-diffusion-xl-v1-base/lora", "SDXL"),
        ("Flux.1 D", None),
        ("", None),
    ],
)
def test_a_name_speaks_of_a_family_or_of_none(name: str, family: str | None) -> None:
    assert find_family(name) == family


def test_every_base_of_the_table_has_a_family() -> None:
    assert {name for name, model in presets.get_models().items() if find_base_family(model) is None} == set()


def test_a_family_and_its_descendants_belong_together() -> None:
    assert is_related("SDXL", "Pony")
    assert is_related("NoobAI", "Illustrious")
    assert not is_related("Pony", "Illustrious")
    assert not is_related("Pony", "nano")


def test_a_lora_for_another_family_is_told_before_the_picture_is_made(shelf: Path) -> None:
    write_lora(shelf / "horse.safetensors", {"ss_sd_model_name": "ponyDiffusionV6XL.safetensors"})
    write_lora(shelf / "general.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    write_lora(shelf / "unknown.safetensors")
    prompt = "1girl <lora:horse:1> <lora:general:1> <lora:unknown:1>"
    warned = {
        preset: list_file_notes(fill_form(PictureForm(prompt=prompt, preset=preset)).request)
        for preset in ("pony-v6", "illustrious-xl", "sdxl-base")
    }
    assert warned["pony-v6"] == warned["sdxl-base"] == []
    (sentence,) = warned["illustrious-xl"]
    assert sentence.startswith("horse is made for Pony, but Illustrious-XL v0.1 is of the family Illustrious")
