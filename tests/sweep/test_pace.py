"""The time of a sweep that is told before it starts."""

from pathlib import Path

import pytest

from core.sweep import pace
from core.system import paths


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "MEASURED", tmp_path)
    monkeypatch.setattr(pace, "is_space", lambda: False)
    return tmp_path


def test_a_sweep_tells_how_long_the_next_one_takes(folder: Path) -> None:
    assert pace.estimate_seconds("nano", 100.0, 10) is None, "no guess before the first"
    pace.record_pace("nano", 100.0, pictures=20, seconds=40.0)
    assert pace.estimate_seconds("nano", 100.0, 10) == pytest.approx(20)
    assert pace.estimate_seconds("nano", 400.0, 10) == pytest.approx(80), "four times the pixels"
    assert pace.estimate_seconds("other", 100.0, 10) is None


def test_a_few_images_tell_nothing(folder: Path) -> None:
    """Two images and a minute of loading the model would promise an hour."""
    pace.record_pace("nano", 100.0, pictures=2, seconds=60.0)
    assert pace.estimate_seconds("nano", 100.0, 100) is None


@pytest.mark.parametrize("content", ["", "[1]", '{"nano": "fast"}', '{"nano": -1.0}'])
def test_a_damaged_file_is_as_none(folder: Path, content: str) -> None:
    (folder / pace.FILE_NAME).write_text(content)
    assert pace.estimate_seconds("nano", 100.0, 10) is None
    pace.record_pace("nano", 100.0, pictures=20, seconds=40.0)
    assert pace.estimate_seconds("nano", 100.0, 10) == pytest.approx(20)
