"""The Train tab's captions while a tool works on them."""

from pathlib import Path

import gradio as gr
import pytest

from core.dataset import dataset as datasets
from core.dataset.dataset import Dataset
from tabs.train import captions
from tests.train.parts import make_dataset


def test_a_caption_that_is_written_while_the_tagger_works_stays(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "data", ("", "", "there before")).folder
    files = [sample.file for sample in datasets.load_dataset(folder).samples]

    def tag(found: Dataset) -> Dataset:
        datasets.save_dataset(datasets.replace_captions(datasets.load_dataset(folder), {files[0]: "by hand"}))
        return datasets.replace_captions(found, dict.fromkeys(files[:2], "by the tagger"))

    answer = captions._change_captions(str(folder), "", tag)
    assert [sample.caption for sample in datasets.load_dataset(folder).samples] == [
        "by hand",
        "by the tagger",
        "there before",
    ]
    assert answer["changed_captions"].startswith("Captions changed: 1.")


def test_captions_that_were_swept_away_are_a_sentence(tmp_path: Path) -> None:
    found = make_dataset(tmp_path / "data", ("",))
    for file in found.folder.iterdir():
        file.unlink()
    found.folder.rmdir()
    with pytest.raises(gr.Error, match=r"dataset: data contains no readable dataset\.json"):
        captions._change_captions(str(found.folder), "", lambda found: found)
