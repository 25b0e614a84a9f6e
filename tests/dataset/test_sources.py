"""Hostile archives unpack nothing outside or beyond the limits, and each file left out is named."""

import random
import struct
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from core.dataset.intake import import_dataset
from core.dataset.pictures import UnusableFile
from core.dataset.sources import MAX_DIRECTORY_BYTES, open_file_trees
from core.schema import limits
from core.schema.errors import UserError
from tests.dataset.parts import (
    BLUE,
    GREEN,
    PNG,
    RED,
    ImportZip,
    list_names,
    list_reasons,
    make_picture,
    read_pixel,
    write_zip,
)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "a/../../evil.png",
        "/etc/evil.png",
        "C:\\evil.png",
        "c:evil.png",
        "..\\evil.png",
        "\\\\host\\evil.png",
        "..",
    ],
)
def test_case_07_a_name_that_leads_outside_is_left_out(
    import_zip: ImportZip, tmp_path: Path, name: str
) -> None:
    found = import_zip({"a.png": PNG, name: PNG})
    assert list_names(found) == ["a.png"]
    assert list_reasons(found) == {name.replace("\\", "/"): "its path leads out of the archive"}
    assert sorted(file.name for file in tmp_path.rglob("*.png")) == ["0001.png"]


def test_backslashes_inside_are_folders(import_zip: ImportZip) -> None:
    assert [(s.name, s.caption) for s in import_zip({"one\\a.png": PNG, "one/a.txt": "told"}).samples] == [
        ("one/a.png", "told")
    ]


def test_case_07_links_are_left_out(import_zip: ImportZip, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    assert list_reasons(import_zip([("a.png", PNG), (link, "/etc/passwd")])) == {"link.png": "it is a link"}
    folder = tmp_path / "folder"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "a.png").write_bytes(PNG)
    (tmp_path / "outside.png").write_bytes(PNG)
    (folder / "b.png").symlink_to(tmp_path / "outside.png")
    (folder / "all").symlink_to(folder / "real")
    assert list_reasons(import_dataset([folder], tmp_path / "strange")) == {
        "b.png": "it is a link",
        "all": "it is a link",
    }
    own = import_dataset([folder], tmp_path / "own", trusted=True)
    assert (list_names(own), list_reasons(own)) == (["b.png", "real/a.png"], {"all": "it is a link"})


def test_case_07_encrypted_and_strangely_packed_members_are_left_out(tmp_path: Path) -> None:
    archive = write_zip(tmp_path, {"a.png": PNG, "b.png": PNG})
    data = bytearray(archive.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the last member's flags in the list of members
    archive.write_bytes(data)
    assert list_reasons(import_dataset([archive], tmp_path / "one")) == {"b.png": "it is encrypted"}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_BZIP2) as out:
        out.writestr("b.png", PNG)
        out.writestr("a.png", PNG, zipfile.ZIP_STORED)
    assert list_reasons(import_dataset([archive], tmp_path / "two")) == {
        "b.png": "its compression is not supported; stored and deflated files are"
    }


def test_case_07_more_members_than_allowed_are_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path, {f"{i}.txt": "" for i in range(limits.DATASET_MEMBERS + 1)})
    with pytest.raises(UserError, match=r"^dataset: more than 10,000 files are too many\.$"):
        import_dataset([archive], tmp_path / "into")


def test_a_list_of_members_that_is_far_too_long_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.dataset.sources._BoundedZipFile.max_read", 100)
    with pytest.raises(UserError, match=r"^dataset: more than 10,000 files are too many\.$"):
        import_dataset([write_zip(tmp_path, {"a.png": PNG, "b.png": PNG})], tmp_path / "into")


def test_case_07_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^dataset: set\.zip has [\d,]+ bytes and unpacks to 20,000,000; "
            r"the limit is 100 times its size\.$"
        ),
    ):
        import_dataset([write_zip(tmp_path, {"a.png": bytes(20_000_000)})], tmp_path / "into")
    monkeypatch.setattr(limits, "DATASET_BYTES", 1000)
    with pytest.raises(
        UserError, match=r"^dataset: 1,200 bytes unpacked are too many; the limit is 1,000\.$"
    ):
        import_dataset([write_zip(tmp_path, {"a.bin": random.randbytes(1200)})], tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_case_07_a_member_that_lies_about_its_size_is_left_out(tmp_path: Path) -> None:
    archive = write_zip(tmp_path, {"a.png": PNG, "b.png": PNG})
    data = bytearray(archive.read_bytes())
    there = data.rindex(b"PK\x01\x02") + 24
    data[there : there + 4] = struct.pack("<I", 50)
    archive.write_bytes(data)
    assert list_reasons(import_dataset([archive], tmp_path / "into")) == {"b.png": "it cannot be unpacked"}


def test_a_file_is_not_read_beyond_its_limit(tmp_path: Path) -> None:
    with (
        open_file_trees([write_zip(tmp_path, {"a.txt": "x" * 201})], False) as found,
        pytest.raises(UnusableFile, match=r"^it has 201 bytes; the limit is 200$"),
    ):
        found[0].entries[0].read(200)


def test_a_picture_may_be_larger_than_a_list_of_members(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        out.writestr("a.bmp", make_picture(size=(2000, 2000), kind="BMP"))
    assert archive.stat().st_size > MAX_DIRECTORY_BYTES
    assert list_names(import_dataset([archive], tmp_path / "into")) == ["a.bmp"]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("絵.png".encode("cp932"), "絵.png"),
        ("表/ソ.png".encode("cp932"), "表/ソ.png"),
        ("絵.png".encode(), "絵.png"),
        (b"caf\x82\xff.png", "café\u00a0.png"),
    ],
)
def test_case_07_names_are_read_as_they_were_written(import_zip: ImportZip, raw: bytes, name: str) -> None:
    assert list_names(import_zip([(raw, PNG)])) == [" ".join(name.split())]


def test_case_07_any_name_may_be_shown(import_zip: ImportZip) -> None:
    found = import_zip([("👩‍🎨 ✨.png", PNG), ("a\x1b[31m\nb.png", PNG), ("l" * 300 + ".png", PNG)])
    assert sorted(list_names(found)) == sorted(["👩‍🎨 ✨.png", "a[31m b.png", "…" + "l" * 116 + ".png"])
    assert [sample.file for sample in found.samples] == ["0001.png", "0002.png", "0003.png"]


def test_case_07_of_two_files_with_one_name_the_first_is_taken(import_zip: ImportZip) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own, over the second
        found = import_zip([("a.png", PNG), ("a.png", make_picture(BLUE)), ("A.png", make_picture(GREEN))])
    assert (list_names(found), list_reasons(found)) == (
        ["A.png", "a.png"],
        {"a.png": "another file has the same name"},
    )
    assert (read_pixel(found, 0), read_pixel(found, 1)) == (GREEN, RED)


def test_case_07_what_is_no_picture_is_named_and_what_systems_add_is_not(
    import_zip: ImportZip, tmp_path: Path
) -> None:
    inner = write_zip(tmp_path, {"b.png": PNG}, "inner.zip").read_bytes()
    quiet = {
        "__MACOSX/._a.png": PNG,
        ".DS_Store": "x",
        "sub/.DS_Store": "x",
        "Thumbs.db": "x",
        "sub/desktop.ini": "x",
        "sub/": "",
    }
    found = import_zip(
        {
            "a.png": PNG,
            "inner.zip": inner,
            "note.pdf": "%PDF",
            "README.txt": "hello",
            "x.toml": "a = 1",
            **quiet,
        }
    )
    assert list_reasons(found) == {
        "README.txt": "no image uses it as its caption",
        "inner.zip": "an archive inside an archive is not opened",
        "note.pdf": "it is not a PNG, JPEG, WebP or BMP image",
        "x.toml": "it is not a dataset of kohya's trainer",
    }


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no", b"PK\x05\x06" + b"\xff" * 18, PNG])
def test_a_zip_that_is_none_is_left_out(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.zip").write_bytes(data)
    (tmp_path / "a.png").write_bytes(PNG)
    assert list_reasons(import_dataset([tmp_path / "bad.zip", tmp_path / "a.png"], tmp_path / "into")) == {
        "bad.zip": "it is not a complete zip archive"
    }


def test_a_damaged_zip_never_raises_anything_else(tmp_path: Path) -> None:
    whole = write_zip(
        tmp_path, {"a.png": PNG, "1_b/b.png": PNG, "a.txt": "x", "set.toml": "[[datasets]]"}
    ).read_bytes()
    chance = random.Random(0)
    for i in range(150):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (tmp_path / "bad.zip").write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        with suppress(UserError):
            assert import_dataset([tmp_path / "bad.zip"], tmp_path / f"{i}").samples
