"""nano in both layouts, a table of models to add to, and a check of refusals."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline

from core.models import bases, loader
from core.schema import presets
from core.schema.errors import UserError
from core.schema.types import Model
from tests.models.parts import CPU_MACHINE, NANO, ModelTable, draw_picture, make_model
from tests.single_file import write_checkpoint


@pytest.fixture(scope="module")
def nano() -> StableDiffusionXLPipeline:
    """The embedded model as diffusers opens it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        NANO, dtype=CPU_MACHINE.dtype, use_safetensors=True, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's weights in one file, in the original layout."""
    file = tmp_path_factory.mktemp("checkpoint") / "nano.safetensors"
    write_checkpoint(NANO, file)
    return file


@pytest.fixture
def table(nano: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch) -> ModelTable:
    """A table of base models to add to, on a machine without a GPU; `nano` is in it and loaded."""
    table = {"nano": make_model("nano", NANO)}
    monkeypatch.setattr(presets, "get_models", lambda: table)
    monkeypatch.setattr(bases, "detect_machine", lambda: CPU_MACHINE)
    monkeypatch.setattr(loader, "detect_machine", lambda: CPU_MACHINE)
    monkeypatch.setattr(bases, "_pipelines", {"nano": nano})
    monkeypatch.setattr(bases, "_states", {"nano": bases.fingerprint_model("nano")})
    monkeypatch.setattr(bases, "_part_hashes", {})
    return table


@pytest.fixture(scope="module")
def nano_picture(nano: StableDiffusionXLPipeline) -> np.ndarray:
    """The embedded model's picture."""
    return draw_picture(nano)


@pytest.fixture
def refusal_of(
    table: ModelTable, nano: StableDiffusionXLPipeline, nano_picture: np.ndarray
) -> Callable[[Model], str]:
    """Return the message with which a model is refused.

    Asserts that the loaded model stays as it was.
    """

    def sentence(wrong: Model) -> str:
        table.setdefault(wrong.name, wrong)
        with pytest.raises(UserError) as error:
            bases.load_model(wrong.name)
        said = str(error.value)
        assert said.startswith("model: ")
        assert said.endswith("; nano is still loaded.")
        assert "\n" not in said
        assert len(said) < 300, f"too long to be read: {said}"
        assert bases.get_loaded_name() == "nano"
        assert bases.load_model("nano") is nano
        assert np.array_equal(draw_picture(nano), nano_picture), (
            "the loaded model draws another picture than before"
        )
        return said

    return sentence
