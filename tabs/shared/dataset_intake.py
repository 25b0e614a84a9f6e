"""Import the pictures of a person into a folder of their own, and caption them with a tagger."""

import os
from pathlib import Path
from typing import Any

from core.dataset import dataset as datasets
from core.dataset.dataset import Dataset
from core.dataset.intake import import_dataset
from core.dataset.tagging import tag_dataset
from core.models import bases, tools
from core.models.tagger import Tagger
from core.schema.errors import UserError
from tabs.server.page_files import create_output_folder


def open_dataset(folder: str | None) -> Dataset:
    """Load the dataset of a folder. Raises `UserError` if no images were added yet."""
    if not folder:
        raise UserError("dataset", "add images first.")
    found = datasets.load_dataset(Path(folder))
    os.utime(folder)  # in use now: the cleanup goes by this time
    return found


def import_pictures(files: list[Path], regularisation: list[Path]) -> Dataset:
    """Import pictures and regularisation pictures as one dataset in a folder of its own.

    Raises `UserError` if they cannot be imported.
    """
    with create_output_folder() as work:
        found = import_dataset(files, work / "data")
        if regularisation:
            found = datasets.merge_datasets(
                found, import_dataset(regularisation, work / "regularisation", regularisation=True)
            )
        datasets.save_dataset(found)
        return found


def caption_dataset(dataset: Dataset, model: str, **options: Any) -> Dataset:
    """Return the dataset with captions by the model's tagger; `options` are those of `tag_dataset`.

    Raises `UserError` if the model has no tagger.
    """
    return tag_dataset(dataset, Tagger(tools.fetch_tool("tagger", find_tagger(model))), **options)


def find_tagger(model: str) -> str:
    """Return the name of a model's tagger. Raises `UserError` if it has none."""
    if (name := bases.find_model(model).tagger) is None:
        raise UserError("model", f"no tagger is available for {model}; write the captions yourself.")
    return name
