"""The model that settings or the Hub choose for a person: it is in the list, and its own settings show."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import save_file

from core.models.model_settings import ModelSettings, get_settings, save_settings
from core.prompts import png_metadata
from core.system import paths
from tabs.generate import model
from tabs.generate import tab as generate_tab
from tabs.shared.model_choices import list_optional_models
from tests.hub.server_state import Hub
from tests.models.parts import NANO


def test_a_pictures_model_is_in_the_list_with_what_is_set_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Generate is refused, and setting a VAE for it would keep the former model's donor, too."""
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    monkeypatch.setattr(paths, "MODEL_ROOTS", [])
    (tmp_path / "models/checkpoints").mkdir(parents=True)
    save_file({"x": torch.ones(1)}, tmp_path / "models/checkpoints/my-pony.safetensors")
    save_settings("my-pony", ModelSettings(prediction_type="v_prediction", donor="nano"))
    text = "1girl\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 1024x1024, Model: my-pony"
    png_metadata.save_png(Image.new("RGB", (64, 64)), tmp_path / "a.png", text)
    values, said = generate_tab._load_settings(str(tmp_path / "a.png"), "nano")
    assert values["model"]["value"] == "my-pony", said
    assert ("my-pony", "my-pony") in values["model"]["choices"]
    shown = {name: values[name]["value"] for name in model.SETTING_NAMES}
    assert shown == {"vae": "", "prediction_type": "v_prediction", "donor": "nano"}


def test_a_setting_brings_none_of_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page may still show what is set for the model that was chosen before."""
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    monkeypatch.setattr(paths, "MODEL_ROOTS", [])
    save_settings("nano", ModelSettings(donor="nano-cel"))
    model._make_keeper("prediction_type")("", "nano", "epsilon")
    assert get_settings("nano") == ModelSettings(donor="nano-cel", prediction_type="epsilon")


def test_a_model_from_the_hub_takes_no_choice_away(hub_server: Hub) -> None:
    api = HfApi(token="hf_ann")
    api.create_repo("ann/tiny")
    api.upload_folder(repo_id="ann/tiny", folder_path=NANO)
    *_, (said, update) = model._fetch_base("ann/tiny", "")
    assert update["choices"] == [*list_optional_models(), (update["value"],) * 2], said
