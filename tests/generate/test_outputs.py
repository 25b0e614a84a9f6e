"""Finished pictures are kept: each under a name of its own, where a person wants them, and none is lost."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from core.generate import outputs
from core.generate.outputs import Outputs
from core.schema.errors import UserError
from core.schema.types import Request
from core.system import atomic_files, paths


def make_request(**changes) -> Request:
    plain = {
        "prompt": "",
        "negative": "",
        "width": 64,
        "height": 64,
        "steps": 1,
        "cfg": 1.0,
        "sampler": "Euler",
    }
    return Request(**{**plain, "model": "nano", "seed": 7, **changes})


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png")
    return tmp_path / "made.png"


def keep(picture: Path, store: Outputs, **changes) -> str:
    copy, notes = outputs.keep_picture(picture, make_request(**changes), store)
    assert copy
    assert not notes
    assert copy.read_bytes() == picture.read_bytes()
    return copy.relative_to(store.folder).as_posix()


def test_a_day_has_a_folder_and_a_picture_a_number(picture: Path, tmp_path: Path) -> None:
    store, today = Outputs(folder=tmp_path / "outputs"), time.strftime("%Y-%m-%d")
    assert [keep(picture, store, seed=seed) for seed in (7, 7, 8)] == [
        f"{today}/{name}.png" for name in ("00001-7", "00002-7", "00003-8")
    ]
    (store.folder / today / "00003-8.png").rename(store.folder / today / "123456-1.png")
    assert keep(picture, store) == f"{today}/123457-7.png", "numbers go on after the highest"


def keep_twenty(picture: Path, store: Outputs) -> None:
    for _ in range(20):
        keep(picture, store)


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "no-links"])
@pytest.mark.parametrize("pattern", ["[number]", "[model]"])
def test_two_processes_never_take_one_name(
    pattern: str, has_links: bool, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a second app or a script overwrites pictures. exFAT and some network drives have no links."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    if not has_links:
        monkeypatch.setattr(atomic_files.os, "link", refuse)
    store = Outputs(folder=tmp_path / "outputs", pattern=pattern)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=keep_twenty, args=(picture, store)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(outputs.list_pictures(store.folder)) == 60 == len(list(store.folder.iterdir()))


def test_a_models_name_makes_a_file_name_for_every_system(picture: Path, tmp_path: Path) -> None:
    store = Outputs(folder=tmp_path / "outputs", pattern="[model]/[model]")
    for model, name in (
        ("owner/base: v1?", "owner_base_ v1_"),
        ("../../etc", "_.._etc"),
        ("..", "_"),
        ("con", "_con"),
        ("lpt1.x", "_lpt1.x"),
        ("絵" * 90, "絵" * 20),
        ("a[seed]", "a[seed]"),
    ):
        assert keep(picture, store, model=model) == f"{name}/{name}.png"
    assert keep(picture, store, model="..") == "_/_-2.png"


def test_a_folder_that_takes_nothing_costs_the_copy_only(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file, where the folder should be")
    copy, notes = outputs.keep_picture(picture, make_request(), Outputs(folder=tmp_path / "outputs"))
    assert copy is None
    assert notes[0].startswith(f"Not kept in {tmp_path / 'outputs'}: ")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A studio's folder of its own, where `outputs.toml` is looked for."""
    monkeypatch.delenv("SWEETSPOT_OUTPUTS")
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    return tmp_path


def test_place_and_pattern_are_a_persons(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outputs.find_outputs() == Outputs(folder=paths.OUTPUTS, pattern="[date]/[number]-[seed]")
    (home / "outputs.toml").write_text('folder = "my pictures"\npattern = "[model]/[date] [time] [seed]"\n')
    assert outputs.find_outputs() == Outputs(
        folder=home / "my pictures", pattern="[model]/[date] [time] [seed]"
    )
    monkeypatch.setenv("SWEETSPOT_OUTPUTS", str(paths.OUTPUTS))
    store = outputs.find_outputs()
    assert store
    assert store.folder == paths.OUTPUTS, "a variable for one folder comes first"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('pattern = "[sead]"', "[sead] is not valid. Use [date], [time], [number], [seed], [model]."),
        ('pattern = "[number]/[seed]"', "[number] is not valid in a folder"),
        ('pattern = "../[seed]"', "begins with a dot"),
        ('pattern = "/[seed]"', "is empty"),
        ('pattern = "c:/[seed]"', "':' is not valid in a file name"),
        ("pattern = '[date]\\\\[seed]'", "Use / between folders"),
        ("pattern = 3", "pattern: use a text in quotes"),
        ('place = "here"', "'place' is not valid. Use folder and pattern."),
    ],
)
def test_a_bad_line_is_named_before_work_starts(line: str, said: str, home: Path) -> None:
    (home / "outputs.toml").write_text(line)
    with pytest.raises(UserError) as refusal:
        outputs.find_outputs()
    assert str(refusal.value).startswith("outputs.toml: ")
    assert said in str(refusal.value)


def test_on_a_space_nothing_is_kept(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "is_space", lambda: True)
    assert outputs.find_outputs() is None
    assert outputs.keep_picture(picture, make_request(), None) == (None, ())


def test_pictures_are_listed_newest_first(picture: Path, tmp_path: Path) -> None:
    """Not by name: numbers begin anew each day, and a person may have a pattern of their own."""
    folder = tmp_path / "outputs"
    for age, name in enumerate(("2026-01-02/a.png", "2026-01-01/b.PNG", "c.png")):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture.read_bytes())
        os.utime(file, (1000 - age, 1000 - age))
    for name in (".hidden.png", "notes.txt", f"{'0' * 32}/upload.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture.read_bytes())
    (folder / "reserved.png").touch()
    (folder / "link.png").symlink_to(picture)
    found = outputs.list_pictures(folder)
    assert [file.relative_to(folder).as_posix() for file in found] == [
        "2026-01-02/a.png",
        "2026-01-01/b.PNG",
        "c.png",
    ]
    assert outputs.list_pictures(tmp_path / "not there") == []


def test_only_a_picture_of_the_folder_is_deleted(picture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / "notes.txt").touch()
    (folder / "link.png").symlink_to(picture)
    (tmp_path / "outputs-2").mkdir()
    neighbour = tmp_path / "outputs-2" / "a.png"
    neighbour.touch()
    for file in (picture, folder / "../made.png", folder / "notes.txt", folder / "link.png", neighbour):
        with pytest.raises(UserError, match="is no image of the history"):
            outputs.delete_picture(file, folder)
    assert picture.exists()
    assert neighbour.exists()
    (folder / "a.png").touch()
    (folder / "b.png").touch()
    outputs.delete_picture(folder / "a.png", folder)
    assert sorted(file.name for file in folder.iterdir()) == ["b.png", "link.png", "notes.txt"]
