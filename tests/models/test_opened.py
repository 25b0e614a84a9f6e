"""What can be had: both layouts open to the same model, and one model is kept."""

import json
import resource
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from core import hub, models, opening, paths
from core.types import Model
from tests.hub import COMMIT
from tests.models.parts import NANO, PARTS, Table, assert_same_weights, folder_of, model, picture


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_both_layouts_are_the_same_model(layout: str, table: Table, nano: StableDiffusionXLPipeline, drawn: np.ndarray, checkpoint: Path) -> None:
    table["folder"] = model("folder", NANO)
    table["file"] = model("file", checkpoint, config=str(NANO))
    pipeline = models.load(layout)
    assert models.loaded() == layout
    assert_same_weights(pipeline, nano)
    assert pipeline.scheduler.config == nano.scheduler.config
    # Not bit for bit: transformers leaves weights where the file is mapped, and at another alignment BLAS adds up in another order.
    np.testing.assert_allclose(picture(pipeline), drawn, atol=1e-4)


def test_a_single_file_takes_configs_and_tokenizers_from_its_own_folder(
    table: Table, nano: StableDiffusionXLPipeline, checkpoint: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    shutil.copytree(NANO, config, ignore=shutil.ignore_patterns("*.safetensors"))
    vae = config / "vae/config.json"
    vae.write_text(json.dumps(json.loads(vae.read_text()) | {"scaling_factor": 0.25}))
    table["file"] = model("file", checkpoint, config=str(config))
    pipeline = models.load("file")
    assert pipeline.vae.config.scaling_factor == 0.25, "the configs are not those of the folder"
    assert pipeline.tokenizer.get_vocab() == nano.tokenizer.get_vocab()
    assert_same_weights(pipeline, nano)


def test_a_single_file_without_a_folder_takes_the_configs_of_sdxl(table: Table, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **kwargs: asked.append((args, kwargs)) or str(NANO))
    table["file"] = model("file", checkpoint)
    models.load("file")
    (((source,), kwargs),) = asked
    assert source == "stabilityai/stable-diffusion-xl-base-1.0"
    assert len(kwargs["revision"]) == 40
    assert not any("safetensors" in pattern for pattern in kwargs["allow_patterns"]), "SDXL's 7 GB would be fetched for its configs"


def test_without_a_revision_a_source_is_a_path(table: Table, refused: Callable[[Model], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda *_args, **_kwargs: pytest.fail("the Hub was asked for a local model"))
    monkeypatch.setattr(paths, "CODE", NANO.parent)
    monkeypatch.setenv("HOME", str(NANO.parent))
    assert "owner/name is not there" in refused(model("hub-like", "owner/name"))
    table["relative"] = model("relative", NANO.name)
    table["home"] = model("home", f"~/{NANO.name}")
    for name in ("relative", "home"):
        models.load(name)
        assert models.loaded() == name


def test_with_a_revision_a_source_is_a_repository_at_that_commit(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **kwargs: asked.append((args, kwargs)) or str(NANO))
    table["hub"] = model("hub", "owner/name", revision=COMMIT)
    models.load("hub")
    (((source,), kwargs),) = asked
    assert (source, kwargs["revision"], kwargs["token"]) == ("owner/name", COMMIT, False)
    assert {pattern.rpartition(".")[2] for pattern in kwargs["allow_patterns"]} == {"json", "txt", "safetensors"}


def test_a_variant_needs_only_its_own_files(table: Table, nano: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    folder = folder_of(NANO, tmp_path / "folder")
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    full = folder / "unet/diffusion_pytorch_model.safetensors.index.json"  # of the weights in full precision, which were not fetched
    full.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}))
    table["half"] = model("half", folder, variant="fp16")
    assert_same_weights(models.load("half"), nano)


def test_either_spelling_of_a_tokenizer_opens(table: Table, nano: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    folder = folder_of(NANO, tmp_path / "folder")
    for part in ("tokenizer", "tokenizer_2"):
        bpe = json.loads((folder / part / "tokenizer.json").read_text())["model"]
        (folder / part / "tokenizer.json").unlink()
        (folder / part / "vocab.json").write_text(json.dumps(bpe["vocab"]))
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
        (folder / part / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    table["older"] = model("older", folder)
    text = "1girl, long blue hair, (smile:1.2)"
    assert models.load("older").tokenizer(text).input_ids == nano.tokenizer(text).input_ids


def test_v_prediction_is_the_tables_word(table: Table, checkpoint: Path) -> None:
    table["v"] = model("v", checkpoint, config=str(NANO), prediction_type="v_prediction")
    table["epsilon"] = model("epsilon", checkpoint, config=str(NANO))
    scheduler = models.load("v").scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr, "a model that predicts v is trained down to zero signal"
    scheduler = models.load("epsilon").scheduler
    assert (scheduler.config.prediction_type, scheduler.config.get("rescale_betas_zero_snr", False)) == ("epsilon", False)


def test_one_model_is_kept_and_the_one_before_is_given_back(table: Table) -> None:
    table["first"], table["second"] = model("first", NANO), model("second", NANO)
    first = weakref.ref(models.load("first").unet)
    second = models.load("second")
    assert models.load("second") is second, "a loaded model is opened again"
    assert models.loaded() == "second"
    assert first() is None, "the model before is still in memory"


def test_tokens_are_counted_as_the_loaded_model_reads_them(table: Table, nano: StableDiffusionXLPipeline) -> None:
    assert models.tokens("") == 0
    assert models.tokens("1girl, smile") == len(nano.tokenizer.tokenize("1girl, smile")) > 0
    one = models.tokens("smile")
    assert models.tokens("smile " * 200) == 200 * one, "what is past 75 is not counted"


def test_tokens_are_counted_while_no_model_is_loaded_and_none_is(nano: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody who types counts tokens; where two models do not fit, none is there while the next one is loaded."""
    known = models.tokens("1girl, smile")
    monkeypatch.setattr(models, "_loaded", {})
    assert models.tokens("1girl, smile") == known > 0
    assert models.loaded() is None


def test_what_two_models_share_is_kept(table: Table, checkpoint: Path) -> None:
    """The same encoders and VAE by their hash, from folders and from checkpoints; the U-Net is the model's own."""
    table["first"], table["second"] = model("first", NANO), model("second", NANO)
    table["one file"], table["another"] = (model(name, checkpoint, config=str(NANO)) for name in ("one file", "another"))
    for one, other in (("first", "second"), ("one file", "another")):
        before = {part: getattr(models.load(one), part) for part in PARTS}
        after = models.load(other)
        assert [part for part in PARTS if getattr(after, part) is before[part]] == ["text_encoder", "text_encoder_2", "vae"], f"{one}, then {other}"


def test_where_two_would_not_fit_the_first_goes_before_the_second_comes(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    table["first"], table["second"] = model("first", NANO), model("second", NANO)
    first = weakref.ref(models.load("first").unet)
    alive = []
    opened = opening.opened
    monkeypatch.setattr(models, "_free", lambda: 1)
    monkeypatch.setattr(opening, "opened", lambda *asked: alive.append(first()) or opened(*asked))
    assert models.load("second").unet is not None
    assert alive == [None], "the model before was still in memory when the next one was opened"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc keeps what is free inside of its heaps")
def test_what_a_model_that_is_left_took_goes_back_to_the_system(table: Table) -> None:
    """Weights below glibc's threshold lie in its heaps, whose free parts a process keeps until they are asked for."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    table["second"] = model("second", NANO)
    weights = [torch.ones(20_000) for _ in range(3000)]  # 240 MB
    kept = torch.ones(20_000)  # above them in the heap, which so cannot shrink by itself
    del weights
    before = resident()
    models.load("second")
    assert before - resident() > 100 * 2**20
    del kept


def test_a_descendant_has_a_unet_of_its_own_and_a_merge_is_the_mean(table: Table) -> None:
    table["cel"], table["paint"] = (model(name, NANO, unet=str(NANO.with_name(f"nano-{name}"))) for name in ("cel", "paint"))
    table["both"] = model("both", NANO, merge=("cel", "paint"))
    cel, paint, both = (models.load(name).unet.state_dict() for name in ("cel", "paint", "both"))
    kept = models.load("nano").unet.state_dict()
    key = "conv_in.weight"
    assert not torch.equal(cel[key], kept[key])
    assert not torch.equal(cel[key], paint[key])
    for key in cel:
        torch.testing.assert_close(both[key], (cel[key] + paint[key]) / 2, msg=f"{key} is not the mean")
