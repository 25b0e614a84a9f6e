"""What visitors share of the Hub: the disk's room, the number of downloads, and bounded tables.

Nobody's word counts for another visitor's file.
"""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from core.generate import batching
from core.generate.stages import detector, sandbox, upscaler
from core.hub import client as hub
from core.hub import downloads
from core.hub.names import HubName
from core.models import from_hub, tools
from core.schema import limits
from core.schema.errors import UserError
from core.system import concurrency, tensor_files
from core.system.atomic_files import link_or_copy
from core.system.concurrency import BoundedDict
from tests.hub.server_state import Hub
from tests.models.parts import NANO
from tests.publish.test_card import EXAMPLE


@pytest.fixture
def two_repos(hub_server: Hub) -> Hub:
    """Ann's LoRA, and Bob's copy of it."""
    for owner, repo in (("ann", "ann/soft"), ("bob", "bob/copy")):
        api = HfApi(token=f"hf_{owner}")
        api.create_repo(repo)
        api.upload_file(path_or_fileobj=EXAMPLE.read_bytes(), path_in_repo="soft.safetensors", repo_id=repo)
    return hub_server


def test_what_is_on_its_way_has_its_room_and_its_turn(
    two_repos: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download keeps both even when nobody watches it any more.

    Others who want the same file wait for that download.
    """
    ann, bob = (
        hub.fetch_listing(HubName(repo="ann/soft"), "lora"),
        hub.fetch_listing(HubName(repo="bob/copy"), "lora"),
    )
    monkeypatch.setattr(concurrency, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(downloads, "_get_free_bytes", lambda: EXAMPLE.stat().st_size * 3 // 2)
    two_repos.fail("GET /ann/soft/resolve/.*", "held")
    looks = downloads.report_downloads(hub.fetch_file, ann, "soft.safetensors", "lora")
    next(looks)
    looks.close()
    with pytest.raises(
        UserError, match=r"soft\.safetensors has [\d,]+ bytes, but only [\d,]+ bytes are free on the disk\."
    ):
        hub.fetch_file(bob, "soft.safetensors", "lora")
    monkeypatch.setattr(downloads, "_get_free_bytes", lambda: 10**9)
    monkeypatch.setattr(limits, "DOWNLOADS", 1)
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    with pytest.raises(UserError, match=r"soft\.safetensors cannot start yet: 1 downloads are running"):
        hub.fetch_file(bob, "soft.safetensors", "lora")
    with ThreadPoolExecutor(1) as pool:
        same = pool.submit(hub.fetch_file, ann, "soft.safetensors", "lora")
        two_repos.release.set()
        assert same.result().read_bytes() == EXAMPLE.read_bytes()
    for thread in threading.enumerate():
        if thread.name.startswith("aside"):
            thread.join()
    assert hub.fetch_file(bob, "soft.safetensors", "lora").exists(), "the room was not given back"


def test_nobody_says_where_anothers_file_is_from(two_repos: Hub, tmp_path: Path) -> None:
    own = tmp_path / "uploaded.safetensors"
    shutil.copyfile(EXAMPLE, own)
    anns = from_hub.fetch_lora("ann/soft")
    exact, chosen = hub.find_origin(anns), tmp_path / "session" / "soft.safetensors"
    link_or_copy(anns.resolve(), chosen)
    bobs = from_hub.fetch_lora("bob/copy")
    assert exact
    assert exact.startswith("ann/soft@")
    assert (hub.find_origin(anns), hub.find_origin(chosen)) == (exact, exact)
    assert str(hub.find_origin(bobs)).startswith("bob/copy@")
    assert hub.find_origin(own) is None


def test_a_tool_that_was_swept_away_is_fetched_again(hub_server: Hub) -> None:
    api = HfApi(token="hf_ann")
    api.create_repo("ann/tools")
    api.upload_file(
        repo_id="ann/tools",
        path_or_fileobj=NANO.parent / "upscaler/model.safetensors",
        path_in_repo="model.safetensors",
    )
    name = from_hub.pin_tool("upscaler", "ann/tools")
    assert tools.fetch_tool("upscaler", name).exists()
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert tools.fetch_tool("upscaler", name).exists()


def test_a_repository_of_too_many_files_is_not_kept(two_repos: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REPO_FILES", 0)
    with pytest.raises(UserError, match=r"lora: ann/soft has \d files; the limit is 0\."):
        hub.fetch_listing(HubName(repo="ann/soft"), "lora")
    assert not [key for key in hub._listings if key[1] == "ann/soft" and key[0] == two_repos.url]


def test_a_table_forgets_the_oldest() -> None:
    table: BoundedDict[int, int] = BoundedDict(3)
    for i in (0, 1, 2, 0, 3):
        table[i] = i
    assert list(table) == [2, 0, 3]


@pytest.mark.parametrize(
    "table",
    [
        hub._listings,
        hub._origins,
        batching._step_seconds,
        tensor_files._file_hashes,
        tensor_files._tensor_hashes,
    ],
)
def test_a_table_that_visitors_fill_has_an_end(table: Any) -> None:
    assert isinstance(table, BoundedDict)


@pytest.mark.parametrize(
    "call",
    [detector.load_detector, sandbox.load_sandboxed_detector, upscaler.load_upscaler, from_hub.resolve_base],
)
def test_what_is_kept_open_has_an_end(call: Any) -> None:
    assert call.cache_info().maxsize
