"""Hostile and odd archives: nothing is unpacked beyond the limits or outside, and each file left out is named."""

import random
import struct
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from core import limits
from core.data.intake import imported
from core.data.pictures import Unusable
from core.data.sources import DIRECTORY, boxes
from core.types import UserError
from tests.data.parts import BLUE, GREEN, PNG, RED, Take, names, picture, pixel, reasons, zipped


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:\\evil.png", "c:evil.png", "..\\evil.png", "\\\\host\\evil.png", ".."])
def test_case_07_a_name_that_leads_outside_is_left_out(take: Take, tmp_path: Path, name: str) -> None:
    found = take({"a.png": PNG, name: PNG})
    assert names(found) == ["a.png"]
    assert reasons(found) == {name.replace("\\", "/"): "its name leads out of the archive"}
    assert sorted(file.name for file in tmp_path.rglob("*.png")) == ["0001.png"]


def test_backslashes_inside_are_folders(take: Take) -> None:
    assert [(s.name, s.caption) for s in take({"one\\a.png": PNG, "one/a.txt": "told"}).samples] == [("one/a.png", "told")]


def test_case_07_links_are_left_out(take: Take, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    assert reasons(take([("a.png", PNG), (link, "/etc/passwd")])) == {"link.png": "it is a link"}
    folder = tmp_path / "folder"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "a.png").write_bytes(PNG)
    (tmp_path / "outside.png").write_bytes(PNG)
    (folder / "b.png").symlink_to(tmp_path / "outside.png")
    (folder / "all").symlink_to(folder / "real")
    assert reasons(imported([folder], tmp_path / "strange")) == {"b.png": "it is a link", "all": "it is a link"}
    own = imported([folder], tmp_path / "own", trusted=True)
    assert (names(own), reasons(own)) == (["b.png", "real/a.png"], {"all": "it is a link"})


def test_case_07_encrypted_and_strangely_packed_members_are_left_out(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {"a.png": PNG, "b.png": PNG})
    data = bytearray(archive.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the last member's flags in the list of members
    archive.write_bytes(data)
    assert reasons(imported([archive], tmp_path / "one")) == {"b.png": "it is encrypted"}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_BZIP2) as out:
        out.writestr("b.png", PNG)
        out.writestr("a.png", PNG, zipfile.ZIP_STORED)
    assert reasons(imported([archive], tmp_path / "two")) == {"b.png": "it is packed in a way that is not read; stored and deflated members are"}


def test_case_07_more_members_than_allowed_are_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {f"{i}.txt": "" for i in range(limits.DATASET_MEMBERS + 1)})
    with pytest.raises(UserError, match=r"^dataset: more than 10,000 files are too many\.$"):
        imported([archive], tmp_path / "into")


def test_a_list_of_members_that_is_far_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.data.sources._Bounded.most", 100)
    with pytest.raises(UserError, match=r"^dataset: more than 10,000 files are too many\.$"):
        imported([zipped(tmp_path, {"a.png": PNG, "b.png": PNG})], tmp_path / "into")


def test_case_07_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^dataset: set\.zip has [\d,]+ bytes and would have 20,000,000; it takes up to 100 times as many\.$"):
        imported([zipped(tmp_path, {"a.png": bytes(20_000_000)})], tmp_path / "into")
    monkeypatch.setattr(limits, "DATASET_BYTES", 1000)
    with pytest.raises(UserError, match=r"^dataset: 1,200 bytes unpacked are too many; it takes up to 1,000\.$"):
        imported([zipped(tmp_path, {"a.bin": random.randbytes(1200)})], tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_case_07_a_member_that_lies_about_its_size_is_left_out(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {"a.png": PNG, "b.png": PNG})
    data = bytearray(archive.read_bytes())
    there = data.rindex(b"PK\x01\x02") + 24
    data[there : there + 4] = struct.pack("<I", 50)
    archive.write_bytes(data)
    assert reasons(imported([archive], tmp_path / "into")) == {"b.png": "it cannot be unpacked"}


def test_a_file_is_not_read_beyond_its_limit(tmp_path: Path) -> None:
    with boxes([zipped(tmp_path, {"a.txt": "x" * 201})], False) as found, pytest.raises(Unusable, match=r"^it has 201 bytes; up to 200 are read$"):
        found[0].entries[0].read(200)


def test_a_picture_may_be_larger_than_a_list_of_members(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        out.writestr("a.bmp", picture(size=(2000, 2000), kind="BMP"))
    assert archive.stat().st_size > DIRECTORY
    assert names(imported([archive], tmp_path / "into")) == ["a.bmp"]


@pytest.mark.parametrize(
    ("raw", "name"),
    [("絵.png".encode("cp932"), "絵.png"), ("表/ソ.png".encode("cp932"), "表/ソ.png"), ("絵.png".encode(), "絵.png"), (b"caf\x82\xff.png", "café\u00a0.png")],
)
def test_case_07_names_are_read_as_they_were_written(take: Take, raw: bytes, name: str) -> None:
    assert names(take([(raw, PNG)])) == [" ".join(name.split())]


def test_case_07_any_name_may_be_shown(take: Take) -> None:
    found = take([("👩‍🎨 ✨.png", PNG), ("a\x1b[31m\nb.png", PNG), ("l" * 300 + ".png", PNG)])
    assert sorted(names(found)) == sorted(["👩‍🎨 ✨.png", "a[31m b.png", "…" + "l" * 116 + ".png"])
    assert [sample.file for sample in found.samples] == ["0001.png", "0002.png", "0003.png"]


def test_case_07_of_two_files_with_one_name_the_first_is_taken(take: Take) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own, over the second
        found = take([("a.png", PNG), ("a.png", picture(BLUE)), ("A.png", picture(GREEN))])
    assert (names(found), reasons(found)) == (["A.png", "a.png"], {"a.png": "another file has the same name"})
    assert (pixel(found, 0), pixel(found, 1)) == (GREEN, RED)


def test_case_07_what_is_no_picture_is_named_and_what_systems_add_is_not(take: Take, tmp_path: Path) -> None:
    inner = zipped(tmp_path, {"b.png": PNG}, "inner.zip").read_bytes()
    quiet = {"__MACOSX/._a.png": PNG, ".DS_Store": "x", "sub/.DS_Store": "x", "Thumbs.db": "x", "sub/desktop.ini": "x", "sub/": ""}
    found = take({"a.png": PNG, "inner.zip": inner, "note.pdf": "%PDF", "README.txt": "hello", "x.toml": "a = 1", **quiet})
    assert reasons(found) == {
        "README.txt": "no picture takes its caption from it",
        "inner.zip": "an archive inside an archive is not opened",
        "note.pdf": "it is no PNG, JPEG, WebP or BMP picture",
        "x.toml": "it is no dataset of kohya's trainer",
    }


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no", b"PK\x05\x06" + b"\xff" * 18, PNG])
def test_a_zip_that_is_none_is_left_out(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.zip").write_bytes(data)
    (tmp_path / "a.png").write_bytes(PNG)
    assert reasons(imported([tmp_path / "bad.zip", tmp_path / "a.png"], tmp_path / "into")) == {"bad.zip": "it is not a whole zip archive"}


def test_a_damaged_zip_never_raises_anything_else(tmp_path: Path) -> None:
    whole = zipped(tmp_path, {"a.png": PNG, "1_b/b.png": PNG, "a.txt": "x", "set.toml": "[[datasets]]"}).read_bytes()
    chance = random.Random(0)
    for i in range(150):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (tmp_path / "bad.zip").write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        with suppress(UserError):
            assert imported([tmp_path / "bad.zip"], tmp_path / f"{i}").samples
