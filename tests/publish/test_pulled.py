"""LoRAs from the Hub: looked at before they are fetched, anonymous, whole or one sentence."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import save

from core import arriving, hub, pulled
from core.types import UserError
from tests.publish.hub import Hub
from tests.publish.test_card import EXAMPLE


@pytest.fixture
def there(hub_server: Hub) -> Hub:
    """ann/soft holds the example, ann/flux what is no LoRA for SDXL and too large to fetch for nothing."""
    api = HfApi(token="hf_ann")
    foreign = save({f"lora_unet_double_blocks_{i}.lora_down.weight": torch.zeros(64, 512) for i in range(8)})
    for repo, name, body in (("ann/soft", "soft.safetensors", EXAMPLE.read_bytes()), ("ann/flux", "flux.safetensors", foreign)):
        api.create_repo(repo)
        api.upload_file(path_or_fileobj=body, path_in_repo=name, repo_id=repo)
    hub_server.asked.clear()
    return hub_server


def test_case_13_a_lora_is_pulled_anonymously_and_whole(there: Hub) -> None:
    assert pulled.lora("ann/soft").read_bytes() == EXAMPLE.read_bytes()
    assert not [one for one in there.asked if "authorization" in one.headers]


def test_what_is_for_another_model_is_refused_by_its_header(there: Hub) -> None:
    with pytest.raises(UserError, match=r"lora: flux\.safetensors is made for Flux"):
        pulled.lora("ann/flux")
    asked = [one for one in there.asked if "resolve" in one.path and one.method == "GET"]
    assert all("range" in one.headers for one in asked), "the whole file was fetched to be refused"


def test_case_25_no_room_is_said_before_the_download(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "_free", lambda: 1000)
    with pytest.raises(UserError, match=r"soft\.safetensors has [\d,]+ bytes, and the disk has room for 1,000\."):
        pulled.lora("ann/soft")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("401", "ann/soft"),
        ("403 gated", "is gated, private or gone"),
        ("404", "is gated, private or gone"),
        ("429", "cannot be reached"),
        ("503", "cannot be reached"),
    ],
)
def test_case_26_a_fault_is_one_sentence(there: Hub, kind: str, sentence: str) -> None:
    there.fail("GET /api/models/ann/soft", kind, times=6)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="lora: ann/soft") as error:
        pulled.lora("ann/soft")
    assert sentence in str(error.value)


def test_case_26_a_file_that_came_in_other_is_not_kept(there: Hub, tmp_path: Path) -> None:
    there.fail("GET .*/resolve/.*safetensors", "wrong sha", times=9)
    with pytest.raises(UserError, match=r"lora: "):
        pulled.lora("ann/soft")
    there.faults.clear()
    assert pulled.lora("ann/soft").read_bytes() == EXAMPLE.read_bytes(), "the wrong one was kept"


def test_case_26_what_was_cut_is_said_and_the_next_press_fetches_it(there: Hub) -> None:
    there.fail("GET .*/resolve/.*safetensors", "cut", times=3)  # as often as it is asked
    with pytest.raises(UserError, match="lora: ann/soft is not to be had: the Hub cannot be reached"):
        pulled.lora("ann/soft")
    assert pulled.lora("ann/soft").read_bytes() == EXAMPLE.read_bytes()


def test_case_26_what_was_cut_goes_on_where_it_was(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what is written at a time; the example is smaller than the usual
    found = hub.listing("ann/soft", "lora")
    there.fail("GET .*/resolve/.*safetensors", "cut")
    with suppress(UserError):
        hub.file(found, "soft.safetensors", "lora")
    assert hub.file(found, "soft.safetensors", "lora").read_bytes() == EXAMPLE.read_bytes()
    starts = [one.headers["range"] for one in there.asked if one.method == "GET" and "range" in one.headers and "resolve" in one.path]
    assert any(not start.startswith("bytes=0-") for start in starts), f"it began anew: {starts}"


def test_case_26_what_passes_is_tried_again(there: Hub) -> None:
    """By the client, as far as the download goes."""
    there.fail("HEAD .*/resolve/.*safetensors", "503")
    assert pulled.lora("ann/soft").read_bytes() == EXAMPLE.read_bytes()
    assert not there.faults


def test_case_26_offline_is_one_sentence_and_what_is_here_stays(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled.lora("ann/soft")
    asked = len(there.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pulled.lora("ann/soft").read_bytes() == EXAMPLE.read_bytes()
    with pytest.raises(UserError, match="lora: ann/other is not to be had: the Hub cannot be reached"):
        pulled.lora("ann/other")
    assert len(there.asked) == asked
