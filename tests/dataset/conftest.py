"""Fixtures of the dataset tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.dataset.dataset import Dataset
from core.dataset.intake import import_dataset
from tests.dataset.parts import write_zip


@pytest.fixture
def import_zip(tmp_path: Path) -> Callable[..., Dataset]:
    """Import a zip with these files into `tmp_path / "into"`."""

    def import_files(files: object, **how: bool) -> Dataset:
        return import_dataset(
            [write_zip(tmp_path, files)],  # type: ignore[arg-type]
            tmp_path / "into",
            **how,
        )

    return import_files
