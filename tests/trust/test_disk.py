"""A disk that is really full, a tmpfs, at each place where something is written: one sentence, nothing half, and on it goes once there is room."""

import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from huggingface_hub import HfApi, constants
from PIL import Image

from core import arriving, cells, limits, pulled
from core.types import UserError
from tabs.files import FILES
from tests.model import fingerprint
from tests.publish.conftest import hub_server  # noqa: F401  (a fixture)
from tests.publish.hub import Hub
from tests.publish.test_card import EXAMPLE

FULL = "The disk is full: make room and try again. What was finished stays."
PICTURE: dict[str, Any] = {"prompt": "1girl", "seed": 3, "steps": 2, "api_name": "/generate"}
SWEEP: dict[str, Any] = {"lora": "nano-airbrush", "prompts": "1girl", "seeds": "51, 52", "strengths": "0, 1", "api_name": "/sweep"}

CELLS = 1_000_000
"""Bytes that some of the four cells have room in."""


class Disk:
    """A disk of eight megabytes with a ballast on it."""

    def __init__(self, at: Path):
        self.at, self.ballast = at, at / "ballast"

    def leave(self, room: int) -> None:
        """Fill it up to so many bytes, in whole pages."""
        self.ballast.unlink(missing_ok=True)
        free = int(subprocess.run(["stat", "-f", "-c", "%a", self.at], capture_output=True, check=True).stdout) * 4096
        self.ballast.write_bytes(bytes(free - room // 4096 * 4096))

    def files(self) -> set[Path]:
        return {file for file in self.at.rglob("*") if file.is_file() and file != self.ballast}


@contextmanager
def mounted(at: Path) -> Iterator[Disk]:
    """Over a folder, for as long as it lasts."""
    at.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", at], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield Disk(at)
    finally:
        subprocess.run(["umount", "-l", at], check=True)


def refused(client: Client, asked: dict[str, Any]) -> None:
    """It is said in one sentence, the model is what it was, and the page is still up."""
    before = fingerprint()
    with pytest.raises(AppError) as error:
        client.predict(**asked)
    assert str(error.value).startswith(FULL)
    assert fingerprint() == before
    assert urllib.request.urlopen(client.src, timeout=10).status == 200


@pytest.fixture(autouse=True)
def no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the room goes between the look at the disk and the writing."""
    monkeypatch.setattr(limits, "DISK_FLOOR", 0)


def test_case_25_below_the_floor_nothing_begins(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DISK_FLOOR", 10**9)
    with mounted(FILES) as disk:
        with pytest.raises(AppError, match=r"^disk: 0\.01 GB are free, and 1 GB must stay free"):
            client.predict(**PICTURE)
        assert not disk.files()


def test_case_25_a_disk_that_is_full_at_a_picture(client: Client) -> None:
    with mounted(FILES) as disk:
        disk.leave(4096)
        refused(client, PICTURE)
        assert not disk.files(), "half a picture stayed"
        disk.ballast.unlink()
        (_,), report = client.predict(**PICTURE)
        assert report["seeds"] == [3]
        (file,) = disk.files()
        with Image.open(file) as picture:
            picture.load()


def test_case_25_a_disk_that_is_full_at_a_sweeps_cells_and_at_its_zip(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that are whole stay, and the next sweep begins there; of a zip, and of what was to go into it, nothing stays."""
    with mounted(tmp_path / "disk") as disk:
        monkeypatch.setattr(cells, "FOLDER", disk.at)
        disk.leave(CELLS)
        refused(client, SWEEP)
        assert not [file for file in disk.files() if file.name.endswith(".tmp")]
        finished = len([file for file in disk.files() if file.suffix == ".npz"])
        assert 0 < finished < 4
        disk.ballast.unlink()
        *_, archive, report = client.predict(**SWEEP)
        assert report["cells_found"] >= finished
        size = Path(archive).stat().st_size
        with mounted(FILES) as other:
            other.leave(size + size // 2)  # for the pictures, not for the zip of them
            refused(client, SWEEP)
            assert not other.files(), "what is half takes the room that is missing"
            other.ballast.unlink()
            *_, report = client.predict(**SWEEP)
        assert report["cells_found"] == 4


@pytest.mark.parametrize("how", ["no room", "no room on the way"])
def test_case_25_a_disk_that_is_full_at_a_download(hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:  # noqa: F811
    api = HfApi(token="hf_ann")
    api.create_repo("ann/soft")
    api.upload_file(path_or_fileobj=EXAMPLE.read_bytes(), path_in_repo="soft.safetensors", repo_id="ann/soft")
    with mounted(tmp_path / "disk") as disk:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk.at / "hub"))
        room, look = EXAMPLE.stat().st_size // 2, arriving._free
        later = [how == "no room on the way"]

        def looked() -> int:
            free = look()
            if later[0]:
                disk.leave(room)  # somebody else takes it between the look and the download
            return free

        monkeypatch.setattr(arriving, "_free", looked)
        if not later[0]:
            disk.leave(room)
        with pytest.raises(UserError, match=r"^lora: ") as error:
            pulled.lora("ann/soft")
        if how == "no room":
            assert "the disk has room for" in str(error.value)
        assert not [file for file in disk.files() if file.suffix == ".safetensors"], "half a LoRA stayed under its name"
        disk.ballast.unlink()
        later[0] = False
        assert pulled.lora("ann/soft").read_bytes() == EXAMPLE.read_bytes()
