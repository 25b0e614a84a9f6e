"""Bases, upscalers and detectors by `owner/name`.

They are checked before they are fetched, come from one commit that the picture names, and never
bring code.
"""

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

from core.generate import request
from core.generate.pipeline import generate
from core.hub import downloads
from core.models import bases, files, from_hub, loader, lora_library, tools
from core.prompts.infotext import create_infotext, parse_infotext
from core.publish.plan import PublicationForm, plan_publication
from core.runtime import torch_thread
from core.schema import limits, presets
from core.schema.errors import UserError
from core.schema.events import DownloadProgress, Picture
from core.schema.records import read_form
from core.schema.types import Cell, Model, Request
from core.system import concurrency
from core.system.concurrency import drain
from tests.hub.server_state import Hub
from tests.models.parts import NANO, link_folder, make_model
from tests.publish.test_card import EXAMPLE
from tests.single_file import write_checkpoint

NANO_FAMILY = NANO.parent
REQUEST = Request(
    model="nano",
    prompt="1girl, smile",
    negative="",
    width=64,
    height=64,
    steps=2,
    cfg=4.0,
    sampler="Euler a",
    seed=3,
)


@pytest.fixture
def nano_on_hub(hub_server: Hub, tmp_path: Path) -> Hub:
    """ann/tiny is nano as a diffusers folder; ann/tools holds an upscaler and a detector."""
    api = HfApi(token="hf_ann")
    api.create_repo("ann/tiny")
    api.upload_folder(repo_id="ann/tiny", folder_path=NANO)
    api.upload_file(
        repo_id="ann/tiny", path_or_fileobj=b"---\nlicense: openrail++\n---\n", path_in_repo="README.md"
    )
    api.create_repo("ann/tools")
    for name in ("upscaler/model.safetensors", "detector/model.onnx"):
        api.upload_file(repo_id="ann/tools", path_or_fileobj=NANO_FAMILY / name, path_in_repo=name)
    hub_server.requests.clear()
    return hub_server


def get_commit(repo: str) -> str:
    """Return the id of the repository's newest commit."""
    return str(HfApi(token="hf_ann").model_info(repo).sha)


def upload_changed_nano(tmp_path: Path, change: Callable[[Path], None]) -> str:
    """Upload nano with a change as ann/other, and return its id."""
    folder = link_folder(NANO, tmp_path / "other")
    change(folder)
    HfApi(token="hf_ann").create_repo("ann/other")
    HfApi(token="hf_ann").upload_folder(repo_id="ann/other", folder_path=folder)
    return "ann/other"


def write_json(file: Path, content: object) -> None:
    file.unlink()
    file.write_text(json.dumps(content))


def name_another_pipeline(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    write_json(folder / "model_index.json", {**index, "_class_name": "FluxPipeline"})


def add_own_code(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    write_json(folder / "model_index.json", {**index, "unet": ["own_unet", "OwnUNet"]})


def add_auto_map(folder: Path) -> None:
    config = json.loads((folder / "unet/config.json").read_text())
    write_json(folder / "unet/config.json", {**config, "auto_map": {"AutoModel": "own.Own"}})


def add_endless_layers(folder: Path) -> None:
    config = json.loads((folder / "unet/config.json").read_text())
    write_json(folder / "unet/config.json", {**config, "layers_per_block": 10**9})


def make_inpainting(folder: Path) -> None:
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"] = torch.zeros(48, 9, 3, 3)
    file.unlink()
    save_file(weights, file)


def remove_vae(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()


def test_a_base_is_fetched_once_at_its_commit_and_makes_the_same_picture(
    nano_on_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {**presets.get_models(), "twin": make_model("twin", NANO, native_size=128)}
    monkeypatch.setattr(presets, "get_models", lambda: table)
    at = get_commit("ann/tiny")
    nano_on_hub.requests.clear()
    found = bases.find_model("ann/tiny")
    assert (found.name, found.native_size, found.licence) == (f"ann/tiny@{at}", 128, "openrail++")
    cells = [Cell(label="", request=replace(REQUEST, model=name)) for name in ("twin", found.name)]
    own, its = (
        next(
            event.image
            for event in torch_thread.run_on_torch_thread(list, generate([cell]))
            if isinstance(event, Picture)
        )
        for cell in cells
    )
    assert np.array_equal(np.asarray(own), np.asarray(its))
    told = create_infotext(cells[1].request, found)
    assert parse_infotext(told).fields["model"] == found.name
    fetched = [
        one.path
        for one in nano_on_hub.requests
        if "resolve" in one.path and one.method == "GET" and "range" not in one.headers
    ]
    assert len(fetched) == len(set(fetched)), "a file was fetched twice"
    assert not [one for one in nano_on_hub.requests if "authorization" in one.headers]
    nano_on_hub.requests.clear()
    torch_thread.run_on_torch_thread(bases.load_model, "nano")
    torch_thread.run_on_torch_thread(bases.load_model, found.name)
    assert not nano_on_hub.requests, "the Hub was asked for what is here"
    torch_thread.run_on_torch_thread(bases.load_model, "nano")


def test_what_nobody_uses_goes_from_a_space_and_is_fetched_again(
    nano_on_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file goes when its time is over, or when the next download has no room.

    What the studio's tables name never goes, and at home nothing does.
    """
    table = {
        "own": replace(
            presets.get_tools()["nano DAT x2"],
            name="own",
            source="ann/tools",
            revision=get_commit("ann/tools"),
            file="upscaler/model.safetensors",
        )
    }
    monkeypatch.setattr(presets, "get_tools", lambda: table)
    kept = tools.fetch_tool("upscaler", "own")
    found = bases.find_model("ann/tiny")
    weights = files.fetch_model_files(found) / "unet/diffusion_pytorch_model.safetensors"
    for blob in Path(constants.HF_HUB_CACHE).rglob("blobs/*"):
        os.utime(blob, (time.time() - limits.DAY, time.time() - limits.DAY))
    assert downloads.remove_unused_repos(limits.HOUR) == 0
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    assert downloads.remove_unused_repos(2 * limits.DAY) == 0
    free = iter((0, 10**9))
    monkeypatch.setattr(downloads, "_get_free_bytes", lambda: next(free, 10**9))
    HfApi(token="hf_ann").create_repo("ann/soft")
    HfApi(token="hf_ann").upload_file(
        repo_id="ann/soft", path_or_fileobj=EXAMPLE, path_in_repo="soft.safetensors"
    )
    from_hub.fetch_lora("ann/soft")
    assert (weights.exists(), kept.exists()) == (False, True)
    files.fetch_model_files(found)
    assert weights.exists()


def test_a_checkpoint_is_a_base_too(
    nano_on_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(NANO, tmp_path / "one.safetensors")
    HfApi(token="hf_ann").create_repo("ann/single")
    HfApi(token="hf_ann").upload_file(
        repo_id="ann/single", path_or_fileobj=tmp_path / "one.safetensors", path_in_repo="one.safetensors"
    )
    found = bases.find_model("ann/single")
    assert found.name == f"ann/single@{get_commit('ann/single')}:one.safetensors"
    # Without `config` its configs would be SDXL's, of the Hub.
    made = drain(loader.open_pipeline(replace(found, config=str(NANO)), files.fetch_model_files(found), {}))
    assert made.unet.config.cross_attention_dim == 160
    assert found.prediction_type is None
    save_file(
        {**load_file(tmp_path / "one.safetensors"), "v_pred": torch.ones(0)}, tmp_path / "v.safetensors"
    )
    HfApi(token="hf_ann").create_repo("ann/velocity")
    HfApi(token="hf_ann").upload_file(
        repo_id="ann/velocity", path_or_fileobj=tmp_path / "v.safetensors", path_in_repo="v.safetensors"
    )
    velocity = bases.find_model("ann/velocity")
    assert velocity.prediction_type == "v_prediction", "opened as epsilon, it makes noise"
    assert files.find_on_disk(velocity) is None, "all of it was fetched to read its header"
    assert files.find_prediction(velocity, files.fetch_model_files(velocity)) == ("v_prediction", False)
    HfApi(token="hf_ann").create_repo("ann/lora")
    HfApi(token="hf_ann").upload_file(
        repo_id="ann/lora", path_or_fileobj=EXAMPLE, path_in_repo="lora.safetensors"
    )
    with pytest.raises(
        UserError, match=r"model: ann/lora's lora\.safetensors is not a complete SDXL checkpoint"
    ):
        bases.find_model("ann/lora")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (name_another_pipeline, "ann/other is a FluxPipeline. Use a StableDiffusionXLPipeline"),
        (add_own_code, r"ann/other contains code \(model_index.json\), which is never run here"),
        (add_auto_map, r"ann/other contains code \(unet/config.json\), which is never run here"),
        (
            add_endless_layers,
            "ann/other has 1000000000 as layers_per_block in unet/config.json; the limit is 2",
        ),
        (make_inpainting, "takes 9 channels, like an inpainting model"),
        (remove_vae, r"ann/other has no vae/diffusion_pytorch_model\*\.safetensors"),
    ],
)
def test_what_is_no_base_is_refused_before_its_weights_are_fetched(
    hub_server: Hub, tmp_path: Path, change: Callable[[Path], None], sentence: str
) -> None:
    name = upload_changed_nano(tmp_path, change)
    hub_server.requests.clear()
    with pytest.raises(UserError, match=sentence):
        bases.find_model(name)
    whole = [
        one.path
        for one in hub_server.requests
        if one.method == "GET" and one.path.endswith(".safetensors") and "range" not in one.headers
    ]
    assert not whole, f"fetched {whole} to refuse it"


@pytest.mark.parametrize("kind", ["401", "403 gated", "404"])
def test_gated_private_and_gone_are_one_sentence(nano_on_hub: Hub, kind: str) -> None:
    nano_on_hub.fail("GET /api/models/ann/tiny", kind, times=6)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="ann/tiny") as error:
        bases.find_model("ann/tiny")
    assert str(error.value).startswith("model: ann/tiny is ")


def test_an_upscaler_and_a_detector_stand_in_the_picture_with_their_commit(nano_on_hub: Hub) -> None:
    values = {
        "preset": "nano-baxl",
        "prompt": "1girl",
        "expand": False,
        "width": 64,
        "height": 64,
        "steps": 2,
        "seed": 1,
    }
    values |= {"hires": {"upscaler": "ann/tools"}, "detail": {"detector": "ann/tools"}}
    assert not request.find_form_problems(values)
    (cell,) = request.build_cells(request.resolve_seed(read_form(request.PictureForm, values)))
    assert cell.request.hires
    assert cell.request.detail
    at = get_commit("ann/tools")
    assert cell.request.hires.upscaler == f"ann/tools@{at}:upscaler/model.safetensors"
    assert cell.request.detail.detector == f"ann/tools@{at}:detector/model.onnx"
    assert [
        event
        for event in torch_thread.run_on_torch_thread(list, generate([cell]))
        if isinstance(event, Picture)
    ]
    told = parse_infotext(create_infotext(cell.request)).fields
    assert told["hires"]["upscaler"] == cell.request.hires.upscaler
    assert told["detail"]["detector"] == cell.request.detail.detector
    assert (
        "unknown"
        in request.find_form_problems({**values, "hires": {"upscaler": "nonesuch"}})["hires.upscaler"]
    )
    assert (
        "no nope.safetensors"
        in request.find_form_problems({**values, "hires": {"upscaler": "ann/tools:nope.safetensors"}})[
            "hires.upscaler"
        ]
    )


def test_a_lora_of_the_hub_is_named_in_the_picture(nano_on_hub: Hub) -> None:
    api = HfApi(token="hf_ann")
    api.create_repo("ann/soft")
    api.upload_file(path_or_fileobj=EXAMPLE, path_in_repo="soft.safetensors", repo_id="ann/soft")
    uses = lora_library.parse_lora_list([{"lora": "ann/soft", "strength": 1.5}])
    exact = f"ann/soft@{get_commit('ann/soft')}:soft.safetensors"
    assert (
        parse_infotext(create_infotext(REQUEST, extra=lora_library.hash_loras(uses))).unused["Lora origins"]
        == f"soft: {exact}"
    )
    nano_on_hub.requests.clear()
    assert lora_library.parse_lora_list([{"lora": exact, "strength": 1.5}]) == uses
    assert not nano_on_hub.requests, "the Hub was asked for what is here"


def test_what_arrives_is_told(nano_on_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "POLL_SECONDS", 0.001)  # the server gives all of it at once
    found = bases.find_model("ann/tiny")
    told = list(downloads.report_downloads(files.fetch_model_files, found))
    assert told
    assert all(
        isinstance(each, DownloadProgress)
        and each.repo == "ann/tiny"
        and 0 <= each.bytes_done <= each.bytes_total
        for each in told
    )
    assert not list(downloads.report_downloads(files.fetch_model_files, found)), (
        "what is here was fetched again"
    )


def test_no_room_for_a_base_is_said_before_it_is_fetched(
    nano_on_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = bases.find_model("ann/tiny")
    monkeypatch.setattr(downloads, "_get_free_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"ann/tiny has [\d,]+ bytes, but only 1,000 bytes are free"):
        files.fetch_model_files(found)


def test_a_base_of_the_hub_is_the_cards_base(nano_on_hub: Hub) -> None:
    made = plan_publication(
        read_form(PublicationForm, {"lora": str(EXAMPLE), "repo": "ann/lora", "home": "ann/tiny"})
    )
    assert isinstance(made.base, Model)
    assert (made.base.source, made.licence) == ("ann/tiny", "openrail++")
    with pytest.raises(UserError, match="home: 'nonesuch' is unknown"):
        plan_publication(
            read_form(PublicationForm, {"lora": str(EXAMPLE), "repo": "ann/lora", "home": "nonesuch"})
        )


@pytest.mark.parametrize(
    "name",
    [
        "ann/../bob",
        "http://127.0.0.1/x",
        "ann/tiny:../../x.safetensors",
        "ann/tiny:x.ckpt",
        "/etc/passwd",
    ],
)
def test_what_is_no_id_is_never_asked_for(hub_server: Hub, name: str) -> None:
    with pytest.raises(UserError, match="model: "):
        bases.find_model(name)
    assert not hub_server.requests
