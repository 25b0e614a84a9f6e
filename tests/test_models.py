"""core.models: both layouts open to the same model; what cannot be had is said in one sentence, and the loaded model stays."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file

from core import models, presets
from core.device import Machine
from core.types import Model, UserError
from tests.single_file import write

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "core/nano/weights/nano"
FILES = sorted(str(file.relative_to(NANO)) for file in NANO.rglob("*.*") if file.suffix in (".json", ".safetensors"))
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CPU = Machine(device="cpu", name="CPU", memory=2**34, dtype=torch.float32, attention="sdpa", tile_vae=False, offload=False)

Table = dict[str, Model]


@pytest.fixture(scope="module")
def nano() -> StableDiffusionXLPipeline:
    """The embedded model as diffusers opens it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(NANO, dtype=CPU.dtype, use_safetensors=True, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in one file, in the original layout."""
    file = tmp_path_factory.mktemp("checkpoint") / "nano.safetensors"
    write(NANO, file)
    return file


@pytest.fixture
def table(nano: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table of base models to add to, on a machine without a GPU; `nano` is in it and loaded."""
    table = {"nano": model("nano", NANO)}
    monkeypatch.setattr(presets, "models", lambda: table)
    monkeypatch.setattr(models, "this_machine", lambda: CPU)
    monkeypatch.setattr(models, "_loaded", {"nano": nano})
    return table


@pytest.fixture(scope="module")
def drawn(nano: StableDiffusionXLPipeline) -> np.ndarray:
    """What the embedded model draws."""
    return picture(nano)


@pytest.fixture
def refused(table: Table, nano: StableDiffusionXLPipeline, drawn: np.ndarray) -> Callable[[Model], str]:
    """`refused(model)`: the sentence it is refused with, once it is sure that the loaded model stays as it was."""

    def sentence(wrong: Model) -> str:
        table.setdefault(wrong.name, wrong)
        with pytest.raises(UserError) as error:
            models.load(wrong.name)
        said = str(error.value)
        assert said.startswith("model: ")
        assert said.endswith("; nano stays loaded.")
        assert "\n" not in said
        assert len(said) < 300, f"too long to be read: {said}"
        assert models.loaded() == "nano"
        assert models.load("nano") is nano
        assert np.array_equal(picture(nano), drawn), "the loaded model draws another picture than before"
        return said

    return sentence


def model(name: str, source: Path | str, **fields: str | None) -> Model:
    return Model(**{"name": name, "title": f"The {name}", "source": str(source), "licence": "apache-2.0", **fields})


def picture(pipeline: StableDiffusionXLPipeline) -> np.ndarray:
    """(64, 64, 3) in 0..1, after two steps."""
    seed = torch.Generator().manual_seed(1)
    return np.asarray(pipeline("1girl, smile", width=64, height=64, num_inference_steps=2, generator=seed, output_type="np").images[0])


def folder_of(nano_files: Path, folder: Path) -> Path:
    """A copy whose files can be replaced (unlink first: they are links)."""
    shutil.copytree(nano_files, folder, copy_function=os.symlink)
    return folder


def assert_same_weights(ours: StableDiffusionXLPipeline, theirs: StableDiffusionXLPipeline) -> None:
    for part in PARTS:
        a, b = getattr(ours, part).state_dict(), getattr(theirs, part).state_dict()
        assert a.keys() == b.keys(), f"{part}: other weights than diffusers'"
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, f"{part}: {len(different)} weights differ, {different[0]} first"


# --- what can be had -------------------------------------------------------------------------


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
    monkeypatch.setattr(models, "snapshot_download", lambda *args, **kwargs: asked.append((args, kwargs)) or str(NANO))
    table["file"] = model("file", checkpoint)
    models.load("file")
    (((source,), kwargs),) = asked
    assert source == "stabilityai/stable-diffusion-xl-base-1.0"
    assert len(kwargs["revision"]) == 40
    assert not any("safetensors" in pattern for pattern in kwargs["allow_patterns"]), "SDXL's 7 GB would be fetched for its configs"


def test_without_a_revision_a_source_is_a_path(table: Table, refused: Callable[[Model], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "snapshot_download", lambda *_args, **_kwargs: pytest.fail("the Hub was asked for a local model"))
    monkeypatch.setattr(models, "ROOT", NANO.parent)
    monkeypatch.setenv("HOME", str(NANO.parent))
    assert "owner/name is not there" in refused(model("hub-like", "owner/name"))
    table["relative"] = model("relative", NANO.name)
    table["home"] = model("home", f"~/{NANO.name}")
    for name in ("relative", "home"):
        models.load(name)
        assert models.loaded() == name


def test_with_a_revision_a_source_is_a_repository_at_that_commit(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(models, "snapshot_download", lambda *args, **kwargs: asked.append((args, kwargs)) or str(NANO))
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


# --- what cannot be had ----------------------------------------------------------------------


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


class Canary:
    """Pickled, and loaded by whoever trusts it, it leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable, tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("layout", ["bin only", "bin beside other safetensors", "ckpt", "pickle named safetensors"])
def test_no_pickle_is_opened(layout: str, refused: Callable[[Model], str], tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"^model: 'nonesuch' is unknown; it takes nano, other\.$"):
        models.load("nonesuch")
    with pytest.raises(UserError) as error:
        models.load("x" * 10_000)
    assert len(str(error.value)) < 200
    assert models.load("nano") is nano


def test_offline_a_model_of_the_hub_is_refused(refused: Callable[[Model], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what the environment's HF_HUB_OFFLINE=1 sets when it is imported
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    said = refused(model("far", "owner/name", revision=COMMIT))
    assert "The far (owner/name) is not on this machine and the Hub cannot be reached;" in said


@pytest.mark.parametrize("error", [HTTPError("Server disconnected"), ConnectionResetError(), RuntimeError("Data processing error")], ids=repr)
def test_a_download_that_breaks_off_is_refused(error: Exception, refused: Callable[[Model], str], monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_off(*_args: object, **_kwargs: object) -> str:
        raise error

    monkeypatch.setattr(models, "snapshot_download", breaks_off)
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


# --- what the Hub sees -----------------------------------------------------------------------


@contextmanager
def hub(folder: Path, more: list[str]) -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """A Hub on this machine with one repository, `tiny/nano`: its address and the requests it got; `more` are files in name only."""
    requests: list[tuple[str, dict[str, str]]] = []
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*.*")}
    tree = [{"type": "file", "path": name, "size": files[name].stat().st_size if name in files else 1, "oid": name} for name in [*files, *more]]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            requests.append((path, {key.lower(): value for key, value in self.headers.items()}))
            name = path.removeprefix(f"/tiny/nano/resolve/{COMMIT}/")
            if path == f"/api/models/tiny/nano/tree/{COMMIT}":
                self.answer(json.dumps(tree).encode(), name)
            elif name in files:
                self.answer(files[name].read_bytes(), name)
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def answer(self, body: bytes, name: str) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(body)), "ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Content-Type": "application/json"}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


def test_the_hub_is_asked_anonymously_and_for_nothing_that_can_run(tmp_path: Path) -> None:
    more = ["nano.ckpt", "nano.safetensors", "unet/diffusion_pytorch_model.bin", "unet/own.py", "README.md"]
    load = f"""if True:
        from core import models, presets
        from core.types import Model
        presets.models = lambda: {{"far": {model("far", "tiny/nano", revision=COMMIT)!r}}}
        print(models.load("far").config["scheduler"], models.loaded())
    """
    with hub(NANO, more) as (address, requests):
        mine = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        mine |= {"HF_ENDPOINT": address, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        done = subprocess.run([sys.executable, "-c", load], cwd=ROOT, env=mine, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" far\n")
    paths = [path for path, _ in requests]
    assert sum(path.endswith(".safetensors") for path in paths) >= 4, f"the model did not come from here: {paths}"
    told = [path for path, headers in requests if "authorization" in headers or "hf_secret" in str(headers)]
    assert not told, f"the token was sent to {told}"
    asked = [name for name in more if any(path.endswith(f"/{name}") for path in paths)]
    assert not asked, f"asked for {asked}"
