"""A dataset is saved whole, and its fingerprint changes with anything that a training would see."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.dataset.caption_variation import CaptionVariation
from core.dataset.dataset import (
    MANIFEST,
    Dataset,
    Sample,
    SkippedFile,
    clean_name,
    load_dataset,
    replace_captions,
    save_dataset,
)
from core.schema.errors import UserError
from tests.dataset.parts import BLUE, PNG, make_picture


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    for i, data in enumerate((PNG, make_picture(BLUE)), 1):
        (tmp_path / f"{i:04}.png").write_bytes(data)
    first = Sample(
        file="0001.png",
        name="絵.png",
        caption="1girl",
        width=40,
        height=48,
        repeats=10,
        wording=CaptionVariation(shuffle=True),
        flip=False,
        group="10_a",
    )
    second = Sample(file="0002.png", name="b.png", width=40, height=48, regularisation=True, group="1_b")
    skipped = (SkippedFile(name="c.txt", reason="it is a link"),)
    return Dataset(
        folder=tmp_path,
        samples=(first, second),
        skipped=skipped,
        notes=("Of 2.",),
        settings={"resolution": 512, "upscale": False},
    )


def test_what_is_saved_is_loaded(dataset: Dataset) -> None:
    save_dataset(dataset)
    assert load_dataset(dataset.folder) == dataset
    save_dataset(replace(dataset, notes=()))
    assert load_dataset(dataset.folder) == replace(dataset, notes=())
    assert sorted(file.name for file in dataset.folder.iterdir()) == ["0001.png", "0002.png", MANIFEST]


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"samples": [{}]}', '{"samples": [], "notes": []}'])
def test_a_folder_without_a_dataset_is_a_sentence(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=r"^dataset: .* contains no readable dataset\.json"):
        load_dataset(tmp_path)


def test_the_fingerprint_is_of_what_is_seen_not_of_names(dataset: Dataset, tmp_path: Path) -> None:
    first, second = dataset.samples
    same = replace(dataset, samples=(replace(first, name="x", group="y"), second), skipped=(), notes=())
    assert same.fingerprint() == dataset.fingerprint()
    others = [
        *(
            replace(dataset, samples=(replace(first, **change), second))
            for change in ({"caption": "1boy"}, {"repeats": 9}, {"wording": None}, {"flip": None})
        ),
        replace(dataset, samples=(second, first)),
        replace(dataset, settings={"resolution": 1024, "upscale": False}),
    ]
    found = {other.fingerprint() for other in [dataset, *others]}
    (tmp_path / "0002.png").write_bytes(PNG)
    assert len({*found, dataset.fingerprint()}) == len(others) + 2


def test_captions_are_replaced_by_file(dataset: Dataset) -> None:
    changed = replace_captions(dataset, {"0002.png": " sky \x00\n\n cloud"})
    assert [sample.caption for sample in changed.samples] == ["1girl", "sky\ncloud"]
    with pytest.raises(UserError, match=r"^captions: '\.\./0001\.png' is not one of the 2 images"):
        replace_captions(dataset, {"../0001.png": "x"})
    with pytest.raises(UserError, match=r"^caption: 10,001 characters are too many"):
        replace_captions(dataset, {"0001.png": "x" * 10_001})


def test_records_hold_plain_json_and_no_path(dataset: Dataset) -> None:
    save_dataset(dataset)
    assert str(dataset.folder) not in (text := (dataset.folder / MANIFEST).read_text(encoding="utf-8"))
    assert json.loads(text)["samples"][0]["name"] == "絵.png"
    assert clean_name("a\n\x07b " + "c" * 200).startswith("…c")
