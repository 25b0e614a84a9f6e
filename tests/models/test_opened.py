"""Both layouts open to the same model, and only one model is kept."""

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
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from core.hub import client as hub
from core.models import bases, loader
from core.models import files as models_files
from core.schema.types import Model
from core.system import paths
from tests.hub.answers import COMMIT
from tests.models.parts import (
    COMPONENTS,
    NANO,
    ModelTable,
    assert_same_weights,
    build_full_size_parts,
    draw_picture,
    link_folder,
    make_model,
)


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_both_layouts_are_the_same_model(
    layout: str,
    table: ModelTable,
    nano: StableDiffusionXLPipeline,
    nano_picture: np.ndarray,
    checkpoint: Path,
) -> None:
    table["folder"] = make_model("folder", NANO)
    table["file"] = make_model("file", checkpoint, config=str(NANO))
    pipeline = bases.load_model(layout)
    assert bases.get_loaded_name() == layout
    assert_same_weights(pipeline, nano)
    assert pipeline.scheduler.config == nano.scheduler.config
    # Not bit for bit: transformers leaves weights where the file is mapped, and at another
    # alignment BLAS adds up in another order.
    np.testing.assert_allclose(draw_picture(pipeline), nano_picture, atol=1e-4)


def test_a_single_file_takes_configs_and_tokenizers_from_its_own_folder(
    table: ModelTable, nano: StableDiffusionXLPipeline, checkpoint: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    shutil.copytree(NANO, config, ignore=shutil.ignore_patterns("*.safetensors"))
    vae = config / "vae/config.json"
    vae.write_text(json.dumps(json.loads(vae.read_text()) | {"scaling_factor": 0.25}))
    table["file"] = make_model("file", checkpoint, config=str(config))
    pipeline = bases.load_model("file")
    assert pipeline.vae.config.scaling_factor == 0.25, "the configs are not those of the folder"
    assert pipeline.tokenizer.get_vocab() == nano.tokenizer.get_vocab()
    assert_same_weights(pipeline, nano)


def test_a_single_file_without_a_folder_takes_the_configs_of_sdxl(
    table: ModelTable, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of one's own opens on a machine without a connection and with an empty cache."""
    monkeypatch.setattr(
        hub, "snapshot_download", lambda *_args, **_kwargs: pytest.fail("the Hub was asked for configs")
    )
    for module in (models_files, loader):
        monkeypatch.setattr(module, "SDXL_CONFIGS", NANO)  # nano's file is of nano's size
    table["file"] = make_model("file", checkpoint)
    pipeline = bases.load_model("file")
    assert bases.get_loaded_name() == "file"
    assert (pipeline.tokenizer.pad_token, pipeline.tokenizer_2.pad_token) == ("<|endoftext|>", "!")


def test_the_configs_of_sdxl_are_whole_and_of_its_size() -> None:
    """With another width or layer, no checkpoint would open."""
    folder = models_files.SDXL_CONFIGS
    assert all((folder / file).exists() for file in ("model_index.json", "tokenizer/merges.txt"))
    parts = build_full_size_parts()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    # As the published weights are.
    assert counts == {
        "unet": 2_567_463_684,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "vae": 83_653_863,
    }
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert (scheduler["beta_start"], scheduler["beta_end"]) == (0.00085, 0.012)
    assert (scheduler["beta_schedule"], scheduler["steps_offset"]) == ("scaled_linear", 1)


@pytest.mark.parametrize(("is_second", "pad"), [(False, 49407), (True, 0)])
def test_a_prompt_has_clips_token_ids(is_second: bool, pad: int) -> None:
    """Another id is another word for every checkpoint."""
    folder = models_files.SDXL_CONFIGS
    tokenizer = (
        loader.load_second_tokenizer(folder)
        if is_second
        else CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    )
    assert len(tokenizer) == 49408
    ids = tokenizer("A photo of a cat", padding="max_length", max_length=9).input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407, pad, pad]
    assert tokenizer("masterpiece, 1girl", add_special_tokens=False).input_ids == [12066, 267, 272, 1611]


def test_without_a_revision_a_source_is_a_path(
    table: ModelTable, refusal_of: Callable[[Model], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        hub, "snapshot_download", lambda *_args, **_kwargs: pytest.fail("the Hub was asked for a local model")
    )
    monkeypatch.setattr(paths, "CODE", NANO.parent)
    monkeypatch.setenv("HOME", str(NANO.parent))
    assert "owner/name does not exist" in refusal_of(make_model("hub-like", "owner/name"))
    table["relative"] = make_model("relative", NANO.name)
    table["home"] = make_model("home", f"~/{NANO.name}")
    for name in ("relative", "home"):
        bases.load_model(name)
        assert bases.get_loaded_name() == name


def test_with_a_revision_a_source_is_a_repository_at_that_commit(
    table: ModelTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        hub, "snapshot_download", lambda *args, **kwargs: asked.append((args, kwargs)) or str(NANO)
    )
    table["hub"] = make_model("hub", "owner/name", revision=COMMIT)
    bases.load_model("hub")
    (((source,), kwargs),) = asked
    assert (source, kwargs["revision"], kwargs["token"]) == ("owner/name", COMMIT, False)
    assert {pattern.rpartition(".")[2] for pattern in kwargs["allow_patterns"]} == {
        "json",
        "txt",
        "safetensors",
    }


def test_a_variant_needs_only_its_own_files(
    table: ModelTable, nano: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    folder = link_folder(NANO, tmp_path / "folder")
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    # The index of the weights in full precision, which were not fetched.
    full = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    full.write_text(
        json.dumps(
            {
                "metadata": {},
                "weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"},
            }
        )
    )
    table["half"] = make_model("half", folder, variant="fp16")
    assert_same_weights(bases.load_model("half"), nano)


def test_either_spelling_of_a_tokenizer_opens(
    table: ModelTable, nano: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    folder = link_folder(NANO, tmp_path / "folder")
    for part in ("tokenizer", "tokenizer_2"):
        bpe = json.loads((folder / part / "tokenizer.json").read_text())["model"]
        (folder / part / "tokenizer.json").unlink()
        (folder / part / "vocab.json").write_text(json.dumps(bpe["vocab"]))
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
        (folder / part / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    table["older"] = make_model("older", folder)
    text = "1girl, long blue hair, (smile:1.2)"
    assert bases.load_model("older").tokenizer(text).input_ids == nano.tokenizer(text).input_ids


def test_v_prediction_is_the_tables_word(table: ModelTable, checkpoint: Path) -> None:
    table["v"] = make_model("v", checkpoint, config=str(NANO), prediction_type="v_prediction")
    table["epsilon"] = make_model("epsilon", checkpoint, config=str(NANO))
    scheduler = bases.load_model("v").scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr, "a model that predicts v is trained down to zero signal"
    scheduler = bases.load_model("epsilon").scheduler
    assert (scheduler.config.prediction_type, scheduler.config.get("rescale_betas_zero_snr", False)) == (
        "epsilon",
        False,
    )


@pytest.mark.parametrize(
    ("keys", "metadata", "prediction"),
    [
        (("v_pred", "ztsnr"), {}, ("v_prediction", True)),
        (("v_pred",), {}, ("v_prediction", False)),
        ((), {"modelspec.prediction_type": "v"}, ("v_prediction", False)),
        ((), {"modelspec.prediction_type": "epsilon"}, ("epsilon", False)),
    ],
)
def test_a_single_files_header_says_what_it_predicts(
    keys: tuple[str, ...],
    metadata: dict[str, str],
    prediction: tuple[str, bool],
    table: ModelTable,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    """NoobAI's v-prediction models, opened as epsilon, give noise."""
    file = tmp_path / "epsilon-by-name.safetensors"
    save_file({**load_file(checkpoint), **{key: torch.tensor([]) for key in keys}}, file, metadata)
    table["told"] = make_model("told", file, config=str(NANO))
    config = bases.load_model("told").scheduler.config
    assert (config.prediction_type, config.get("rescale_betas_zero_snr", False)) == prediction
    assert bases.find_prediction("told") == prediction


def test_one_model_is_kept_and_the_one_before_is_given_back(table: ModelTable) -> None:
    table["first"], table["second"] = make_model("first", NANO), make_model("second", NANO)
    first = weakref.ref(bases.load_model("first").unet)
    second = bases.load_model("second")
    assert bases.load_model("second") is second, "a loaded model is opened again"
    assert bases.get_loaded_name() == "second"
    assert first() is None, "the model before is still in memory"


def test_tokens_are_counted_as_the_loaded_model_reads_them(
    table: ModelTable, nano: StableDiffusionXLPipeline
) -> None:
    assert bases.count_prompt_tokens("") == 0
    assert bases.count_prompt_tokens("1girl, smile") == len(nano.tokenizer.tokenize("1girl, smile")) > 0
    one = bases.count_prompt_tokens("smile")
    assert bases.count_prompt_tokens("smile " * 200) == 200 * one, "what is past 75 is not counted"


def test_tokens_are_counted_while_no_model_is_loaded_and_none_is(
    nano: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page counts tokens while a person types.

    Where two models do not fit, no model is there while the next one is loaded.
    """
    known = bases.count_prompt_tokens("1girl, smile")
    monkeypatch.setattr(bases, "_pipelines", {})
    assert bases.count_prompt_tokens("1girl, smile") == known > 0
    assert bases.get_loaded_name() is None


def test_what_two_models_share_is_kept(table: ModelTable, checkpoint: Path) -> None:
    """The same encoders and VAE by their hash, from folders and from checkpoints, are kept.

    The U-Net is the model's own.
    """
    table["first"], table["second"] = make_model("first", NANO), make_model("second", NANO)
    table["one file"], table["another"] = (
        make_model(name, checkpoint, config=str(NANO)) for name in ("one file", "another")
    )
    for one, other in (("first", "second"), ("one file", "another")):
        before = {part: getattr(bases.load_model(one), part) for part in COMPONENTS}
        after = bases.load_model(other)
        assert [part for part in COMPONENTS if getattr(after, part) is before[part]] == [
            "text_encoder",
            "text_encoder_2",
            "vae",
        ], f"{one}, then {other}"


def test_where_two_would_not_fit_the_first_goes_before_the_second_comes(
    table: ModelTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    table["first"], table["second"] = make_model("first", NANO), make_model("second", NANO)
    first = weakref.ref(bases.load_model("first").unet)
    alive = []
    opened = loader.open_pipeline
    monkeypatch.setattr(bases, "_free_memory", lambda: 1)
    monkeypatch.setattr(loader, "open_pipeline", lambda *asked: alive.append(first()) or opened(*asked))
    assert bases.load_model("second").unet is not None
    assert alive == [None], "the model before was still in memory when the next one was opened"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc keeps what is free inside of its heaps")
def test_what_a_model_that_is_left_took_goes_back_to_the_system(table: ModelTable) -> None:
    """A person would run out of memory after a few models.

    Weights below glibc's threshold lie in its heaps, whose free parts a process keeps until they
    are asked for.
    """

    def read_resident_memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    table["second"] = make_model("second", NANO)
    weights = [torch.ones(20_000) for _ in range(3000)]  # 240 MB
    kept = torch.ones(20_000)  # above them in the heap, which so cannot shrink by itself
    del weights
    before = read_resident_memory()
    bases.load_model("second")
    assert before - read_resident_memory() > 100 * 2**20
    del kept


def test_a_descendant_has_a_unet_of_its_own_and_a_merge_is_the_mean(table: ModelTable) -> None:
    table["cel"], table["paint"] = (
        make_model(name, NANO, unet=str(NANO.with_name(f"nano-{name}"))) for name in ("cel", "paint")
    )
    table["both"] = make_model("both", NANO, merge=("cel", "paint"))
    cel, paint, both = (bases.load_model(name).unet.state_dict() for name in ("cel", "paint", "both"))
    kept = bases.load_model("nano").unet.state_dict()
    key = "conv_in.weight"
    assert not torch.equal(cel[key], kept[key])
    assert not torch.equal(cel[key], paint[key])
    for key in cel:
        torch.testing.assert_close(both[key], (cel[key] + paint[key]) / 2, msg=f"{key} is not the mean")
