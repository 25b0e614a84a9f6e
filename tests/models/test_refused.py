"""What cannot be had is said in one sentence, and the loaded model stays."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from core import hub, models
from core.device import Machine
from core.types import Model, UserError
from tests.hub import COMMIT
from tests.models.parts import FILES, NANO, Canary, Table, folder_of, model


@pytest.mark.parametrize("file", FILES)
def test_a_folder_without_a_file_is_refused_by_its_name(file: str, refused: Callable[[Model], str], tmp_path: Path) -> None:
    folder = folder_of(NANO, tmp_path / "folder")
    (folder / file).unlink()
    named = file if file.endswith(".json") else f"{Path(file).parent}/*.safetensors"
    assert f"The wrong lacks {named};" in refused(model("wrong", folder))


def test_a_config_folder_without_a_file_is_refused_by_its_name(refused: Callable[[Model], str], checkpoint: Path, tmp_path: Path) -> None:
    folder = folder_of(NANO, tmp_path / "folder")
    (folder / "tokenizer_2/tokenizer.json").unlink()
    assert "lacks tokenizer_2/tokenizer.json;" in refused(model("wrong", checkpoint, config=str(folder)))


def test_a_folder_without_a_shard_is_refused_by_its_name(refused: Callable[[Model], str], tmp_path: Path) -> None:
    unet = folder_of(NANO, tmp_path / "folder") / "unet"
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / names[0])
    index = {"metadata": {}, "weight_map": {"conv_in.weight": names[0], "conv_out.weight": names[1]}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert f"lacks unet/{names[1]};" in refused(model("wrong", unet.parent))


Spoil = Callable[[Path], None]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def text(file: Path) -> None:
    file.write_text("Access denied. Log in to download this file.\n")


def lora(file: Path) -> None:
    save_file({"lora_unet_middle_block_1_proj_in.lora_down.weight": torch.zeros(4, 72)}, file)


def wider(file: Path) -> None:
    save_file({key: value.repeat_interleave(2, 0) for key, value in load_file(file).items()}, file)


def without(key: str) -> Spoil:
    def spoil(file: Path) -> None:
        weights = load_file(file)
        del weights[key]
        save_file(weights, file)

    return spoil


UNOPENED = "cannot be opened as an SDXL model ("


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut, UNOPENED),
        (text, UNOPENED),
        (lora, UNOPENED),
        (wider, UNOPENED),
        (without("model.diffusion_model.middle_block.1.proj_in.weight"), UNOPENED),
        (without("conditioner.embedders.1.model.ln_final.weight"), "lacks the weight text_encoder_2.text_model.final_layer_norm.weight;"),
    ],
    ids=["truncated", "text", "lora", "wider", "no mid block", "no last norm"],
)
def test_a_spoilt_checkpoint_is_refused(spoil: Spoil, said: str, refused: Callable[[Model], str], checkpoint: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(checkpoint, tmp_path / "wrong.safetensors"))
    spoil(file)
    assert said in refused(model("wrong", file, config=str(NANO)))


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("unet/diffusion_pytorch_model.safetensors", cut, UNOPENED),
        ("text_encoder/model.safetensors", cut, UNOPENED),
        ("vae/diffusion_pytorch_model.safetensors", text, UNOPENED),
        ("unet/diffusion_pytorch_model.safetensors", lora, "lacks the weight unet."),
        ("unet/diffusion_pytorch_model.safetensors", wider, UNOPENED),
        ("vae/diffusion_pytorch_model.safetensors", without("decoder.conv_in.weight"), "lacks the weight vae.decoder.conv_in.weight;"),
        ("text_encoder_2/model.safetensors", without("text_projection.weight"), "lacks the weight text_encoder_2.text_projection.weight;"),
        ("unet/config.json", cut, UNOPENED),
        ("tokenizer/tokenizer.json", text, UNOPENED),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value).partition("/")[0],
)
def test_a_folder_with_a_spoilt_file_is_refused(file: str, spoil: Spoil, said: str, refused: Callable[[Model], str], tmp_path: Path) -> None:
    folder = folder_of(NANO, tmp_path / "folder")
    (folder / file).unlink()
    shutil.copy(NANO / file, folder / file)
    spoil(folder / file)
    assert said in refused(model("wrong", folder))


@pytest.mark.parametrize("layout", ["bin only", "bin beside other safetensors", "ckpt", "pickle named safetensors"])
def test_case_05_no_pickle_is_opened(layout: str, refused: Callable[[Model], str], tmp_path: Path) -> None:
    canary, bomb = tmp_path / "canary", tmp_path / "wrong.ckpt"
    torch.save({"weight": Canary(canary)}, bomb)
    pickle.loads(pickle.dumps(Canary(canary))).close()
    assert canary.exists(), "the canary does not sing, so that its silence says nothing"
    canary.unlink()
    folder = folder_of(NANO, tmp_path / "folder")
    for file in folder.rglob("*.safetensors"):
        if layout == "bin beside other safetensors":
            file.rename(file.with_name("other.safetensors"))
        else:
            file.unlink()
        shutil.copy(bomb, file.parent / ("pytorch_model.bin" if file.stem == "model" else "diffusion_pytorch_model.bin"))
    source = {"ckpt": bomb, "pickle named safetensors": tmp_path / "wrong.safetensors"}.get(layout, folder)
    shutil.copy(bomb, tmp_path / "wrong.safetensors")
    said = refused(model("wrong", source, config=None if source == folder else str(NANO)))
    assert not canary.exists(), "a pickle was run"
    assert ("lacks text_encoder/*.safetensors" if layout == "bin only" else UNOPENED) in said


def test_an_unknown_name_is_told_the_names_there_are(table: Table, nano: StableDiffusionXLPipeline) -> None:
    table["other"] = model("other", NANO)
    with pytest.raises(UserError, match=r"^model: 'nonesuch' is unknown; it takes nano, other, or a Hub id owner/name\.$"):
        models.load("nonesuch")
    with pytest.raises(UserError) as error:
        models.load("x" * 10_000)
    assert len(str(error.value)) < 200
    assert models.load("nano") is nano


def test_offline_a_model_of_the_hub_is_refused(refused: Callable[[Model], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what the environment's HF_HUB_OFFLINE=1 sets when it is imported
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    said = refused(model("far", "owner/name", revision=COMMIT))
    assert "owner/name is not to be had: the Hub cannot be reached;" in said


@pytest.mark.parametrize("error", [HTTPError("Server disconnected"), ConnectionResetError(), RuntimeError("Data processing error")], ids=repr)
def test_a_download_that_breaks_off_is_refused(error: Exception, refused: Callable[[Model], str], monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_off(*_args: object, local_files_only: bool = False, **_kwargs: object) -> str:
        raise LocalEntryNotFoundError("nothing is here") if local_files_only else error

    monkeypatch.setattr(hub, "snapshot_download", breaks_off)
    assert "the Hub cannot be reached;" in refused(model("far", "owner/name", revision=COMMIT))


def test_a_model_too_large_gives_way_before_the_old_one_comes_back(
    refused: Callable[[Model], str], nano: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    who = {True: "nano", False: "large"}
    to = StableDiffusionXLPipeline.to

    def place(pipeline: StableDiffusionXLPipeline, _machine: Machine) -> None:
        told.append(f"place {who[pipeline is nano]}")
        if pipeline is not nano:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(models, "_place", place)
    monkeypatch.setattr(StableDiffusionXLPipeline, "to", lambda self, device: told.append(f"{who[self is nano]} to {device}") or to(self, device))
    assert "does not fit into this machine's memory" in refused(model("large", NANO))
    assert told == ["nano to cpu", "place large", "large to cpu", "place nano"]
