"""nano in both layouts, a table of models to add to, and a way to be refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline

from core import models, opening, presets
from core.types import Model, UserError
from tests.models.parts import CPU, NANO, Table, model, picture
from tests.single_file import write


@pytest.fixture(scope="module")
def nano() -> StableDiffusionXLPipeline:
    """The embedded model as diffusers opens it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(NANO, dtype=CPU.dtype, use_safetensors=True, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in one file, in the original layout."""
    file = tmp_path_factory.mktemp("checkpoint") / "nano.safetensors"
    write(NANO, file)
    return file


@pytest.fixture
def table(nano: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table of base models to add to, on a machine without a GPU; `nano` is in it and loaded."""
    table = {"nano": model("nano", NANO)}
    monkeypatch.setattr(presets, "models", lambda: table)
    monkeypatch.setattr(models, "this_machine", lambda: CPU)
    monkeypatch.setattr(opening, "this_machine", lambda: CPU)
    monkeypatch.setattr(models, "_loaded", {"nano": nano})
    monkeypatch.setattr(models, "_digests", {})
    return table


@pytest.fixture(scope="module")
def drawn(nano: StableDiffusionXLPipeline) -> np.ndarray:
    """What the embedded model draws."""
    return picture(nano)


@pytest.fixture
def refused(table: Table, nano: StableDiffusionXLPipeline, drawn: np.ndarray) -> Callable[[Model], str]:
    """`refused(model)`: the sentence it is refused with, once it is sure that the loaded model stays as it was."""

    def sentence(wrong: Model) -> str:
        table.setdefault(wrong.name, wrong)
        with pytest.raises(UserError) as error:
            models.load(wrong.name)
        said = str(error.value)
        assert said.startswith("model: ")
        assert said.endswith("; nano stays loaded.")
        assert "\n" not in said
        assert len(said) < 300, f"too long to be read: {said}"
        assert models.loaded() == "nano"
        assert models.load("nano") is nano
        assert np.array_equal(picture(nano), drawn), "the loaded model draws another picture than before"
        return said

    return sentence
