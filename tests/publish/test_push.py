"""To the Hub and back.

What is sent file by file, faults that leave nothing half done, and nobody else's repository.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline
from huggingface_hub import HfApi, ModelCard, constants, hf_api, hf_hub_download
from huggingface_hub.utils import _http
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.hub import client as hub
from core.lora import file as lora_file
from core.models import bases
from core.prompts.infotext import create_infotext
from core.prompts.png_metadata import save_png
from core.publish.bundle import build_bundle
from core.publish.plan import Publication, PublicationForm, plan_publication
from core.publish.push import RepoState, compare_repo, push_files
from core.runtime import gpu, torch_thread
from core.schema.errors import UserError
from core.schema.events import Picture
from core.schema.records import read_form
from core.schema.types import Cell, Request
from core.system import paths
from core.system.tensor_files import calculate_sha256
from tests.hub.server import ERROR_HEADERS
from tests.hub.server_state import Hub
from tests.models.parts import draw_picture
from tests.publish.test_card import EXAMPLE, REPORT
from tests.train.parts import CAPTIONS, make_dataset, prepare_run, run_training

ANN = "hf_ann"
SIZE = {"width": 64, "height": 64, "steps": 2}
REQUEST_FIELDS: dict[str, Any] = {
    "model": "nano",
    "prompt": "1girl, smile",
    "negative": "",
    "cfg": 1.0,
    "sampler": "Euler a",
    "seed": 1,
    **SIZE,
}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate one picture and save it with its settings inside."""
    request = Request(**REQUEST_FIELDS)
    (made,) = (
        event
        for event in gpu.generate_on_gpu([Cell(label="", request=request)])
        if isinstance(event, Picture)
    )
    file = tmp_path_factory.mktemp("made") / "one.png"
    save_png(made.image, file, create_infotext(request))
    return file


class Bundle(NamedTuple):
    """A publication, and its files."""

    publication: Publication
    files: dict[str, Path]

    def compare(self, token: str | bool = ANN) -> RepoState:
        return compare_repo(self.publication, self.files, token)

    def push(self, repo: str = "ann/soft", token: str = ANN, **more: Any) -> str:
        return push_files(replace(self.publication, repo=repo), self.files, token, **more)


def bundle_files(folder: Path, lora: Path = EXAMPLE, **values: Any) -> Bundle:
    asked = {"lora": str(lora), "repo": "ann/soft", "home": "nano", **values}
    publication = plan_publication(read_form(PublicationForm, asked))
    return Bundle(publication, build_bundle(publication, folder))


def test_case_26_what_is_sent_is_what_is_pulled(hub_server: Hub, tmp_path: Path, picture: Path) -> None:
    made = bundle_files(tmp_path, title="Soft", trigger="soft", sweep=[REPORT], pictures=[str(picture)])
    before = made.compare()
    assert (before.commit, before.is_ours, {change.status for change in before.changes}) == (
        None,
        True,
        {"new"},
    )
    url = made.push()
    there = hub_server.list_files("ann/soft")
    assert sorted(there) == [
        ".gitattributes",
        "README.md",
        "images/nano-airbrush/01.png",
        "nano-airbrush.json",
        "nano-airbrush.safetensors",
        "reports/nano-airbrush/curves-1.png",
        "reports/nano-airbrush/sweep-1.json",
    ]
    assert {path: there[path] for path in made.files} == {
        path: file.read_bytes() for path, file in made.files.items()
    }
    assert hub_server.repos["ann/soft"].private
    assert len(hub_server.list_commits("ann/soft")) == 2, "the repository's own first one, and ours"
    assert url.endswith(hub_server.list_commits("ann/soft")[-1].oid)
    assert json.loads(there["nano-airbrush.json"])["preferred weight"] == 2.75
    pulled = Path(hf_hub_download("ann/soft", "nano-airbrush.safetensors", token=ANN))
    with safe_open(pulled, framework="pt") as opened:
        told = opened.metadata()
    assert told["modelspec.trigger_phrase"] == "soft"
    assert told["modelspec.usage_hint"] == "Strength 2.75, sweet spot 2 to 3.5, measured on nano."
    assert lora_file.read_lora_file(pulled).scale == lora_file.read_lora_file(EXAMPLE).scale

    def draw_with_diffusers(lora: Path) -> np.ndarray:
        pipeline = StableDiffusionXLPipeline.from_pretrained(paths.locate(bases.find_model("nano").source))
        pipeline.set_progress_bar_config(disable=True)
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
        return draw_picture(pipeline)

    np.testing.assert_allclose(
        torch_thread.run_on_torch_thread(draw_with_diffusers, pulled),
        torch_thread.run_on_torch_thread(draw_with_diffusers, EXAMPLE),
        atol=1e-5,
    )
    asked = len(hub_server.requests)
    assert made.push() == url, "nothing has changed, so there is no second commit"
    assert not [one for one in hub_server.requests[asked:] if one.method in ("POST", "PUT")]
    assert {change.status for change in made.compare().changes} == {"same"}
    more = bundle_files(
        tmp_path / "more", title="Softer", trigger="soft", sweep=[REPORT], pictures=[str(picture)]
    )
    assert {change.path for change in more.compare().changes if change.status == "changed"} == {
        "README.md",
        "nano-airbrush.safetensors",
    }


FAULTS = [
    ("GET /api/whoami", "401", "Hugging Face no longer accepts the login; log in again."),
    ("GET /api/models/ann/soft", "403 gated", "it is gated."),
    (
        "POST /api/repos/create",
        "500",
        "Hugging Face answered 500; try again, files already uploaded are not sent twice.",
    ),
    ("POST .*/preupload", "404", "the repository, or its last commit, is gone."),
    ("POST .*/commit/", "409", "somebody else changed the repository in the meantime; preview again."),
    ("POST .*/commit/", "429", "Hugging Face is limiting requests; try again in a few minutes."),
    (
        "POST .*/commit/",
        "503",
        "Hugging Face answered 503; try again, files already uploaded are not sent twice.",
    ),
    (
        "POST .*/commit/",
        "cut",
        "Hugging Face is unreachable; try again, files already uploaded are not sent twice.",
    ),
    ("PUT ", "cut", "try again, files already uploaded are not sent twice."),
    ("PUT ", "wrong sha", ""),
]


@pytest.mark.parametrize(
    ("where", "kind", "sentence"), FAULTS, ids=[f"{where} {kind}" for where, kind, _ in FAULTS]
)
def test_case_26_a_fault_is_one_sentence_and_pressing_again_finishes(
    hub_server: Hub, tmp_path: Path, where: str, kind: Any, sentence: str
) -> None:
    made = bundle_files(tmp_path)
    hub_server.fail(where, kind, times=6)  # more than the some five tries of the client
    with pytest.raises(UserError) as error:
        made.push()
    assert str(error.value).startswith("repo: ann/soft ")
    assert sentence in str(error.value), str(error.value)
    assert ANN not in repr(error.value)
    assert hub_server.url not in str(error.value)
    if "ann/soft" in hub_server.repos:
        assert set(hub_server.list_files("ann/soft")) <= {".gitattributes"}, "half of a publication is there"
    hub_server.faults.clear()
    made.push()
    assert set(made.files) <= set(hub_server.list_files("ann/soft"))


def test_case_26_what_passes_is_waited_for_as_long_as_the_hub_says(
    hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that are safe to repeat are repeated: one press of Publish is one commit."""
    waited: list[float] = []
    for module in (_http, hub):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic))
    monkeypatch.setitem(ERROR_HEADERS, "429", {"Retry-After": "7"})
    for where in (
        "GET /api/whoami",
        "GET /api/models/ann/soft$",
        "POST .*/preupload",
        "POST .*/objects/batch",
        "PUT ",
        "POST .*/verify",
    ):
        hub_server.fail(where, "429")
        hub_server.fail(where, "503")
    hub_server.fail("PUT ", "cut")
    bundle_files(tmp_path).push()
    assert not hub_server.faults, "some were never asked for"
    assert len(waited) == 13
    assert sum(seconds >= 7 for seconds in waited) == 6, waited
    assert len(hub_server.list_commits("ann/soft")) == 2


def test_case_26_offline_is_one_sentence(
    hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundle_files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            UserError, match=r"^repo: ann/soft was not changed: Hugging Face is unreachable; try again"
        ):
            made.push()
    gone = "http://127.0.0.1:9"  # nobody listens there
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", gone)
        patch.setattr(hf_api.api, "endpoint", gone)
        with pytest.raises(
            UserError, match=r"^repo: ann/soft was not changed: Hugging Face is unreachable; try again"
        ):
            made.push()
    assert not hub_server.requests
    made.push()
    assert set(made.files) <= set(hub_server.list_files("ann/soft"))


def test_case_26_nobody_elses_repository_is_touched(hub_server: Hub, tmp_path: Path) -> None:
    made = bundle_files(tmp_path)
    with pytest.raises(
        UserError, match=r"bob/soft is in somebody else's namespace; the login can write to ann\."
    ):
        made.push("bob/soft")
    api = HfApi(token=ANN)
    api.create_repo("ann/precious")
    api.upload_file(path_or_fileobj=b"# mine", path_in_repo="README.md", repo_id="ann/precious")
    sent = [one for one in hub_server.requests if one.method in ("POST", "PUT")]
    with pytest.raises(UserError, match="ann/precious was not created by Sweetspot; allow"):
        made.push("ann/precious")
    assert [one for one in hub_server.requests if one.method in ("POST", "PUT")] == sent, "something was sent"
    assert hub_server.list_files("ann/precious")["README.md"] == b"# mine"
    made.push("ann/precious", overwrite=True)
    card = hub_server.list_files("ann/precious")["README.md"].decode()
    assert "# mine\n" in card, "what was written there stays"
    assert "# nano-airbrush" in card


def test_case_13_without_a_login_nothing_is_asked_with_one(hub_server: Hub, tmp_path: Path) -> None:
    """A look before login sends no token, even if this machine holds one."""
    bundle_files(tmp_path).compare(False)
    assert hub_server.requests
    assert not [one for one in hub_server.requests if "authorization" in one.headers]


def test_a_run_tells_how_it_was_made(tmp_path: Path) -> None:
    folder, run = prepare_run(make_dataset(tmp_path / "data"), tmp_path / "run", steps=2, preview_every=0)
    run_training(folder)
    made = build_bundle(
        plan_publication(read_form(PublicationForm, {"run": str(folder.path), "repo": "ann/flow"})),
        tmp_path / "out",
    )
    text = made["README.md"].read_text()
    assert "Use `flow` in the prompt." in text
    assert f"- {len(CAPTIONS)} images" in text
    assert "- recipe nano-quick on nano: 2 steps of 2 images at 128 pixels" in text
    assert f"sha256 `{calculate_sha256(made['flow.safetensors'])}`" in text
    assert f"Strength **{run.settings.expected_strength:g}** (expected by the recipe, not measured)" in text
    assert ModelCard(text).data.license == "apache-2.0", "the base's"


def test_a_licence_is_not_guessed(tmp_path: Path) -> None:
    save_file(load_file(EXAMPLE), tmp_path / "own.safetensors")
    with pytest.raises(
        UserError, match="license: the base model of the LoRA is unknown, so its licence cannot be inherited"
    ):
        plan_publication(
            read_form(PublicationForm, {"lora": str(tmp_path / "own.safetensors"), "repo": "ann/own"})
        )


def test_no_machine_and_no_token_is_in_the_file(tmp_path: Path) -> None:
    secret = {
        "ss_training_comment": "by /home/ann/pictures",
        "ss_sd_model_name": "C:\\models\\base.safetensors",
        "note": "hf_" + "A" * 34,
        "ss_epoch": "3",
    }
    save_file(load_file(EXAMPLE), tmp_path / "own.safetensors", secret)
    made = build_bundle(
        plan_publication(
            read_form(
                PublicationForm,
                {"lora": str(tmp_path / "own.safetensors"), "repo": "ann/own", "license": "mit"},
            )
        ),
        tmp_path / "out",
    )
    text = b"".join(file.read_bytes() for file in made.values())
    for word in (b"/home/ann", b"C:\\", b"hf_AAAA", str(tmp_path).encode()):
        assert word not in text, word
    with safe_open(made["own.safetensors"], framework="pt") as opened:
        assert opened.metadata()["ss_epoch"] == "3"
