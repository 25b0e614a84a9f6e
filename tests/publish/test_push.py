"""To the Hub and back: what is sent file by file, faults that leave nothing half, and nobody else's repository."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from huggingface_hub import HfApi, ModelCard, constants, hf_api, hf_hub_download
from huggingface_hub.utils import _http
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core import gpu, lorafile, models, paths, patience
from core.digest import content
from core.events import Picture
from core.infotext import infotext
from core.publish.bundle import bundle
from core.publish.plan import plan
from core.publish.push import compared, pushed
from core.record import save_png
from core.types import Cell, Request, UserError
from tests.publish.hub import MORE, Hub
from tests.publish.test_card import EXAMPLE, REPORT
from tests.train.parts import CAPTIONS, dataset, followed, prepared

ANN = "hf_ann"
SIZE = {"width": 64, "height": 64, "steps": 2}
TOLD: dict[str, Any] = {"model": "nano", "prompt": "1girl, smile", "negative": "", "cfg": 1.0, "sampler": "Euler a", "seed": 1, **SIZE}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One made here, with its settings inside."""
    request = Request(**TOLD)
    (made,) = (event for event in gpu.run([Cell(label="", request=request)]) if isinstance(event, Picture))
    file = tmp_path_factory.mktemp("made") / "one.png"
    save_png(made.image, file, infotext(request))
    return file


def files(folder: Path, **values: Any) -> dict[str, Path]:
    return bundle(plan({"lora": str(EXAMPLE), "repo": "ann/soft", "home": "nano", **values}), folder)


def push(made: dict[str, Path], repo: str = "ann/soft", token: str = ANN, **more: Any) -> str:
    return pushed(repo, made, token, private=True, message="Publish it", **more)


def test_case_26_what_is_sent_is_what_is_pulled(hub_server: Hub, tmp_path: Path, picture: Path) -> None:
    made = files(tmp_path, title="Soft", trigger="soft", sweep=[REPORT], pictures=[str(picture)])
    before = compared("ann/soft", made, ANN)
    assert (before.commit, before.ours, {change.what for change in before.changes}) == (None, True, {"new"})
    url = push(made)
    there = hub_server.files("ann/soft")
    assert sorted(there) == [
        ".gitattributes", "README.md", "images/01.png", "nano-airbrush.json", "nano-airbrush.safetensors", "reports/curves-1.png", "reports/sweep-1.json",
    ]  # fmt: skip
    assert {path: there[path] for path in made} == {path: file.read_bytes() for path, file in made.items()}
    assert hub_server.repos["ann/soft"].private
    assert len(hub_server.commits("ann/soft")) == 2, "the repository's own first one, and ours"
    assert url.endswith(hub_server.commits("ann/soft")[-1].oid)
    assert json.loads(there["nano-airbrush.json"])["preferred weight"] == 2.75
    pulled = Path(hf_hub_download("ann/soft", "nano-airbrush.safetensors", token=ANN))
    with safe_open(pulled, framework="pt") as opened:
        told = opened.metadata()
    assert told["modelspec.trigger_phrase"] == "soft"
    assert told["modelspec.usage_hint"] == "Strength 2.75, sweet spot 2 to 3.5, measured on nano."
    assert lorafile.read(pulled).scale == lorafile.read(EXAMPLE).scale

    def by_diffusers(lora: Path) -> np.ndarray:
        pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(models.find("nano").source))
        pipeline.set_progress_bar_config(disable=True)
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
        seed = torch.Generator().manual_seed(1)
        return np.asarray(pipeline("1girl, smile", width=64, height=64, num_inference_steps=2, generator=seed, output_type="np").images[0])

    np.testing.assert_allclose(gpu.lane(by_diffusers, pulled), gpu.lane(by_diffusers, EXAMPLE), atol=1e-5)
    asked = len(hub_server.asked)
    assert push(made) == url, "nothing has changed, so there is no second commit"
    assert not [one for one in hub_server.asked[asked:] if one.method in ("POST", "PUT")]
    assert {change.what for change in compared("ann/soft", made, ANN).changes} == {"same"}
    more = files(tmp_path / "more", title="Softer", trigger="soft", sweep=[REPORT], pictures=[str(picture)])
    assert {change.path for change in compared("ann/soft", more, ANN).changes if change.what == "changed"} == {"README.md", "nano-airbrush.safetensors"}


FAULTS = [
    ("GET /api/whoami", "401", "the Hub does not know the login any more; log in again."),
    ("GET /api/models/ann/soft", "403 gated", "it is gated."),
    ("POST /api/repos/create", "500", "the Hub answered 500; press again, what was sent already is not sent twice."),
    ("POST .*/preupload", "404", "the repository, or the commit it stood at, is gone."),
    ("POST .*/commit/", "409", "somebody else changed the repository meanwhile; look at what changes again."),
    ("POST .*/commit/", "429", "the Hub asks to wait; try again in a few minutes."),
    ("POST .*/commit/", "503", "the Hub answered 503; press again, what was sent already is not sent twice."),
    ("POST .*/commit/", "cut", "the Hub cannot be reached; press again, what was sent already is not sent twice."),
    ("PUT ", "cut", "press again, what was sent already is not sent twice."),
    ("PUT ", "wrong sha", ""),
]


@pytest.mark.parametrize(("where", "kind", "sentence"), FAULTS, ids=[f"{where} {kind}" for where, kind, _ in FAULTS])
def test_case_26_a_fault_is_one_sentence_and_pressing_again_finishes(hub_server: Hub, tmp_path: Path, where: str, kind: Any, sentence: str) -> None:
    made = files(tmp_path)
    hub_server.fail(where, kind, times=6)  # the client tries some five times
    with pytest.raises(UserError) as error:
        push(made)
    assert str(error.value).startswith("repo: ann/soft ")
    assert sentence in str(error.value), str(error.value)
    assert ANN not in repr(error.value)
    assert hub_server.url not in str(error.value)
    if "ann/soft" in hub_server.repos:
        assert set(hub_server.files("ann/soft")) <= {".gitattributes"}, "half of a publication is there"
    hub_server.faults.clear()
    push(made)
    assert set(made) <= set(hub_server.files("ann/soft"))


def test_case_26_what_passes_is_waited_for_as_long_as_the_hub_says(hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever can be asked twice without harm is: one press, one commit."""
    waited: list[float] = []
    for module in (_http, patience):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setitem(MORE, "429", {"Retry-After": "7"})
    for where in ("GET /api/whoami", "GET /api/models/ann/soft$", "POST .*/preupload", "POST .*/objects/batch", "PUT ", "POST .*/verify"):
        hub_server.fail(where, "429")
        hub_server.fail(where, "503")
    hub_server.fail("PUT ", "cut")
    push(files(tmp_path))
    assert not hub_server.faults, "some were never asked for"
    assert len(waited) == 13
    assert sum(seconds >= 7 for seconds in waited) == 6, waited
    assert len(hub_server.commits("ann/soft")) == 2


def test_case_26_offline_is_one_sentence(hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match=r"^repo: ann/soft was not written: the Hub cannot be reached; press again"):
            push(made)
    gone = "http://127.0.0.1:9"  # nobody listens there
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", gone)
        patch.setattr(hf_api.api, "endpoint", gone)
        with pytest.raises(UserError, match=r"^repo: ann/soft was not written: the Hub cannot be reached; press again"):
            push(made)
    assert not hub_server.asked
    push(made)
    assert set(made) <= set(hub_server.files("ann/soft"))


def test_case_26_nobody_elses_repository_is_touched(hub_server: Hub, tmp_path: Path) -> None:
    made = files(tmp_path)
    with pytest.raises(UserError, match=r"bob/soft is in somebody else's namespace; the login writes to ann\."):
        push(made, "bob/soft")
    api = HfApi(token=ANN)
    api.create_repo("ann/precious")
    api.upload_file(path_or_fileobj=b"# mine", path_in_repo="README.md", repo_id="ann/precious")
    sent = [one for one in hub_server.asked if one.method in ("POST", "PUT")]
    with pytest.raises(UserError, match="ann/precious was not made here; tick"):
        push(made, "ann/precious")
    assert [one for one in hub_server.asked if one.method in ("POST", "PUT")] == sent, "something was sent"
    assert hub_server.files("ann/precious")["README.md"] == b"# mine"
    push(made, "ann/precious", over=True)
    assert hub_server.files("ann/precious")["README.md"] != b"# mine"


def test_case_13_without_a_login_nothing_is_asked_with_one(hub_server: Hub, tmp_path: Path) -> None:
    """A look before login sends no token, whatever lies on this machine."""
    compared("ann/soft", files(tmp_path), False)
    assert hub_server.asked
    assert not [one for one in hub_server.asked if "authorization" in one.headers]


def test_a_run_tells_how_it_was_made(tmp_path: Path) -> None:
    folder, run = prepared(dataset(tmp_path / "data"), tmp_path / "run", steps=2, preview_every=0)
    followed(folder)
    made = bundle(plan({"run": str(folder.path), "repo": "ann/flow"}), tmp_path / "out")
    text = made["README.md"].read_text()
    assert "Say `flow` in the prompt." in text
    assert f"- {len(CAPTIONS)} pictures" in text
    assert "- recipe nano-quick on nano: 2 steps of 2 pictures at 128 pixels" in text
    assert f"sha256 `{content(made['flow.safetensors'])}`" in text
    assert f"Strength **{run.settings.expected_strength:g}** (as the recipe expects, not measured)" in text
    assert ModelCard(text).data.license == "apache-2.0", "the base's"


def test_a_licence_is_not_guessed(tmp_path: Path) -> None:
    save_file(load_file(EXAMPLE), tmp_path / "own.safetensors")
    with pytest.raises(UserError, match="license: nobody says what the LoRA was trained on, so it cannot be inherited"):
        plan({"lora": str(tmp_path / "own.safetensors"), "repo": "ann/own"})


def test_no_machine_and_no_token_is_in_the_file(tmp_path: Path) -> None:
    secret = {"ss_training_comment": "by /home/ann/pictures", "ss_sd_model_name": "C:\\models\\base.safetensors", "note": "hf_" + "A" * 34, "ss_epoch": "3"}
    save_file(load_file(EXAMPLE), tmp_path / "own.safetensors", secret)
    made = bundle(plan({"lora": str(tmp_path / "own.safetensors"), "repo": "ann/own", "license": "mit"}), tmp_path / "out")
    text = b"".join(file.read_bytes() for file in made.values())
    for word in (b"/home/ann", b"C:\\", b"hf_AAAA", str(tmp_path).encode()):
        assert word not in text, word
    with safe_open(made["own.safetensors"], framework="pt") as opened:
        assert opened.metadata()["ss_epoch"] == "3"
