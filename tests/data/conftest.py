"""What the tests of datasets share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.data.dataset import Dataset
from core.data.intake import imported
from tests.data.parts import zipped


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., Dataset]:
    """Import a zip with these files into `tmp_path / "into"`."""

    def taken(files: object, **how: bool) -> Dataset:
        return imported([zipped(tmp_path, files)], tmp_path / "into", **how)  # type: ignore[arg-type]

    return taken
