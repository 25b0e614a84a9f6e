"""Training on ZeroGPU, where a GPU is lent per call.

A slice for each press, the same weights in the end, and nothing after Stop.
"""

from functools import partial
from pathlib import Path

import pytest

from core.runtime import gpu
from core.train import runs
from tabs.api import train as train_api
from tabs.train import tab as train_tab
from tests.train.parts import assert_same, make_dataset, run_training, set_up_run


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test a folder of runs, and let the Train tab believe that it is on ZeroGPU."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    for tab in (train_tab, train_api):
        monkeypatch.setattr(tab, "is_zerogpu", lambda: True)


def test_case_22_slices_of_a_lent_gpu_end_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no process can keep the GPU, each press trains another slice of the run.

    Both `/train_resume` and the page's button ask for one.
    """
    data = make_dataset(tmp_path / "data")
    straight, sliced = set_up_run(data, steps=12, save_every=100), set_up_run(data, steps=12, save_every=100)
    run_training(straight)
    # one step per slice
    monkeypatch.setattr(train_api.gpu, "train_slice", partial(gpu.train_slice, seconds=0))
    presses = 0
    while runs.read_status(sliced).state != "done":
        presses += 1
        told = train_api.train_resume(sliced.name)
        assert told["state"] in ("stopped", "done"), told
    assert presses > 3
    assert_same(straight, sliced)


def test_a_slice_that_was_stopped_while_it_waited_for_its_turn_takes_no_step(tmp_path: Path) -> None:
    run = set_up_run(make_dataset(tmp_path / "data"), steps=3, save_every=100)
    train_tab._resume_run(run.name)
    run.request_stop()
    assert not list(train_tab._train_slice(run.name))
    assert run.find_last_step() == 0
    train_tab._resume_run(run.name)
    list(train_tab._train_slice(run.name))
    assert runs.read_status(run).state == "done"
