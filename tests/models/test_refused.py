"""A model that cannot be opened is refused in one sentence, and the loaded model stays."""

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

from core.hub import client as hub
from core.models import bases
from core.schema.errors import UserError
from core.schema.types import Model
from core.system.device import Machine
from tests.hub.answers import COMMIT
from tests.models.parts import NANO, NANO_FILES, ModelTable, PickleCanary, link_folder, make_model


@pytest.mark.parametrize("file", NANO_FILES)
def test_a_folder_without_a_file_is_refused_by_its_name(
    file: str, refusal_of: Callable[[Model], str], tmp_path: Path
) -> None:
    folder = link_folder(NANO, tmp_path / "folder")
    (folder / file).unlink()
    named = file if file.endswith(".json") else f"{Path(file).parent}/*.safetensors"
    assert f"The wrong lacks {named};" in refusal_of(make_model("wrong", folder))


def test_a_config_folder_without_a_file_is_refused_by_its_name(
    refusal_of: Callable[[Model], str], checkpoint: Path, tmp_path: Path
) -> None:
    folder = link_folder(NANO, tmp_path / "folder")
    (folder / "tokenizer_2/tokenizer.json").unlink()
    assert "lacks tokenizer_2/tokenizer.json;" in refusal_of(
        make_model("wrong", checkpoint, config=str(folder))
    )


def test_a_folder_without_a_shard_is_refused_by_its_name(
    refusal_of: Callable[[Model], str], tmp_path: Path
) -> None:
    unet = link_folder(NANO, tmp_path / "folder") / "unet"
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / names[0])
    index = {"metadata": {}, "weight_map": {"conv_in.weight": names[0], "conv_out.weight": names[1]}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert f"lacks unet/{names[1]};" in refusal_of(make_model("wrong", unet.parent))


Spoil = Callable[[Path], None]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def write_plain_text(file: Path) -> None:
    file.write_text("Access denied. Log in to download this file.\n")


def write_lora(file: Path) -> None:
    save_file({"lora_unet_middle_block_1_proj_in.lora_down.weight": torch.zeros(4, 72)}, file)


def widen_weights(file: Path) -> None:
    save_file({key: value.repeat_interleave(2, 0) for key, value in load_file(file).items()}, file)


def put_nan(file: Path) -> None:
    weights = load_file(file)
    weights["model.diffusion_model.middle_block.1.proj_in.bias"][3] = torch.nan
    save_file(weights, file)


def drop_key(key: str) -> Spoil:
    def spoil(file: Path) -> None:
        weights = load_file(file)
        del weights[key]
        save_file(weights, file)

    return spoil


CANNOT_BE_OPENED = "cannot be opened as an SDXL model ("


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, CANNOT_BE_OPENED),
        (write_plain_text, CANNOT_BE_OPENED),
        (write_lora, "is a LoRA. Put it into models/loras;"),
        (widen_weights, CANNOT_BE_OPENED),
        (put_nan, "contains NaN or infinite numbers (unet.mid_block.attentions.0.proj_in.bias);"),
        (drop_key("model.diffusion_model.middle_block.1.proj_in.weight"), CANNOT_BE_OPENED),
        (
            drop_key("conditioner.embedders.1.model.ln_final.weight"),
            "is missing the weight text_encoder_2.text_model.final_layer_norm.weight;",
        ),
    ],
    ids=["truncated", "text", "lora", "wider", "nan", "no mid block", "no last norm"],
)
def test_a_spoilt_checkpoint_is_refused(
    spoil: Spoil, said: str, refusal_of: Callable[[Model], str], checkpoint: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(checkpoint, tmp_path / "wrong.safetensors"))
    spoil(file)
    assert said in refusal_of(make_model("wrong", file, config=str(NANO)))


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("unet/diffusion_pytorch_model.safetensors", truncate, CANNOT_BE_OPENED),
        ("text_encoder/model.safetensors", truncate, CANNOT_BE_OPENED),
        ("vae/diffusion_pytorch_model.safetensors", write_plain_text, CANNOT_BE_OPENED),
        ("unet/diffusion_pytorch_model.safetensors", write_lora, "is missing the weight unet."),
        ("unet/diffusion_pytorch_model.safetensors", widen_weights, CANNOT_BE_OPENED),
        (
            "vae/diffusion_pytorch_model.safetensors",
            drop_key("decoder.conv_in.weight"),
            "is missing the weight vae.decoder.conv_in.weight;",
        ),
        (
            "text_encoder_2/model.safetensors",
            drop_key("text_projection.weight"),
            "is missing the weight text_encoder_2.text_projection.weight;",
        ),
        ("unet/config.json", truncate, CANNOT_BE_OPENED),
        ("tokenizer/tokenizer.json", write_plain_text, CANNOT_BE_OPENED),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value).partition("/")[0],
)
def test_a_folder_with_a_spoilt_file_is_refused(
    file: str, spoil: Spoil, said: str, refusal_of: Callable[[Model], str], tmp_path: Path
) -> None:
    folder = link_folder(NANO, tmp_path / "folder")
    (folder / file).unlink()
    shutil.copy(NANO / file, folder / file)
    spoil(folder / file)
    assert said in refusal_of(make_model("wrong", folder))


@pytest.mark.parametrize(
    "layout", ["bin only", "bin beside other safetensors", "ckpt", "pickle named safetensors"]
)
def test_case_05_no_pickle_is_opened(layout: str, refusal_of: Callable[[Model], str], tmp_path: Path) -> None:
    canary, bomb = tmp_path / "canary", tmp_path / "wrong.ckpt"
    torch.save({"weight": PickleCanary(canary)}, bomb)
    pickle.loads(pickle.dumps(PickleCanary(canary))).close()
    assert canary.exists(), "the canary does not sing, so that its silence says nothing"
    canary.unlink()
    folder = link_folder(NANO, tmp_path / "folder")
    for file in folder.rglob("*.safetensors"):
        if layout == "bin beside other safetensors":
            file.rename(file.with_name("other.safetensors"))
        else:
            file.unlink()
        shutil.copy(
            bomb,
            file.parent / ("pytorch_model.bin" if file.stem == "model" else "diffusion_pytorch_model.bin"),
        )
    source = {"ckpt": bomb, "pickle named safetensors": tmp_path / "wrong.safetensors"}.get(layout, folder)
    shutil.copy(bomb, tmp_path / "wrong.safetensors")
    said = refusal_of(make_model("wrong", source, config=None if source == folder else str(NANO)))
    assert not canary.exists(), "a pickle was run"
    assert ("lacks text_encoder/*.safetensors" if layout == "bin only" else CANNOT_BE_OPENED) in said


def test_an_unknown_name_is_told_the_names_there_are(
    table: ModelTable, nano: StableDiffusionXLPipeline
) -> None:
    table["other"] = make_model("other", NANO)
    with pytest.raises(
        UserError, match=r"^model: 'nonesuch' is unknown. Use one of: nano, other, or a Hub id owner/name\.$"
    ):
        bases.load_model("nonesuch")
    with pytest.raises(UserError) as error:
        bases.load_model("x" * 10_000)
    assert len(str(error.value)) < 200
    assert bases.load_model("nano") is nano


def test_offline_a_model_of_the_hub_is_refused(
    refusal_of: Callable[[Model], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the environment's HF_HUB_OFFLINE=1 does when `huggingface_hub` is imported.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    said = refusal_of(make_model("far", "owner/name", revision=COMMIT))
    assert "owner/name cannot be downloaded: Hugging Face is unreachable;" in said


@pytest.mark.parametrize(
    "error",
    [HTTPError("Server disconnected"), ConnectionResetError(), RuntimeError("Data processing error")],
    ids=repr,
)
def test_a_download_that_breaks_off_is_refused(
    error: Exception, refusal_of: Callable[[Model], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_download(*_args: object, local_files_only: bool = False, **_kwargs: object) -> str:
        raise LocalEntryNotFoundError("nothing is here") if local_files_only else error

    monkeypatch.setattr(hub, "snapshot_download", fail_download)
    assert "Hugging Face is unreachable;" in refusal_of(make_model("far", "owner/name", revision=COMMIT))


def test_a_model_too_large_gives_way_before_the_old_one_comes_back(
    refusal_of: Callable[[Model], str], nano: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    who = {True: "nano", False: "large"}
    to = StableDiffusionXLPipeline.to

    def place(pipeline: StableDiffusionXLPipeline, _machine: Machine) -> None:
        told.append(f"place {who[pipeline is nano]}")
        if pipeline is not nano:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bases, "_move_to_device", place)
    monkeypatch.setattr(
        StableDiffusionXLPipeline,
        "to",
        lambda self, device: told.append(f"{who[self is nano]} to {device}") or to(self, device),
    )
    assert "does not fit into this machine's memory" in refusal_of(make_model("large", NANO))
    assert told == ["nano to cpu", "place large", "large to cpu", "place nano"]
