"""Bases, upscalers and detectors by `owner/name`: looked at before they are fetched, at one commit that the picture names, code never."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file

from core import arriving, aside, asking, gpu, hubcache, limits, modelfiles, models, opening, presets, pulled, shelf, tools
from core.aside import drain
from core.events import Fetch, Picture
from core.generate import generate
from core.infotext import infotext, read
from core.publish.plan import plan
from core.types import Cell, Model, Request, UserError
from tests.models.parts import NANO, folder_of, model
from tests.publish.hub import Hub
from tests.publish.test_card import EXAMPLE
from tests.single_file import write

WEIGHTS = NANO.parent
REQUEST = Request(model="nano", prompt="1girl, smile", negative="", width=64, height=64, steps=2, cfg=4.0, sampler="Euler a", seed=3)


@pytest.fixture
def nano_there(hub_server: Hub, tmp_path: Path) -> Hub:
    """ann/tiny is nano as a diffusers folder; ann/tools holds an upscaler and a detector."""
    api = HfApi(token="hf_ann")
    api.create_repo("ann/tiny")
    api.upload_folder(repo_id="ann/tiny", folder_path=NANO)
    api.upload_file(repo_id="ann/tiny", path_or_fileobj=b"---\nlicense: openrail++\n---\n", path_in_repo="README.md")
    api.create_repo("ann/tools")
    for name in ("upscaler/model.safetensors", "detector/model.onnx"):
        api.upload_file(repo_id="ann/tools", path_or_fileobj=WEIGHTS / name, path_in_repo=name)
    hub_server.asked.clear()
    return hub_server


def commit(repo: str) -> str:
    """The one that it has now."""
    return str(HfApi(token="hf_ann").model_info(repo).sha)


def changed(tmp_path: Path, change: Callable[[Path], None]) -> str:
    """nano as ann/other, with a change."""
    folder = folder_of(NANO, tmp_path / "other")
    change(folder)
    HfApi(token="hf_ann").create_repo("ann/other")
    HfApi(token="hf_ann").upload_folder(repo_id="ann/other", folder_path=folder)
    return "ann/other"


def put(file: Path, made: object) -> None:
    file.unlink()
    file.write_text(json.dumps(made))


def another_pipeline(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    put(folder / "model_index.json", {**index, "_class_name": "FluxPipeline"})


def own_code(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    put(folder / "model_index.json", {**index, "unet": ["own_unet", "OwnUNet"]})


def own_config(folder: Path) -> None:
    config = json.loads((folder / "unet/config.json").read_text())
    put(folder / "unet/config.json", {**config, "auto_map": {"AutoModel": "own.Own"}})


def endless(folder: Path) -> None:
    config = json.loads((folder / "unet/config.json").read_text())
    put(folder / "unet/config.json", {**config, "layers_per_block": 10**9})


def inpainting(folder: Path) -> None:
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"] = torch.zeros(48, 9, 3, 3)
    file.unlink()
    save_file(weights, file)


def without_vae(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()


def test_a_base_is_fetched_once_at_its_commit_and_makes_the_same_picture(nano_there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {**presets.models(), "twin": model("twin", NANO, native_size=128)}
    monkeypatch.setattr(presets, "models", lambda: table)
    at = commit("ann/tiny")
    nano_there.asked.clear()
    found = models.find("ann/tiny")
    assert (found.name, found.native_size, found.licence) == (f"ann/tiny@{at}", 128, "openrail++")
    cells = [Cell(label="", request=replace(REQUEST, model=name)) for name in ("twin", found.name)]
    own, its = (next(event.image for event in gpu.lane(list, generate([cell])) if isinstance(event, Picture)) for cell in cells)
    assert np.array_equal(np.asarray(own), np.asarray(its))
    told = infotext(cells[1].request, found)
    assert read(told).fields["model"] == found.name
    fetched = [one.path for one in nano_there.asked if "resolve" in one.path and one.method == "GET" and "range" not in one.headers]
    assert len(fetched) == len(set(fetched)), "a file was fetched twice"
    assert not [one for one in nano_there.asked if "authorization" in one.headers]
    nano_there.asked.clear()
    gpu.lane(models.load, "nano")
    gpu.lane(models.load, found.name)
    assert not nano_there.asked, "the Hub was asked for what is here"
    gpu.lane(models.load, "nano")


def test_what_nobody_uses_goes_from_a_space_and_is_fetched_again(nano_there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its time is over, or when the next download has no room; never what the studio's tables name, and at home nothing."""
    table = {"own": replace(presets.tools()["nano DAT x2"], name="own", source="ann/tools", revision=commit("ann/tools"), file="upscaler/model.safetensors")}
    monkeypatch.setattr(presets, "tools", lambda: table)
    kept = tools.file("upscaler", "own")
    found = models.find("ann/tiny")
    weights = modelfiles.folder(found) / "unet/diffusion_pytorch_model.safetensors"
    for blob in Path(constants.HF_HUB_CACHE).rglob("blobs/*"):
        os.utime(blob, (time.time() - limits.DAY, time.time() - limits.DAY))
    assert hubcache.swept(limits.HOUR) == 0
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    assert hubcache.swept(2 * limits.DAY) == 0
    free = iter((0, 10**9))
    monkeypatch.setattr(arriving, "_free", lambda: next(free, 10**9))
    HfApi(token="hf_ann").create_repo("ann/soft")
    HfApi(token="hf_ann").upload_file(repo_id="ann/soft", path_or_fileobj=EXAMPLE, path_in_repo="soft.safetensors")
    pulled.lora("ann/soft")
    assert (weights.exists(), kept.exists()) == (False, True)
    modelfiles.folder(found)
    assert weights.exists()


def test_a_checkpoint_is_a_base_too(nano_there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(NANO, tmp_path / "one.safetensors")
    HfApi(token="hf_ann").create_repo("ann/single")
    HfApi(token="hf_ann").upload_file(repo_id="ann/single", path_or_fileobj=tmp_path / "one.safetensors", path_in_repo="one.safetensors")
    found = models.find("ann/single")
    assert found.name == f"ann/single@{commit('ann/single')}:one.safetensors"
    made = drain(opening.opened(replace(found, config=str(NANO)), modelfiles.folder(found), {}))  # its configs would be SDXL's, of the Hub
    assert made.unet.config.cross_attention_dim == 160
    HfApi(token="hf_ann").create_repo("ann/lora")
    HfApi(token="hf_ann").upload_file(repo_id="ann/lora", path_or_fileobj=EXAMPLE, path_in_repo="lora.safetensors")
    with pytest.raises(UserError, match=r"model: ann/lora's lora\.safetensors is not a whole SDXL checkpoint"):
        models.find("ann/lora")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (another_pipeline, "ann/other is a FluxPipeline; it takes StableDiffusionXLPipeline"),
        (own_code, r"ann/other brings code of its own \(model_index.json\), and none is run here"),
        (own_config, r"ann/other brings code of its own \(unet/config.json\), and none is run here"),
        (endless, "ann/other has 1000000000 as layers_per_block in unet/config.json; it takes up to 2"),
        (inpainting, "takes 9 channels, as a model for inpainting does"),
        (without_vae, r"ann/other has no vae/diffusion_pytorch_model\*\.safetensors"),
    ],
)
def test_what_is_no_base_is_refused_before_its_weights_are_fetched(hub_server: Hub, tmp_path: Path, change: Callable[[Path], None], sentence: str) -> None:
    name = changed(tmp_path, change)
    hub_server.asked.clear()
    with pytest.raises(UserError, match=sentence):
        models.find(name)
    whole = [one.path for one in hub_server.asked if one.method == "GET" and one.path.endswith(".safetensors") and "range" not in one.headers]
    assert not whole, f"fetched {whole} to refuse it"


@pytest.mark.parametrize("kind", ["401", "403 gated", "404"])
def test_gated_private_and_gone_are_one_sentence(nano_there: Hub, kind: str) -> None:
    nano_there.fail("GET /api/models/ann/tiny", kind, times=6)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="ann/tiny") as error:
        models.find("ann/tiny")
    assert str(error.value).startswith("model: ann/tiny is ")


def test_an_upscaler_and_a_detector_stand_in_the_picture_with_their_commit(nano_there: Hub) -> None:
    values = {"preset": "nano-baxl", "prompt": "1girl", "expand": False, "width": 64, "height": 64, "steps": 2, "seed": 1}
    values |= {"hires": {"upscaler": "ann/tools"}, "detail": {"detector": "ann/tools"}}
    assert not asking.problems(values)
    (cell,) = asking.cells(asking.settled(values))
    assert cell.request.hires
    assert cell.request.detail
    at = commit("ann/tools")
    assert cell.request.hires.upscaler == f"ann/tools@{at}:upscaler/model.safetensors"
    assert cell.request.detail.detector == f"ann/tools@{at}:detector/model.onnx"
    assert [event for event in gpu.lane(list, generate([cell])) if isinstance(event, Picture)]
    told = read(infotext(cell.request)).fields
    assert told["hires"]["upscaler"] == cell.request.hires.upscaler
    assert told["detail"]["detector"] == cell.request.detail.detector
    assert "unknown" in asking.problems({**values, "hires": {"upscaler": "nonesuch"}})["hires.upscaler"]
    assert "no nope.safetensors" in asking.problems({**values, "hires": {"upscaler": "ann/tools:nope.safetensors"}})["hires"]


def test_a_lora_of_the_hub_is_named_in_the_picture(nano_there: Hub) -> None:
    api = HfApi(token="hf_ann")
    api.create_repo("ann/soft")
    api.upload_file(path_or_fileobj=EXAMPLE, path_in_repo="soft.safetensors", repo_id="ann/soft")
    uses = shelf.listed([{"lora": "ann/soft", "strength": 1.5}])
    exact = f"ann/soft@{commit('ann/soft')}:soft.safetensors"
    assert read(infotext(REQUEST, extra=shelf.hashes(uses))).unused["Lora origins"] == f"soft: {exact}"
    nano_there.asked.clear()
    assert shelf.listed([{"lora": exact, "strength": 1.5}]) == uses
    assert not nano_there.asked, "the Hub was asked for what is here"


def test_what_arrives_is_told(nano_there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "LOOK", 0.001)  # the server gives all of it at once
    found = models.find("ann/tiny")
    told = list(arriving.fetching(modelfiles.folder, found))
    assert told
    assert all(isinstance(each, Fetch) and each.what == "ann/tiny" and 0 <= each.done <= each.total for each in told)
    assert not list(arriving.fetching(modelfiles.folder, found)), "what is here was fetched again"


def test_no_room_for_a_base_is_said_before_it_is_fetched(nano_there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = models.find("ann/tiny")
    monkeypatch.setattr(arriving, "_free", lambda: 1000)
    with pytest.raises(UserError, match=r"model has [\d,]+ bytes, and the disk has room for 1,000"):
        modelfiles.folder(found)


def test_a_base_of_the_hub_is_the_cards_base(nano_there: Hub) -> None:
    made = plan({"lora": str(EXAMPLE), "repo": "ann/lora", "home": "ann/tiny"})
    assert isinstance(made.base, Model)
    assert (made.base.source, made.licence) == ("ann/tiny", "openrail++")
    with pytest.raises(UserError, match="home: 'nonesuch' is unknown"):
        plan({"lora": str(EXAMPLE), "repo": "ann/lora", "home": "nonesuch"})


@pytest.mark.parametrize("name", ["ann/../bob", "http://127.0.0.1/x", "ann/tiny@main", "ann/tiny:../../x.safetensors", "ann/tiny:x.ckpt", "/etc/passwd"])
def test_what_is_no_id_is_never_asked_for(hub_server: Hub, name: str) -> None:
    with pytest.raises(UserError, match="model: "):
        models.find(name)
    assert not hub_server.asked
