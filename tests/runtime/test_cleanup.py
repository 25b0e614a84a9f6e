"""What nobody uses is deleted, by its age and by where the studio runs; what is in use stays.

On a full disk nothing that writes begins.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from core.runtime import cleanup, gpu, torch_thread
from core.schema import limits
from core.schema.errors import UserError
from core.schema.events import Features, Picture
from core.schema.records import read_form
from core.sweep import cell_cache, columns
from core.sweep.plan import SweepForm, plan_sweep
from core.sweep.study import SweepStudy
from core.system import shutdown
from core.train import runs
from core.train.trainer.loop import train
from core.train.trainer.run_folder import RunFolder
from core.transfer import study as transfer_study
from core.transfer.plan import TransferForm
from core.transfer.plan import plan_transfer as transfer_plan
from tabs.server import page_files
from tests.small_disk import mount_small_disk
from tests.train.parts import make_dataset, prepare_run

EXAMPLE = Path(__file__).parent.parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"


@pytest.fixture(autouse=True)
def temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_cache, "FOLDER", tmp_path / "cells")
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(page_files, "FILES_FOLDER", tmp_path / "files")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("SPACE_ID", raising=False)


def age_path(path: Path, days: float) -> Path:
    """Make the path and all in it look as if nothing had touched it for days, and return it."""
    then = time.time() - days * limits.DAY
    for each in (*path.rglob("*"), path):
        os.utime(each, (then, then))
    return path


def write_aged_file(path: Path, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return age_path(path, days)


def make_aged_folder(name: str, days: float) -> Path:
    write_aged_file(page_files.FILES_FOLDER / name / "picture.png", days)
    return age_path(page_files.FILES_FOLDER / name, days)


def test_files_of_a_page_go_by_their_age(monkeypatch: pytest.MonkeyPatch) -> None:
    old, upload, new, copied = (
        make_aged_folder("a" * 32, 8),
        make_aged_folder("b" * 64, 8),
        make_aged_folder("c" * 32, 0.5),
        make_aged_folder("d" * 64, 8),
    )
    write_aged_file(copied / "picture.png", 400)  # copied a moment ago from an old file
    os.utime(copied)
    between, foreign, link = (
        make_aged_folder("e" * 32, 3),
        make_aged_folder("my pictures", 900),
        page_files.FILES_FOLDER / ("f" * 32),
    )
    link.symlink_to(foreign)
    assert cleanup.remove_expired(page_files.FILES_FOLDER) == {
        "files": 2,
        "cells": 0,
        "runs": 0,
        "downloads": 0,
    }
    assert not old.exists()
    assert not upload.exists()
    assert all(each.exists() for each in (new, copied, between, foreign / "picture.png", link))
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    cleanup.remove_expired(page_files.FILES_FOLDER)
    assert not between.exists()
    assert all(each.exists() for each in (new, copied, foreign / "picture.png"))


def test_where_the_disk_is_full_an_hour_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a visitor who fills it shuts the Space for days; at home nothing goes early."""
    old, new = make_aged_folder("a" * 32, 0.1), make_aged_folder("b" * 32, 0.01)
    cell = write_aged_file(cell_cache.picture_path("ab" * 32), 0.1)
    monkeypatch.setattr(limits, "DISK_FLOOR", 10**18)
    assert not any(cleanup.remove_expired(page_files.FILES_FOLDER).values())
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    assert cleanup.remove_expired(page_files.FILES_FOLDER) == {
        "files": 1,
        "cells": 1,
        "runs": 0,
        "downloads": 0,
    }
    assert (old.exists(), cell.exists(), new.exists()) == (False, False, True)


def test_what_gradio_leaves_beside_them_goes_too() -> None:
    left, now, named = (
        write_aged_file(page_files.FILES_FOLDER / name, days)
        for name, days in (("tmp1exo_o77", 8), ("tmp3q5ot8d3", 0.5), ("tmpfile.txt", 900))
    )
    assert cleanup.remove_expired(page_files.FILES_FOLDER)["files"] == 1
    assert not left.exists()
    assert now.exists()
    assert named.exists()


def test_a_cell_that_is_found_is_in_use() -> None:
    names = ["ab" * 32, "cd" * 32]
    for name in names:
        write_aged_file(cell_cache.picture_path(name), 0)
        cell_cache.save_features(name, "eye", Features(levels=(), latents=None))
        for file in (cell_cache.FOLDER / name[:2]).iterdir():
            age_path(file, 91)
    note = write_aged_file(cell_cache.FOLDER / "ab" / "note.txt", 900)
    assert cell_cache.load_features(names[0], "eye") is not None
    assert cleanup.remove_expired(page_files.FILES_FOLDER)["cells"] == 2
    assert cell_cache.load_features(names[0], "eye") is not None
    assert not list((cell_cache.FOLDER / "cd").iterdir())
    assert note.exists()


def test_on_a_space_a_run_goes_unless_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trains, left = (
        prepare_run(make_dataset(tmp_path / name), runs.RUNS / (name * 32), steps=50)[0] for name in "ab"
    )
    events = train(trains)
    with trains.lock():
        assert torch_thread.run_on_torch_thread(next, events, None) is not None
        age_path(trains.path, 4)
        age_path(left.path, 4)
        assert cleanup.remove_expired(page_files.FILES_FOLDER)["runs"] == 0, "at home a run is never removed"
        monkeypatch.setenv("SPACE_ID", "ann/studio")
        assert cleanup.remove_expired(page_files.FILES_FOLDER)["runs"] == 1
        assert not left.path.exists()
        assert trains.run_file.exists()
        assert torch_thread.run_on_torch_thread(next, events, None) is not None, "the run does not go on"
        torch_thread.run_on_torch_thread(events.close)
    assert cleanup.remove_expired(page_files.FILES_FOLDER)["runs"] == 0, "it has just been used"
    age_path(trains.path, 4)
    assert cleanup.remove_expired(page_files.FILES_FOLDER)["runs"] == 1


def test_where_the_disk_is_full_a_stopped_run_goes_however_often_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a visitor who starts and stops runs of many pictures shuts the Space for days.

    A run that waits or trains is left alone.
    """
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    data = make_dataset(tmp_path / "data")
    stopped, trains, fresh, finished, old = (
        prepare_run(data, runs.RUNS / (name * 32))[0] for name in "abcef"
    )
    for run in (finished, old):
        write_aged_file(run.states / "000050.safetensors", 0)
    for run, days in ((stopped, 0.1), (trains, 0.1), (finished, 0.9), (old, 1.1)):
        age_path(run.path, days)
    stopped.request_stop()
    assert cleanup.remove_expired(page_files.FILES_FOLDER)["runs"] == 0
    monkeypatch.setattr(limits, "DISK_FLOOR", 10**18)
    with trains.lock():
        assert cleanup.remove_expired(page_files.FILES_FOLDER)["runs"] == 2
    assert (stopped.path.exists(), trains.run_file.exists(), fresh.run_file.exists()) == (False, True, True)
    assert (finished.run_file.exists(), old.path.exists()) == (True, False), (
        "what was trained stays for a day"
    )
    begun = RunFolder(runs.RUNS / ("d" * 32))

    def break_off() -> None:
        with begun.populate():
            age_path(begun.path, 9)  # pictures that are copied may be as old as they like
            assert cleanup.remove_expired(page_files.FILES_FOLDER)["runs"] == 1, (
                "only the one that trained before"
            )
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert not begun.path.exists()


@pytest.mark.usefixtures("few_steps")
def test_the_cells_of_a_study_are_in_use_to_its_end_and_one_that_is_gone_all_the_same_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    monkeypatch.setattr(columns, "TOUCH_SECONDS", 0)
    asked = {"prompts": "1girl", "seeds": "1, 2", "strengths": "0, 1"}
    study = SweepStudy(plan_sweep(read_form(SweepForm, {"lora": str(EXAMPLE), **asked})))
    for event in study.run(gpu.generate_on_gpu):
        if isinstance(event, Picture):
            assert cleanup.remove_expired(page_files.FILES_FOLDER)["cells"] == 0
            age_path(cell_cache.FOLDER, 3)  # days go by until the next event
    assert study.verdict is not None
    crossed = transfer_study.TransferStudy(
        transfer_plan(
            read_form(
                TransferForm, {"loras": [{"lora": str(EXAMPLE), "home": "nano"}], "models": ["nano"], **asked}
            )
        )
    )
    (pair,) = crossed.pairs.values()
    assert not list(pair.sweep.run(gpu.generate_on_gpu)), "all of its cells are there"
    shutil.rmtree(cell_cache.FOLDER)
    with pytest.raises(UserError, match=r"^disk: images of this study were deleted"):
        crossed._judge(pair)

    def delete_cells() -> None:
        for event in SweepStudy(study.plan).run(gpu.generate_on_gpu):
            if isinstance(event, Picture):
                shutil.rmtree(cell_cache.FOLDER)

    with pytest.raises(UserError, match=r"^disk: images of this study were deleted"):
        delete_cells()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, smaller than the floor."""
    with mount_small_disk(tmp_path / "disk", 20) as disk:
        yield disk


def test_below_the_floor_nothing_begins_that_writes(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_files, "FILES_FOLDER", disk / "files")
    monkeypatch.setattr(runs, "RUNS", disk / "runs")
    sentence = r"^disk: 0\.02 GB are free, but 2 GB must stay free\. Free up space to start new jobs\.$"
    with pytest.raises(UserError, match=sentence):
        page_files.create_folder()
    data = make_dataset(tmp_path / "data")
    run, _ = runs.plan_run(data, "nano-quick", trigger="flow")
    with pytest.raises(UserError, match=sentence):
        runs.create_run(run, data)
    assert not list(disk.iterdir())


def test_a_run_for_whose_pictures_there_is_no_room_leaves_nothing(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where that is known beforehand, nor where the disk becomes full meanwhile."""
    monkeypatch.setattr(runs, "RUNS", disk / "runs")
    monkeypatch.setattr(limits, "DISK_FLOOR", 10**6)
    data = make_dataset(tmp_path / "data")
    run, _ = runs.plan_run(data, "nano-quick", trigger="flow")
    parent = runs.create_run(run, data)
    parent.save_state(3, {"values": torch.zeros(10)}, {}, keep=True)
    (parent.dataset / "0000.png").write_bytes(bytes(11 * 10**6))
    (data.folder / "0000.png").write_bytes(bytes(21 * 10**6))
    for floor, sentence in (
        (10**6, "disk: this needs "),
        (-(10**9), "disk: it became full while the run was set up. Free up space and try again."),
    ):
        monkeypatch.setattr(limits, "DISK_FLOOR", floor)
        for begun in (lambda: runs.create_run(run, data), lambda: runs.fork_run(parent, 3, {})):
            with pytest.raises(UserError, match=f"^{sentence}"):
                begun()
            assert [folder.name for folder in (disk / "runs").iterdir()] == [parent.name]


def test_as_many_runs_wait_as_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RUNS_WAITING", 1)
    data = make_dataset(tmp_path / "data")
    waits, gone = (prepare_run(data, runs.RUNS / (name * 32), steps=50)[0] for name in "ab")
    waits.join_queue()
    gone.join_queue()  # its process was killed: it has no place in the queue
    with waits.lock(), pytest.raises(UserError, match=r"^run: 1 are queued, which is the limit"):
        runs.check_capacity()
    runs.check_capacity()


def test_while_it_closes_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "is_shutting_down", lambda: True)
    with pytest.raises(UserError, match="Sweetspot is restarting"):
        runs.check_capacity()


def test_every_limit_is_told() -> None:
    said = dict(limits.list_limits())
    assert said["Disk"] == "no job starts below 2 GB free"
    assert said["Unused runs are deleted"] == "after 3 days on a hosted Space, never at home"
    assert said["Sweep"] == "64 strengths, 16 prompts, 16 seeds, 1,024 images in total"
    assert all(what and bound for what, bound in said.items())
