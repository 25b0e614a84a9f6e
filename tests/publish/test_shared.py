"""What visitors share of the Hub: the disk's room, the number of downloads, tables that do not grow, and nobody's word on another's file."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from core import apart, arriving, aside, detect, digest, hires, hub, limits, pulled, together, tools
from core.atomic import placed
from core.recent import Recent
from core.types import UserError
from tests.models.parts import NANO
from tests.publish.hub import Hub
from tests.publish.test_card import EXAMPLE


@pytest.fixture
def two(hub_server: Hub) -> Hub:
    """Ann's LoRA, and Bob's copy of it."""
    for owner, repo in (("ann", "ann/soft"), ("bob", "bob/copy")):
        api = HfApi(token=f"hf_{owner}")
        api.create_repo(repo)
        api.upload_file(path_or_fileobj=EXAMPLE.read_bytes(), path_in_repo="soft.safetensors", repo_id=repo)
    return hub_server


def test_what_is_on_its_way_has_its_room_and_its_turn(two: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when nobody looks on any more; who wants the same one waits for it with those who did."""
    ann, bob = hub.listing("ann/soft", "lora"), hub.listing("bob/copy", "lora")
    monkeypatch.setattr(aside, "LOOK", 0.01)
    monkeypatch.setattr(arriving, "_free", lambda: EXAMPLE.stat().st_size * 3 // 2)
    two.fail("GET /ann/soft/resolve/.*", "held")
    looks = arriving.fetching(hub.file, ann, "soft.safetensors", "lora")
    next(looks)
    looks.close()
    with pytest.raises(UserError, match=r"soft\.safetensors has [\d,]+ bytes, and the disk has room for [\d,]+\."):
        hub.file(bob, "soft.safetensors", "lora")
    monkeypatch.setattr(arriving, "_free", lambda: 10**9)
    monkeypatch.setattr(limits, "DOWNLOADS", 1)
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    with pytest.raises(UserError, match=r"soft\.safetensors has to wait: 1 downloads are on their way"):
        hub.file(bob, "soft.safetensors", "lora")
    with ThreadPoolExecutor(1) as pool:
        same = pool.submit(hub.file, ann, "soft.safetensors", "lora")
        two.go.set()
        assert same.result().read_bytes() == EXAMPLE.read_bytes()
    for thread in threading.enumerate():
        if thread.name.startswith("aside"):
            thread.join()
    assert hub.file(bob, "soft.safetensors", "lora").exists(), "the room was not given back"


def test_nobody_says_where_anothers_file_is_from(two: Hub, tmp_path: Path) -> None:
    own = tmp_path / "uploaded.safetensors"
    shutil.copyfile(EXAMPLE, own)
    anns = pulled.lora("ann/soft")
    exact, chosen = hub.origin(anns), tmp_path / "session" / "soft.safetensors"
    placed(anns.resolve(), chosen)
    bobs = pulled.lora("bob/copy")
    assert exact
    assert exact.startswith("ann/soft@")
    assert (hub.origin(anns), hub.origin(chosen)) == (exact, exact)
    assert str(hub.origin(bobs)).startswith("bob/copy@")
    assert hub.origin(own) is None


def test_a_tool_that_was_swept_away_is_fetched_again(hub_server: Hub) -> None:
    api = HfApi(token="hf_ann")
    api.create_repo("ann/tools")
    api.upload_file(repo_id="ann/tools", path_or_fileobj=NANO.parent / "upscaler/model.safetensors", path_in_repo="model.safetensors")
    name = pulled.exact("upscaler", "ann/tools")
    assert tools.file("upscaler", name).exists()
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert tools.file("upscaler", name).exists()


def test_a_repository_of_too_many_files_is_not_kept(two: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REPO_FILES", 0)
    with pytest.raises(UserError, match=r"lora: ann/soft has \d files; it takes a repository of up to 0\."):
        hub.listing("ann/soft", "lora")
    assert not [key for key in hub._listings if key[1] == "ann/soft" and key[0] == two.url]


def test_a_table_forgets_the_oldest() -> None:
    table: Recent[int, int] = Recent(3)
    for i in (0, 1, 2, 0, 3):
        table[i] = i
    assert list(table) == [2, 0, 3]


@pytest.mark.parametrize("table", [hub._listings, hub._origins, together._timed, digest._hashes, digest._parts])
def test_a_table_that_visitors_fill_has_an_end(table: Any) -> None:
    assert isinstance(table, Recent)


@pytest.mark.parametrize("call", [detect.detector, apart.apart, hires.upscaler, pulled.base])
def test_what_is_kept_open_has_an_end(call: Any) -> None:
    assert call.cache_info().maxsize
