"""Whatever is brought: pictures and their captions come in, each other file is named with its reason."""

import random
import zipfile
from pathlib import Path

import pytest

from core import limits
from core.data.intake import imported, written
from core.types import UserError
from tests.data.parts import BLUE, PNG, Take, picture, reasons, zipped


def test_a_zip_a_folder_and_loose_files_are_the_same(tmp_path: Path) -> None:
    files = {"a.png": PNG, "a.txt": "1girl, smile", "b.jpg": picture(BLUE, kind="JPEG"), "b.txt": "sky"}
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    ways = {"zip": [zipped(tmp_path, files)], "folder": [folder], "loose": sorted(folder.iterdir(), reverse=True)}
    found = [imported(sources, tmp_path / f"from {way}") for way, sources in ways.items()]
    for dataset in found:
        assert [(s.file, s.name, s.caption, s.width, s.height) for s in dataset.samples] == [
            ("0001.png", "a.png", "1girl, smile", 40, 48),
            ("0002.png", "b.jpg", "sky", 40, 48),
        ]
        assert (dataset.skipped, dataset.notes, dataset.settings) == ((), (), {})
        assert sorted(file.name for file in dataset.folder.iterdir()) == ["0001.png", "0002.png"]
    assert len({dataset.fingerprint() for dataset in found}) == 1


def test_masks_of_onetrainer_are_no_pictures_however_they_come(tmp_path: Path) -> None:
    """Beside their picture they are counted; one without it is named, as it may be a picture by accident of its name."""
    told = "Masks of OneTrainer are left out and not trained as pictures:"
    plain = {"a.jpg": picture(BLUE, kind="JPEG"), "a-masklabel.png": PNG, "a.txt": "sky", "b.png": PNG, "b-condlabel.PNG": PNG, "c-masklabel.png": PNG}
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in plain.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    classed = {f"3_sky/{name}": data for name, data in plain.items()}
    toml = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "3_sky"\n'
    ways = {
        "zip": [zipped(tmp_path, plain, "plain.zip")],
        "folder": [folder],
        "loose": sorted(folder.iterdir()),
        "class": [zipped(tmp_path, classed, "classed.zip")],
        "toml": [zipped(tmp_path, {**classed, "set.toml": toml}, "toml.zip")],
    }
    for way, sources in ways.items():
        found = imported(sources, tmp_path / f"from {way}")
        assert [s.name.removeprefix("3_sky/") for s in found.samples] == ["a.jpg", "b.png"], way
        place = "3_sky/" if way in ("class", "toml") else ""
        assert f"{told} 2 files, such as '{place}a-masklabel.png'." in found.notes, way
        assert reasons(found) == {f"{place}c-masklabel.png": "it is a mask of no picture that is trained"}, way
    one = imported([zipped(tmp_path, {"a.png": PNG, "a-masklabel.png": PNG})], tmp_path / "one", regularisation=True)
    assert (len(one.samples), one.notes) == (1, (f"{told} 'a-masklabel.png'.",))
    with pytest.raises(UserError, match=r"nothing can be used; 'c-masklabel\.png': it is a mask of no picture"):
        imported([folder / "c-masklabel.png"], tmp_path / "none")


def test_folders_inside_are_kept_in_names_only(take: Take) -> None:
    found = take({"my set/one/a.png": PNG, "my set/two/a.png": PNG, "my set/one/a.txt": "first"})
    assert [(s.name, s.caption, s.group, s.repeats) for s in found.samples] == [("my set/one/a.png", "first", "one", 1), ("my set/two/a.png", "", "two", 1)]


def test_regularisation_is_the_callers_word(take: Take) -> None:
    assert take({"a.png": PNG}, regularisation=True).samples[0].regularisation


def test_what_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^dataset: away\.zip is not there\.$"):
        imported([tmp_path / "away.zip"], tmp_path / "into")
    with pytest.raises(UserError, match=r"^dataset: nothing can be used; no picture was brought\.$"):
        imported([], tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_many_pictures_and_many_pixels_are_refused(take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DATASET_PICTURES", 1)
    with pytest.raises(UserError, match=r"^dataset: 2 pictures are too many; it takes up to 1\.$"):
        take({"a.png": PNG, "b.png": PNG})
    monkeypatch.setattr(limits, "DATASET_PICTURES", 2)
    monkeypatch.setattr(limits, "DATASET_PIXELS", 3000)
    with pytest.raises(UserError, match=r"^dataset: the pictures have too many pixels; it takes up to 3e-06 gigapixels in all\.$"):
        take({"a.png": PNG, "b.png": PNG})
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize(
    ("data", "caption", "says"),
    [
        (b"1girl, smile\n", "1girl, smile", None),
        ("絵, 笑顔".encode(), "絵, 笑顔", None),
        ("\ufeff絵".encode(), "絵", None),
        ("\ufeff絵".encode("utf-16-le"), "絵", None),
        ("\ufeff絵".encode("utf-16-be"), "絵", None),
        ("絵, 笑顔".encode("cp932"), "絵, 笑顔", "The caption is no UTF-8 and was read as Shift JIS: 'a.png'."),
        (b"", "", None),
        (b" one \r\n\r\n two\x00\x1b ", "one\ntwo", None),
        (b"<script>--- !!python/object [x](y)", "<script>--- !!python/object [x](y)", None),
    ],
)
def test_case_09_captions_are_read_in_any_usual_encoding(take: Take, data: bytes, caption: str, says: str | None) -> None:
    found = take({"a.png": PNG, "a.txt": data})
    assert (found.samples[0].caption, found.skipped, found.notes) == (caption, (), (says,) if says else ())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xff\x81", "it is text neither in UTF-8 nor in UTF-16 or Shift JIS"),
        (b"\xff\xfea", "it is text neither in UTF-8 nor in UTF-16 or Shift JIS"),
        (b"a" * 10_001, "it has 10,001 characters; a caption has up to 10,000"),
        (b"a" * 100_000, "it has 100,000 bytes; up to 40,003 are read"),
    ],
)
def test_case_09_a_caption_that_cannot_be_used_is_named_and_the_picture_stays(take: Take, data: bytes, reason: str) -> None:
    found = take({"a.png": PNG, "a.txt": data, **{f"noise{i}.bin": random.randbytes(1000) for i in range(2)}})
    assert (found.samples[0].caption, reasons(found)["a.txt"]) == ("", reason)


def test_case_09_caption_files_of_both_kinds_are_read_and_said(take: Take) -> None:
    found = take({"a.png": PNG, "a.caption": "old", "b.png": PNG, "b.TXT": "new", "b.caption": "old"})
    assert [sample.caption for sample in found.samples] == ["old", "new"]
    assert found.notes == ("The caption is read from a .caption file: 'a.png'.", "Of .txt and .caption the .txt is taken: 'b.png'.")


def test_a_dataset_goes_out_as_kohya_reads_it_and_comes_back(take: Take, tmp_path: Path) -> None:
    found = take({"a.png": PNG, "a.txt": "絵, smile", "b.png": picture(BLUE)})
    archive = written(found, tmp_path / "out.zip")
    with zipfile.ZipFile(archive) as packed:
        assert packed.namelist() == ["0001.png", "0001.txt", "0002.png"]
        assert packed.read("0001.txt").decode() == "絵, smile"
    assert imported([archive], tmp_path / "back").fingerprint() == found.fingerprint()
