"""Training where a GPU is lent by the call: a slice for each press, the same weights in the end, and nothing after Stop."""

from functools import partial
from pathlib import Path

import pytest

from core import gpu
from core.train import runs
from tabs import train, training
from tests.train.parts import assert_same, dataset, followed, set_up


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the runs of a test lie, and that their GPU is lent."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    for tab in (train, training):
        monkeypatch.setattr(tab, "on_zero_gpu", lambda: True)


def test_case_22_slices_of_a_lent_gpu_end_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no process can have the GPU, a run goes on by a slice for each press, as `/train_resume` and the page's button ask for it."""
    data = dataset(tmp_path / "data")
    straight, sliced = set_up(data, steps=12, save_every=100), set_up(data, steps=12, save_every=100)
    followed(straight)
    monkeypatch.setattr(training.gpu, "lesson", partial(gpu.lesson, seconds=0))  # a step a slice
    presses = 0
    while runs.status(sliced).state != "done":
        presses += 1
        told = training.train_resume(sliced.name)
        assert told["state"] in ("stopped", "done"), told
    assert presses > 3
    assert_same(straight, sliced)


def test_a_slice_that_was_stopped_while_it_waited_for_its_turn_takes_no_step(tmp_path: Path) -> None:
    run = set_up(dataset(tmp_path / "data"), steps=3, save_every=100)
    train._resumed(run.name)
    run.ask_to_stop()
    assert not list(train._lent(run.name))
    assert run.last() == 0
    train._resumed(run.name)
    list(train._lent(run.name))
    assert runs.status(run).state == "done"
