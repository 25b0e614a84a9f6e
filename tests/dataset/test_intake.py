"""Pictures and their captions are imported; every other file is named with its reason."""

import random
import zipfile
from pathlib import Path

import pytest

from core.dataset.intake import export_zip, import_dataset
from core.schema import limits
from core.schema.errors import UserError
from tests.dataset.parts import BLUE, PNG, ImportZip, list_reasons, make_picture, write_zip


def test_a_zip_a_folder_and_loose_files_are_the_same(tmp_path: Path) -> None:
    files = {"a.png": PNG, "a.txt": "1girl, smile", "b.jpg": make_picture(BLUE, kind="JPEG"), "b.txt": "sky"}
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    ways = {
        "zip": [write_zip(tmp_path, files)],
        "folder": [folder],
        "loose": sorted(folder.iterdir(), reverse=True),
    }
    found = [import_dataset(sources, tmp_path / f"from {way}") for way, sources in ways.items()]
    for dataset in found:
        assert [(s.file, s.name, s.caption, s.width, s.height) for s in dataset.samples] == [
            ("0001.png", "a.png", "1girl, smile", 40, 48),
            ("0002.png", "b.jpg", "sky", 40, 48),
        ]
        assert (dataset.skipped, dataset.notes, dataset.settings) == ((), (), {})
        assert sorted(file.name for file in dataset.folder.iterdir()) == ["0001.png", "0002.png"]
    assert len({dataset.fingerprint() for dataset in found}) == 1


def test_masks_of_onetrainer_are_no_pictures_however_they_come(tmp_path: Path) -> None:
    """Masks beside their picture are counted; a mask without one is named.

    It may be a picture that has such a name by accident.
    """
    told = "OneTrainer masks are skipped and not trained as images:"
    plain = {
        "a.jpg": make_picture(BLUE, kind="JPEG"),
        "a-masklabel.png": PNG,
        "a.txt": "sky",
        "b.png": PNG,
        "b-condlabel.PNG": PNG,
        "c-masklabel.png": PNG,
    }
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in plain.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    classed = {f"3_sky/{name}": data for name, data in plain.items()}
    toml = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "3_sky"\n'
    ways = {
        "zip": [write_zip(tmp_path, plain, "plain.zip")],
        "folder": [folder],
        "loose": sorted(folder.iterdir()),
        "class": [write_zip(tmp_path, classed, "classed.zip")],
        "toml": [write_zip(tmp_path, {**classed, "set.toml": toml}, "toml.zip")],
    }
    for way, sources in ways.items():
        found = import_dataset(sources, tmp_path / f"from {way}")
        assert [s.name.removeprefix("3_sky/") for s in found.samples] == ["a.jpg", "b.png"], way
        place = "3_sky/" if way in ("class", "toml") else ""
        assert f"{told} 2 files, such as '{place}a-masklabel.png'." in found.notes, way
        assert list_reasons(found) == {
            f"{place}c-masklabel.png": "it is a mask, but not of a training image"
        }, way
    one = import_dataset(
        [write_zip(tmp_path, {"a.png": PNG, "a-masklabel.png": PNG})], tmp_path / "one", regularisation=True
    )
    assert (len(one.samples), one.notes) == (1, (f"{told} 'a-masklabel.png'.",))
    with pytest.raises(
        UserError,
        match=r"none of the files can be used; 'c-masklabel\.png': it is a mask, but not of a training image",
    ):
        import_dataset([folder / "c-masklabel.png"], tmp_path / "none")


def test_folders_inside_are_kept_in_names_only(import_zip: ImportZip) -> None:
    found = import_zip({"my set/one/a.png": PNG, "my set/two/a.png": PNG, "my set/one/a.txt": "first"})
    assert [(s.name, s.caption, s.group, s.repeats) for s in found.samples] == [
        ("my set/one/a.png", "first", "one", 1),
        ("my set/two/a.png", "", "two", 1),
    ]


def test_regularisation_is_the_callers_word(import_zip: ImportZip) -> None:
    assert import_zip({"a.png": PNG}, regularisation=True).samples[0].regularisation


def test_what_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^dataset: away\.zip does not exist\.$"):
        import_dataset([tmp_path / "away.zip"], tmp_path / "into")
    with pytest.raises(UserError, match=r"^dataset: none of the files can be used; there is no image\.$"):
        import_dataset([], tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_many_pictures_and_many_pixels_are_refused(
    import_zip: ImportZip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DATASET_PICTURES", 1)
    with pytest.raises(UserError, match=r"^dataset: 2 images are too many; the limit is 1\.$"):
        import_zip({"a.png": PNG, "b.png": PNG})
    monkeypatch.setattr(limits, "DATASET_PICTURES", 2)
    monkeypatch.setattr(limits, "DATASET_PIXELS", 3000)
    with pytest.raises(
        UserError,
        match=r"^dataset: the images have too many pixels; the limit is 3e-06 gigapixels in total\.$",
    ):
        import_zip({"a.png": PNG, "b.png": PNG})
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize(
    ("data", "caption", "says"),
    [
        (b"1girl, smile\n", "1girl, smile", None),
        ("絵, 笑顔".encode(), "絵, 笑顔", None),
        ("\ufeff絵".encode(), "絵", None),
        ("\ufeff絵".encode("utf-16-le"), "絵", None),
        ("\ufeff絵".encode("utf-16-be"), "絵", None),
        (
            "絵, 笑顔".encode("cp932"),
            "絵, 笑顔",
            "The caption is not UTF-8 and was read as Shift JIS: 'a.png'.",
        ),
        (b"", "", None),
        (b" one \r\n\r\n two\x00\x1b ", "one\ntwo", None),
        (b"<script>--- !!python/object [x](y)", "<script>--- !!python/object [x](y)", None),
    ],
)
def test_case_09_captions_are_read_in_any_usual_encoding(
    import_zip: ImportZip, data: bytes, caption: str, says: str | None
) -> None:
    found = import_zip({"a.png": PNG, "a.txt": data})
    assert (found.samples[0].caption, found.skipped, found.notes) == (caption, (), (says,) if says else ())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xff\x81", "its text is not UTF-8, UTF-16 or Shift JIS"),
        (b"\xff\xfea", "its text is not UTF-8, UTF-16 or Shift JIS"),
        (b"a" * 10_001, "it has 10,001 characters; the limit for a caption is 10,000"),
        (b"a" * 100_000, "it has 100,000 bytes; the limit is 40,003"),
    ],
)
def test_case_09_a_caption_that_cannot_be_used_is_named_and_the_picture_stays(
    import_zip: ImportZip, data: bytes, reason: str
) -> None:
    found = import_zip(
        {"a.png": PNG, "a.txt": data, **{f"noise{i}.bin": random.randbytes(1000) for i in range(2)}}
    )
    assert (found.samples[0].caption, list_reasons(found)["a.txt"]) == ("", reason)


def test_case_09_caption_files_of_both_kinds_are_read_and_said(import_zip: ImportZip) -> None:
    found = import_zip({"a.png": PNG, "a.caption": "old", "b.png": PNG, "b.TXT": "new", "b.caption": "old"})
    assert [sample.caption for sample in found.samples] == ["old", "new"]
    assert found.notes == (
        "The caption is read from a .caption file: 'a.png'.",
        "Both .txt and .caption exist; the .txt is used: 'b.png'.",
    )


def test_a_dataset_goes_out_as_kohya_reads_it_and_comes_back(import_zip: ImportZip, tmp_path: Path) -> None:
    found = import_zip({"a.png": PNG, "a.txt": "絵, smile", "b.png": make_picture(BLUE)})
    archive = export_zip(found, tmp_path / "out.zip")
    with zipfile.ZipFile(archive) as packed:
        assert packed.namelist() == ["0001.png", "0001.txt", "0002.png"]
        assert packed.read("0001.txt").decode() == "絵, smile"
    assert import_dataset([archive], tmp_path / "back").fingerprint() == found.fingerprint()
