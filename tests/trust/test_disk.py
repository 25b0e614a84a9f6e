"""A full disk, a small tmpfs, at each place where the app writes.

The person reads one sentence, nothing half is left, and work goes on once there is room.
"""

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

from core.hub import downloads
from core.models import from_hub
from core.schema import limits
from core.schema.errors import UserError
from core.sweep import cell_cache
from tabs.server.page_files import FILES_FOLDER
from tests.hub.server_state import Hub
from tests.model import fingerprint
from tests.publish.test_card import EXAMPLE
from tests.small_disk import mount_small_disk

DISK_FULL = "The disk is full. Free up space and try again. Finished work is kept."
PICTURE_VALUES: dict[str, Any] = {"prompt": "1girl", "seed": 3, "steps": 2, "api_name": "/generate"}
SWEEP_VALUES: dict[str, Any] = {
    "lora": "nano-airbrush",
    "prompts": "1girl",
    "seeds": "51, 52",
    "strengths": "0, 1",
    "api_name": "/sweep",
}

CELL_BYTES = 1_000_000
"""Free bytes that hold some of the four cells, but not all."""


class Disk:
    """A disk of eight megabytes that a ballast file fills."""

    def __init__(self, folder: Path):
        self.folder, self.ballast = folder, folder / "ballast"

    def leave_free(self, free_bytes: int) -> None:
        """Fill the disk until about `free_bytes` are free, in whole pages of 4096 bytes."""
        self.ballast.unlink(missing_ok=True)
        free = (
            int(
                subprocess.run(
                    ["stat", "-f", "-c", "%a", self.folder], capture_output=True, check=True
                ).stdout
            )
            * 4096
        )
        self.ballast.write_bytes(bytes(free - free_bytes // 4096 * 4096))

    def list_files(self) -> set[Path]:
        return {file for file in self.folder.rglob("*") if file.is_file() and file != self.ballast}


@contextmanager
def mount_disk(folder: Path) -> Iterator[Disk]:
    """Mount a `Disk` over `folder` while the block runs; skip the test if that fails."""
    with mount_small_disk(folder, 8):
        yield Disk(folder)


def assert_disk_full(client: Client, values: dict[str, Any]) -> None:
    """Assert that the call gets one sentence, the model is unchanged and the page still up."""
    before = fingerprint()
    with pytest.raises(AppError) as error:
        client.predict(**values)
    assert str(error.value).startswith(DISK_FULL)
    assert fingerprint() == before
    assert urllib.request.urlopen(client.src, timeout=10).status == 200


@pytest.fixture(autouse=True)
def no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off the check of the disk's floor.

    Writing then fails as it does when the room is used up after the check.
    """
    monkeypatch.setattr(limits, "DISK_FLOOR", 0)


def test_case_25_below_the_floor_nothing_begins(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DISK_FLOOR", 10**9)
    with mount_disk(FILES_FOLDER) as disk:
        with pytest.raises(AppError, match=r"^disk: 0\.01 GB are free, but 1 GB must stay free"):
            client.predict(**PICTURE_VALUES)
        assert not disk.list_files()


def test_case_25_a_disk_that_is_full_at_a_picture(client: Client) -> None:
    with mount_disk(FILES_FOLDER) as disk:
        disk.leave_free(4096)
        assert_disk_full(client, PICTURE_VALUES)
        assert not disk.list_files(), "half a picture stayed"
        disk.ballast.unlink()
        (_,), report = client.predict(**PICTURE_VALUES)
        assert report["seeds"] == [3]
        (file,) = disk.list_files()
        with Image.open(file) as picture:
            picture.load()


def test_case_25_a_disk_that_is_full_at_a_sweeps_cells_and_at_its_zip(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole cells stay, and the next sweep begins with them.

    Nothing stays of a zip or of what was to go into it.
    """
    with mount_disk(tmp_path / "disk") as disk:
        monkeypatch.setattr(cell_cache, "FOLDER", disk.folder)
        disk.leave_free(CELL_BYTES)
        assert_disk_full(client, SWEEP_VALUES)
        assert not [file for file in disk.list_files() if file.name.endswith(".tmp")]
        finished = len([file for file in disk.list_files() if file.suffix == ".npz"])
        assert 0 < finished < 4
        disk.ballast.unlink()
        *_, archive, report = client.predict(**SWEEP_VALUES)
        assert report["cells_found"] >= finished
        size = Path(archive).stat().st_size
        with mount_disk(FILES_FOLDER) as other:
            other.leave_free(size + size // 2)  # for the pictures, not for the zip of them
            assert_disk_full(client, SWEEP_VALUES)
            assert not other.list_files(), "what is half takes the room that is missing"
            other.ballast.unlink()
            *_, report = client.predict(**SWEEP_VALUES)
        assert report["cells_found"] == 4


@pytest.mark.parametrize("how", ["no room", "no room on the way"])
def test_case_25_a_disk_that_is_full_at_a_download(
    hub_server: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    api = HfApi(token="hf_ann")
    api.create_repo("ann/soft")
    api.upload_file(path_or_fileobj=EXAMPLE.read_bytes(), path_in_repo="soft.safetensors", repo_id="ann/soft")
    with mount_disk(tmp_path / "disk") as disk:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk.folder / "hub"))
        room, look = EXAMPLE.stat().st_size // 2, downloads._get_free_bytes
        later = [how == "no room on the way"]

        def check_free_disk() -> int:
            free = look()
            if later[0]:
                disk.leave_free(room)  # somebody else takes the room after the check
            return free

        monkeypatch.setattr(downloads, "_get_free_bytes", check_free_disk)
        if not later[0]:
            disk.leave_free(room)
        with pytest.raises(UserError, match=r"^lora: ") as error:
            from_hub.fetch_lora("ann/soft")
        if how == "no room":
            assert "bytes are free on the disk" in str(error.value)
        assert not [file for file in disk.list_files() if file.suffix == ".safetensors"], (
            "half a LoRA stayed under its name"
        )
        disk.ballast.unlink()
        later[0] = False
        assert from_hub.fetch_lora("ann/soft").read_bytes() == EXAMPLE.read_bytes()
