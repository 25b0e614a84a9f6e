"""What nobody uses goes, by its age and by where the studio runs; what is in use stays. And the floor of a disk."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from core import cells, closing, gpu, limits, sweep, sweeper
from core.events import Look, Picture
from core.plan import plan
from core.sweep import Study
from core.train import runs
from core.train.folder import Folder
from core.train.loop import train
from core.transfer import study as transfer
from core.transfer.plan import plan as transfer_plan
from core.transfer.report import reported
from core.types import UserError
from tabs import files
from tests.train.parts import dataset, prepared

EXAMPLE = Path(__file__).parent.parent / "presets" / "loras" / "nano-airbrush.safetensors"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "FOLDER", tmp_path / "cells")
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(files, "FILES", tmp_path / "files")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("SPACE_ID", raising=False)


def aged(path: Path, days: float) -> Path:
    """The path and all in it, as if nothing had touched it for days."""
    then = time.time() - days * limits.DAY
    for each in (*path.rglob("*"), path):
        os.utime(each, (then, then))
    return path


def written(path: Path, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return aged(path, days)


def folder(name: str, days: float) -> Path:
    written(files.FILES / name / "picture.png", days)
    return aged(files.FILES / name, days)


def test_files_of_a_page_go_by_their_age(monkeypatch: pytest.MonkeyPatch) -> None:
    old, upload, new, copied = folder("a" * 32, 8), folder("b" * 64, 8), folder("c" * 32, 0.5), folder("d" * 64, 8)
    written(copied / "picture.png", 400)  # copied a moment ago from an old file
    os.utime(copied)
    between, foreign, link = folder("e" * 32, 3), folder("my pictures", 900), files.FILES / ("f" * 32)
    link.symlink_to(foreign)
    assert sweeper.sweep(files.FILES) == {"files": 2, "cells": 0, "runs": 0, "downloads": 0}
    assert not old.exists()
    assert not upload.exists()
    assert all(each.exists() for each in (new, copied, between, foreign / "picture.png", link))
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    sweeper.sweep(files.FILES)
    assert not between.exists()
    assert all(each.exists() for each in (new, copied, foreign / "picture.png"))


def test_where_the_disk_is_full_an_hour_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or whoever fills it shuts the Space for days; at home nothing goes before its time."""
    old, new = folder("a" * 32, 0.1), folder("b" * 32, 0.01)
    cell = written(cells.picture("ab" * 32), 0.1)
    monkeypatch.setattr(limits, "DISK_FLOOR", 10**18)
    assert not any(sweeper.sweep(files.FILES).values())
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    assert sweeper.sweep(files.FILES) == {"files": 1, "cells": 1, "runs": 0, "downloads": 0}
    assert (old.exists(), cell.exists(), new.exists()) == (False, False, True)


def test_what_gradio_leaves_beside_them_goes_too() -> None:
    left, now, named = (written(files.FILES / name, days) for name, days in (("tmp1exo_o77", 8), ("tmp3q5ot8d3", 0.5), ("tmpfile.txt", 900)))
    assert sweeper.sweep(files.FILES)["files"] == 1
    assert not left.exists()
    assert now.exists()
    assert named.exists()


def test_a_cell_that_is_found_is_in_use() -> None:
    names = ["ab" * 32, "cd" * 32]
    for name in names:
        written(cells.picture(name), 0)
        cells.keep(name, "eye", Look(levels=(), latents=None))
        for file in (cells.FOLDER / name[:2]).iterdir():
            aged(file, 91)
    note = written(cells.FOLDER / "ab" / "note.txt", 900)
    assert cells.look(names[0], "eye") is not None
    assert sweeper.sweep(files.FILES)["cells"] == 2
    assert cells.look(names[0], "eye") is not None
    assert not list((cells.FOLDER / "cd").iterdir())
    assert note.exists()


def test_on_a_space_a_run_goes_unless_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trains, left = (prepared(dataset(tmp_path / name), runs.RUNS / (name * 32), steps=50)[0] for name in "ab")
    events = train(trains)
    with trains.owned():
        assert gpu.lane(next, events, None) is not None
        aged(trains.path, 4)
        aged(left.path, 4)
        assert sweeper.sweep(files.FILES)["runs"] == 0, "at home a run is never removed"
        monkeypatch.setenv("SPACE_ID", "ann/studio")
        assert sweeper.sweep(files.FILES)["runs"] == 1
        assert not left.path.exists()
        assert trains.run.exists()
        assert gpu.lane(next, events, None) is not None, "the run does not go on"
        gpu.lane(events.close)
    assert sweeper.sweep(files.FILES)["runs"] == 0, "it has just been used"
    aged(trains.path, 4)
    assert sweeper.sweep(files.FILES)["runs"] == 1


def test_where_the_disk_is_full_a_stopped_run_goes_however_often_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins and stops runs of many pictures does not shut the Space for days; who waits or trains is left alone."""
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    data = dataset(tmp_path / "data")
    stopped, trains, fresh, finished, old = (prepared(data, runs.RUNS / (name * 32))[0] for name in "abcef")
    for run in (finished, old):
        written(run.states / "000050.safetensors", 0)
    for run, days in ((stopped, 0.1), (trains, 0.1), (finished, 0.9), (old, 1.1)):
        aged(run.path, days)
    stopped.ask_to_stop()
    assert sweeper.sweep(files.FILES)["runs"] == 0
    monkeypatch.setattr(limits, "DISK_FLOOR", 10**18)
    with trains.owned():
        assert sweeper.sweep(files.FILES)["runs"] == 2
    assert (stopped.path.exists(), trains.run.exists(), fresh.run.exists()) == (False, True, True)
    assert (finished.run.exists(), old.path.exists()) == (True, False), "what was trained stays for a day"
    begun = Folder(runs.RUNS / ("d" * 32))

    def broken_off() -> None:
        with begun.filled():
            aged(begun.path, 9)  # pictures that are copied may be as old as they like
            assert sweeper.sweep(files.FILES)["runs"] == 1, "only the one that trained before"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert not begun.path.exists()


@pytest.mark.usefixtures("few_steps")
def test_the_cells_of_a_study_are_in_use_to_its_end_and_one_that_is_gone_all_the_same_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    monkeypatch.setattr(sweep, "HELD_SECONDS", 0)
    asked = {"prompts": "1girl", "seeds": "1, 2", "strengths": "0, 1"}
    study = Study(plan({"lora": str(EXAMPLE), **asked}))
    for event in study.run():
        if isinstance(event, Picture):
            assert sweeper.sweep(files.FILES)["cells"] == 0
            aged(cells.FOLDER, 3)  # days go by until the next event
    assert study.verdict is not None
    crossed = transfer.Study(transfer_plan({"loras": [{"lora": str(EXAMPLE), "home": "nano"}], "models": ["nano"], **asked}))
    assert not list(crossed._column("nano")), "all of its cells are there"
    shutil.rmtree(cells.FOLDER)
    crossed._judge()
    (pair,) = reported(crossed)["per_pair"]
    assert (pair["verdict"], pair["why"]) == (None, cells.SWEPT)

    def swept_away() -> None:
        for event in Study(study.plan).run():
            if isinstance(event, Picture):
                shutil.rmtree(cells.FOLDER)

    with pytest.raises(UserError, match=r"^disk: pictures of this study were swept away"):
        swept_away()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, smaller than the floor."""
    at = tmp_path / "disk"
    at.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", at], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield at
    subprocess.run(["umount", "-l", at], check=True)


def test_below_the_floor_nothing_begins_that_writes(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FILES", disk / "files")
    monkeypatch.setattr(runs, "RUNS", disk / "runs")
    sentence = r"^disk: 0\.02 GB are free, and 2 GB must stay free; nothing new begins until there is room\.$"
    with pytest.raises(UserError, match=sentence):
        files.new_folder()
    data = dataset(tmp_path / "data")
    run, _ = runs.settled(data, "nano-quick", trigger="flow")
    with pytest.raises(UserError, match=sentence):
        runs.prepared(run, data)
    assert not list(disk.iterdir())


def test_a_run_for_whose_pictures_there_is_no_room_leaves_nothing(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where that is known beforehand, nor where the disk becomes full meanwhile."""
    monkeypatch.setattr(runs, "RUNS", disk / "runs")
    monkeypatch.setattr(limits, "DISK_FLOOR", 10**6)
    data = dataset(tmp_path / "data")
    run, _ = runs.settled(data, "nano-quick", trigger="flow")
    parent = runs.prepared(run, data)
    parent.save_state(3, {"values": torch.zeros(10)}, {}, keep=True)
    (parent.dataset / "0000.png").write_bytes(bytes(11 * 10**6))
    (data.folder / "0000.png").write_bytes(bytes(21 * 10**6))
    for floor, sentence in ((10**6, "disk: it takes "), (-(10**9), "disk: it became full while the run was set up; make room and try again.")):
        monkeypatch.setattr(limits, "DISK_FLOOR", floor)
        for begun in (lambda: runs.prepared(run, data), lambda: runs.forked(parent, 3, {})):
            with pytest.raises(UserError, match=f"^{sentence}"):
                begun()
            assert [folder.name for folder in (disk / "runs").iterdir()] == [parent.name]


def test_as_many_runs_wait_as_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RUNS_WAITING", 1)
    data = dataset(tmp_path / "data")
    waits, gone = (prepared(data, runs.RUNS / (name * 32), steps=50)[0] for name in "ab")
    waits.wait()
    gone.wait()  # its process was killed: it has no place in the queue
    with waits.owned(), pytest.raises(UserError, match=r"^run: 1 wait for their turn, and no more may"):
        runs.admitted()
    runs.admitted()


def test_while_it_closes_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "asked", lambda: True)
    with pytest.raises(UserError, match="The studio is being restarted"):
        runs.admitted()


def test_every_limit_is_told() -> None:
    said = dict(limits.rows())
    assert said["Disk"] == "nothing begins below 2 GB free"
    assert said["Unused runs go"] == "after 3 days on a hosted Space, never at home"
    assert said["Sweep"] == "64 strengths, 16 prompts, 16 seeds, 1,024 pictures in all"
    assert all(what and bound for what, bound in said.items())
