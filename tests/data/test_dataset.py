"""A dataset is kept whole, and its fingerprint tells whatever a training would see."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.data.dataset import RECORDS, Dataset, Sample, Skipped, load, save, shown, with_captions
from core.data.words import Wording
from core.types import UserError
from tests.data.parts import BLUE, PNG, picture


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    for i, data in enumerate((PNG, picture(BLUE)), 1):
        (tmp_path / f"{i:04}.png").write_bytes(data)
    first = Sample(file="0001.png", name="絵.png", caption="1girl", width=40, height=48, repeats=10, wording=Wording(shuffle=True), flip=False, group="10_a")
    second = Sample(file="0002.png", name="b.png", width=40, height=48, regularisation=True, group="1_b")
    skipped = (Skipped(name="c.txt", reason="it is a link"),)
    return Dataset(folder=tmp_path, samples=(first, second), skipped=skipped, notes=("Of 2.",), settings={"resolution": 512, "upscale": False})


def test_what_is_saved_is_loaded(dataset: Dataset) -> None:
    save(dataset)
    assert load(dataset.folder) == dataset
    save(replace(dataset, notes=()))
    assert load(dataset.folder) == replace(dataset, notes=())
    assert sorted(file.name for file in dataset.folder.iterdir()) == ["0001.png", "0002.png", RECORDS]


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"samples": [{}]}', '{"samples": [], "notes": []}'])
def test_a_folder_without_a_dataset_is_a_sentence(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / RECORDS).write_text(text)
    with pytest.raises(UserError, match=r"^dataset: .* holds no dataset\.json that can be read"):
        load(tmp_path)


def test_the_fingerprint_is_of_what_is_seen_not_of_names(dataset: Dataset, tmp_path: Path) -> None:
    first, second = dataset.samples
    same = replace(dataset, samples=(replace(first, name="x", group="y"), second), skipped=(), notes=())
    assert same.fingerprint() == dataset.fingerprint()
    others = [
        *(replace(dataset, samples=(replace(first, **change), second)) for change in ({"caption": "1boy"}, {"repeats": 9}, {"wording": None}, {"flip": None})),
        replace(dataset, samples=(second, first)),
        replace(dataset, settings={"resolution": 1024, "upscale": False}),
    ]
    found = {other.fingerprint() for other in [dataset, *others]}
    (tmp_path / "0002.png").write_bytes(PNG)
    assert len({*found, dataset.fingerprint()}) == len(others) + 2


def test_captions_are_replaced_by_file(dataset: Dataset) -> None:
    changed = with_captions(dataset, {"0002.png": " sky \x00\n\n cloud"})
    assert [sample.caption for sample in changed.samples] == ["1girl", "sky\ncloud"]
    with pytest.raises(UserError, match=r"^captions: '\.\./0001\.png' is not one of the 2 pictures"):
        with_captions(dataset, {"../0001.png": "x"})
    with pytest.raises(UserError, match=r"^caption: 10,001 characters are too many"):
        with_captions(dataset, {"0001.png": "x" * 10_001})


def test_records_hold_plain_json_and_no_path(dataset: Dataset) -> None:
    save(dataset)
    assert str(dataset.folder) not in (text := (dataset.folder / RECORDS).read_text(encoding="utf-8"))
    assert json.loads(text)["samples"][0]["name"] == "絵.png"
    assert shown("a\n\x07b " + "c" * 200).startswith("…c")
