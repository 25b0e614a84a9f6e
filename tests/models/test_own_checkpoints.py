"""A checkpoint of one's own opens in each layout that circulates, with the VAE and parts that are set."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from core.models import bases, catalogue, loader, model_settings
from core.models import files as models_files
from core.models.model_settings import ModelSettings, save_settings
from core.schema.errors import UserError
from core.system import paths
from tests.models.parts import NANO, ModelTable, assert_same_weights, make_model

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def own(table: ModelTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one's own checkpoints, whose single files are of nano's size."""
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    monkeypatch.setattr(paths, "MODEL_ROOTS", [])
    for module in (models_files, loader):
        monkeypatch.setattr(module, "SDXL_CONFIGS", NANO)
    folder = tmp_path / "models/checkpoints"
    folder.mkdir(parents=True)
    return folder


def leave_out(tensors: Tensors, start: str) -> Tensors:
    return {key: value for key, value in tensors.items() if not key.startswith(start)}


LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    "with EMA weights": lambda t: {**t, "model_ema.decay": torch.ones(1)},
    "with position ids": lambda t: {
        **t,
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    },
    "with the mark of v-prediction": lambda t: {**t, "v_pred": torch.ones(0), "ztsnr": torch.ones(0)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_else_a_file_holds_changes_no_weight(
    layout: str, own: Path, checkpoint: Path, nano: StableDiffusionXLPipeline
) -> None:
    save_file(LAYOUTS[layout](load_file(checkpoint)), own / "mine.safetensors")
    assert_same_weights(bases.load_model("mine"), nano)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_low_precision_open_as_they_are_stored(
    dtype: torch.dtype, own: Path, checkpoint: Path
) -> None:
    """A small download must not become another model, nor be refused."""
    stored = {key: value.to(dtype) for key, value in load_file(checkpoint).items()}
    save_file(stored, own / "small.safetensors")
    pipeline = bases.load_model("small")
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(pipeline.unet.conv_in.weight, stored[key].float())
    assert {p.dtype for p in pipeline.vae.parameters()} == {torch.float32}


@pytest.mark.parametrize("start", ["first_stage_model.", "conditioner."])
def test_missing_parts_come_from_the_model_that_is_named(
    start: str, own: Path, checkpoint: Path, nano: StableDiffusionXLPipeline
) -> None:
    save_file(leave_out(load_file(checkpoint), start), own / "pruned.safetensors")
    with pytest.raises(UserError, match=r"pruned lacks its .* Choose the model to take them from"):
        bases.load_model("pruned")
    save_settings("pruned", ModelSettings(donor="nano"))
    assert_same_weights(bases.load_model("pruned"), nano)


def test_a_donor_that_lacks_the_part_is_refused(own: Path, checkpoint: Path) -> None:
    for name in ("a", "b"):
        save_file(leave_out(load_file(checkpoint), "first_stage_model."), own / f"{name}.safetensors")
    save_settings("a", ModelSettings(donor="b"))
    save_settings("b", ModelSettings(donor="a"))
    with pytest.raises(UserError, match="b lacks its VAE"):
        bases.load_model("a")


def test_two_files_without_a_vae_keep_their_own_donors(
    own: Path, table: ModelTable, checkpoint: Path, tmp_path: Path
) -> None:
    """Both lack the same: the loaded one's VAE is not the other's."""
    pruned = leave_out(load_file(checkpoint), "first_stage_model.")
    for name in ("a", "b"):
        save_file(pruned, own / f"{name}.safetensors")
    shutil.copytree(NANO, tmp_path / "other")
    weights = tmp_path / "other/vae/diffusion_pytorch_model.safetensors"
    save_file({key: value * 0.5 for key, value in load_file(weights).items()}, weights)
    table["other"] = make_model("other", tmp_path / "other")
    save_settings("a", ModelSettings(donor="nano"))
    save_settings("b", ModelSettings(donor="other"))
    first = bases.load_model("a").vae.decoder.conv_in.weight.clone()
    torch.testing.assert_close(bases.load_model("b").vae.decoder.conv_in.weight, first * 0.5)


def test_a_file_with_a_name_of_the_table_can_be_chosen(own: Path, checkpoint: Path) -> None:
    """As `wai-illustrious.safetensors`, which the table expects elsewhere."""
    shutil.copy(checkpoint, own / "nano.safetensors")
    assert bases.find_model("nano").source == str(NANO)
    assert catalogue.list_models().keys() == {"nano", "nano (checkpoints)"}
    assert bases.find_model("nano (checkpoints)").source == str(own / "nano.safetensors")


def write_vae(file: Path, checkpoint: Path, layout: str, factor: float) -> torch.Tensor:
    """Write the checkpoint's VAE, multiplied; return its first decoder weight."""
    if layout == "diffusers":
        tensors = load_file(NANO / "vae/diffusion_pytorch_model.safetensors")
    else:
        start = "first_stage_model."
        tensors = {
            key.removeprefix(start) if layout == "original" else key: value
            for key, value in load_file(checkpoint).items()
            if key.startswith(start)
        }
    file.parent.mkdir(parents=True, exist_ok=True)
    changed = {key: (value.float() * factor).contiguous() for key, value in tensors.items()}
    save_file(changed, file)
    return next(value for key, value in changed.items() if key.endswith("decoder.conv_in.weight"))


def test_another_vae_of_the_donor_is_another_model(own: Path, checkpoint: Path) -> None:
    """Else the loaded model and the pictures that a sweep kept are those of the VAE before."""
    save_file(leave_out(load_file(checkpoint), "first_stage_model."), own / "pruned.safetensors")
    save_settings("pruned", ModelSettings(donor="nano"))
    first = bases.load_model("pruned").vae.decoder.conv_in.weight.clone()
    write_vae(own.parent / "vae/half.safetensors", checkpoint, "original", 0.5)
    save_settings("nano", ModelSettings(vae="half.safetensors"))
    torch.testing.assert_close(bases.load_model("pruned").vae.decoder.conv_in.weight, first * 0.5)


def test_vaes_of_one_size_and_time_are_told_apart(own: Path, checkpoint: Path) -> None:
    """As they come out of one archive."""
    shutil.copy(checkpoint, own / "mine.safetensors")
    told = set()
    for name, factor in (("a.safetensors", 0.5), ("b.safetensors", 2.0)):
        write_vae(own.parent / "vae" / name, checkpoint, "original", factor)
        os.utime(own.parent / "vae" / name, (1e9, 1e9))
        save_settings("mine", ModelSettings(vae=name))
        told.add(bases.fingerprint_model("mine"))
    assert len(told) == 2


@pytest.mark.parametrize("layout", ["original", "of a checkpoint", "diffusers"])
def test_a_vae_of_ones_own_takes_the_place_of_the_models(
    layout: str, own: Path, checkpoint: Path, nano: StableDiffusionXLPipeline
) -> None:
    shutil.copy(checkpoint, own / "mine.safetensors")
    bases.load_model("mine")
    wanted = write_vae(own.parent / "vae/clear.safetensors", checkpoint, layout, 0.5)
    save_settings("mine", ModelSettings(vae="clear.safetensors"))
    pipeline = bases.load_model("mine")  # without a restart
    torch.testing.assert_close(pipeline.vae.decoder.conv_in.weight, wanted)
    torch.testing.assert_close(pipeline.unet.conv_in.weight, nano.unet.conv_in.weight)
    save_settings("mine", ModelSettings())
    assert_same_weights(bases.load_model("mine"), nano)


def test_a_vae_beside_a_checkpoint_belongs_to_it(own: Path, checkpoint: Path) -> None:
    """As in A1111: `NAME.vae.safetensors` is no checkpoint of its own."""
    shutil.copy(checkpoint, own / "mine.safetensors")
    wanted = write_vae(own / "mine.vae.safetensors", checkpoint, "original", 0.5)
    torch.testing.assert_close(bases.load_model("mine").vae.decoder.conv_in.weight, wanted)
    with pytest.raises(UserError, match="unknown"):
        bases.find_model("mine.vae")


def test_a_vae_that_is_none_is_refused_and_the_loaded_model_stays(own: Path, checkpoint: Path) -> None:
    shutil.copy(checkpoint, own / "mine.safetensors")
    (own.parent / "vae").mkdir()
    save_file({"decoder.conv_in.weight": torch.ones(8, 16, 3, 3)}, own.parent / "vae/flux.safetensors")
    save_settings("mine", ModelSettings(vae="flux.safetensors"))
    with pytest.raises(UserError, match=r"flux.safetensors is a VAE of 16 channels.* nano is still loaded"):
        bases.load_model("mine")
    save_settings("mine", ModelSettings(vae="gone.safetensors"))
    with pytest.raises(UserError, match=r"'gone.safetensors' is unknown"):
        bases.load_model("mine")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder_in_diffusers_layout_is_one_checkpoint(
    variant: str | None, own: Path, nano: StableDiffusionXLPipeline
) -> None:
    nano.save_pretrained(own / "anime/mine", variant=variant, max_shard_size="2MB")
    assert len(list((own / "anime/mine/unet").glob("*.safetensors"))) > 1, "it is not in shards"
    assert Path(bases.find_model("mine").source) == own / "anime/mine"
    assert_same_weights(bases.load_model("mine"), nano)


def test_a_person_says_what_a_file_does_not(own: Path, checkpoint: Path) -> None:
    """Opened as epsilon, a model of v makes noise."""
    shutil.copy(checkpoint, own / "merge.safetensors")
    assert bases.load_model("merge").scheduler.config.prediction_type == "epsilon"
    save_settings("merge", ModelSettings(prediction_type="v_prediction"))
    scheduler = bases.load_model("merge").scheduler.config
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == ("v_prediction", True)


def test_what_is_set_for_a_model_is_kept(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_settings("nano", ModelSettings(vae="clear.safetensors"))
    save_settings("mine", ModelSettings(prediction_type="epsilon"))
    save_settings("nano", ModelSettings())
    file = own.parent / model_settings.SETTINGS_FILE
    assert json.loads(file.read_text()) == {
        "mine": {"vae": None, "prediction_type": "epsilon", "donor": None}
    }
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        bases.find_model("nano")
    file.write_text('{"nano": {"vea": "x"}}')
    with pytest.raises(UserError, match="vea"):
        bases.find_model("nano")
    monkeypatch.setattr(model_settings, "is_space", lambda: True)
    assert bases.find_model("nano").vae is None, "a visitor's setting would be every visitor's"
    with pytest.raises(UserError, match="Space"):
        save_settings("nano", ModelSettings())
