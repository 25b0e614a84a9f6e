"""LoRAs from the Hub are checked first, fetched anonymously, and come whole or not at all."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import save

from core.hub import client as hub
from core.hub import downloads
from core.hub.names import HubName
from core.models import from_hub
from core.models.lora_facts import LoraStrength, read_lora_facts
from core.schema.errors import UserError
from core.system import paths
from core.system.atomic_files import link_or_copy
from tests.hub.server_state import Hub
from tests.publish.test_card import EXAMPLE


@pytest.fixture
def loras_on_hub(hub_server: Hub) -> Hub:
    """ann/soft is the example; ann/flux is for another model, too large to fetch for nothing."""
    api = HfApi(token="hf_ann")
    foreign = save({f"lora_unet_double_blocks_{i}.lora_down.weight": torch.zeros(64, 512) for i in range(8)})
    for repo, name, body in (
        ("ann/soft", "soft.safetensors", EXAMPLE.read_bytes()),
        ("ann/flux", "flux.safetensors", foreign),
    ):
        api.create_repo(repo)
        api.upload_file(path_or_fileobj=body, path_in_repo=name, repo_id=repo)
    hub_server.requests.clear()
    return hub_server


def test_case_13_a_lora_is_pulled_anonymously_and_whole(loras_on_hub: Hub) -> None:
    assert from_hub.fetch_lora("ann/soft").read_bytes() == EXAMPLE.read_bytes()
    assert not [one for one in loras_on_hub.requests if "authorization" in one.headers]


def test_the_strength_on_its_card_comes_with_the_file(
    loras_on_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for the copy that a page shows: its strength is filled in as the publisher measured it."""
    monkeypatch.setattr(paths, "MEASURED", tmp_path / "measured")  # other tests' sweeps know better
    api, notes = HfApi(token="hf_ann"), {"model": "nano", "recommended": 2.5, "sweet_spot": [2, 3]}
    table = {"preferred weight": 2.5, "activation text": "soft light", "notes": json.dumps(notes)}
    for name, said in (("soft.json", table), ("large.json", {"preferred weight": 3, "x": "x" * 3_000_000})):
        api.upload_file(path_or_fileobj=json.dumps(said).encode(), path_in_repo=name, repo_id="ann/soft")
    api.upload_file(
        path_or_fileobj=EXAMPLE.read_bytes(), path_in_repo="large.safetensors", repo_id="ann/soft"
    )
    there = from_hub.fetch_lora("ann/soft:soft.safetensors")
    link_or_copy(there.resolve(), tmp_path / "shown.safetensors")
    facts = read_lora_facts(tmp_path / "shown.safetensors")
    assert facts.trigger == "soft light"
    assert facts.strength == LoraStrength(
        value=2.5, interval=(2, 3), source="from its card on Hugging Face, measured on nano"
    )
    loras_on_hub.requests.clear()
    assert read_lora_facts(from_hub.fetch_lora("ann/soft:large.safetensors")).strength is None
    assert not [one for one in loras_on_hub.requests if "large.json" in one.path]


def test_what_is_for_another_model_is_refused_by_its_header(loras_on_hub: Hub) -> None:
    with pytest.raises(UserError, match=r"lora: flux\.safetensors is made for Flux"):
        from_hub.fetch_lora("ann/flux")
    asked = [one for one in loras_on_hub.requests if "resolve" in one.path and one.method == "GET"]
    assert all("range" in one.headers for one in asked), "the whole file was fetched to be refused"


def test_case_25_no_room_is_said_before_the_download(
    loras_on_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_get_free_bytes", lambda: 1000)
    with pytest.raises(
        UserError, match=r"soft\.safetensors has [\d,]+ bytes, but only 1,000 bytes are free on the disk\."
    ):
        from_hub.fetch_lora("ann/soft")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("401", "ann/soft"),
        ("403 gated", "is gated: accept its terms on Hugging Face"),
        ("404", "is private or does not exist"),
        ("429", "is unreachable"),
        ("503", "is unreachable"),
    ],
)
def test_case_26_a_fault_is_one_sentence(loras_on_hub: Hub, kind: str, sentence: str) -> None:
    loras_on_hub.fail("GET /api/models/ann/soft", kind, times=6)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="lora: ann/soft") as error:
        from_hub.fetch_lora("ann/soft")
    assert sentence in str(error.value)


def test_case_26_a_file_that_came_in_other_is_not_kept(loras_on_hub: Hub, tmp_path: Path) -> None:
    loras_on_hub.fail("GET .*/resolve/.*safetensors", "wrong sha", times=9)
    with pytest.raises(UserError, match=r"lora: "):
        from_hub.fetch_lora("ann/soft")
    loras_on_hub.faults.clear()
    assert from_hub.fetch_lora("ann/soft").read_bytes() == EXAMPLE.read_bytes(), "the wrong one was kept"


def test_case_26_what_was_cut_is_said_and_the_next_press_fetches_it(loras_on_hub: Hub) -> None:
    loras_on_hub.fail("GET .*/resolve/.*safetensors", "cut", times=3)  # as often as it is asked
    with pytest.raises(UserError, match="lora: ann/soft cannot be downloaded: Hugging Face is unreachable"):
        from_hub.fetch_lora("ann/soft")
    assert from_hub.fetch_lora("ann/soft").read_bytes() == EXAMPLE.read_bytes()


def test_case_26_what_was_cut_goes_on_where_it_was(
    loras_on_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Bytes written at a time; the example is smaller than the usual.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    found = hub.fetch_listing(HubName(repo="ann/soft"), "lora")
    loras_on_hub.fail("GET .*/resolve/.*safetensors", "cut")
    with suppress(UserError):
        hub.fetch_file(found, "soft.safetensors", "lora")
    assert hub.fetch_file(found, "soft.safetensors", "lora").read_bytes() == EXAMPLE.read_bytes()
    starts = [
        one.headers["range"]
        for one in loras_on_hub.requests
        if one.method == "GET" and "range" in one.headers and "resolve" in one.path
    ]
    assert any(not start.startswith("bytes=0-") for start in starts), f"it began anew: {starts}"


def test_case_26_what_passes_is_tried_again(loras_on_hub: Hub) -> None:
    """The client tries again, as far as the download goes."""
    loras_on_hub.fail("HEAD .*/resolve/.*safetensors", "503")
    assert from_hub.fetch_lora("ann/soft").read_bytes() == EXAMPLE.read_bytes()
    assert not loras_on_hub.faults


def test_case_26_offline_is_one_sentence_and_what_is_here_stays(
    loras_on_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_hub.fetch_lora("ann/soft")
    asked = len(loras_on_hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert from_hub.fetch_lora("ann/soft").read_bytes() == EXAMPLE.read_bytes()
    with pytest.raises(UserError, match="lora: ann/other cannot be downloaded: Hugging Face is unreachable"):
        from_hub.fetch_lora("ann/other")
    assert len(loras_on_hub.requests) == asked
