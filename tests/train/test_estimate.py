"""The estimate of how long a run takes, measured by training steps.

Anybody may ask for it, and nobody can overload the machine with it.
"""

from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from core.dataset.dataset import Dataset
from core.models import bases
from core.runtime import torch_thread
from core.system.device import is_zerogpu
from core.train import estimate, runs
from core.train.trainer.run_record import Run
from tabs.train import estimate as train_estimate
from tests.train.parts import make_dataset


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    torch_thread.run_on_torch_thread(bases.load_model, "nano")
    return make_dataset(tmp_path / "data", captions=("1girl",))


def plan_run(data: Dataset, **overrides: object) -> Run:
    return runs.plan_run(
        data,
        "nano-quick",
        trigger="flow",
        overrides={"bucket_step": 64, "least_side": 64, "most_side": 2048, **overrides},
    )[0]


def measure_pace(run: Run, data: Dataset) -> estimate.Pace | None:
    return torch_thread.run_on_torch_thread(
        estimate.measure_pace, bases.get_current_pipeline(), bases.find_model("nano"), run.settings, data
    )


def test_what_is_measured_is_bounded_and_said_to_be_scaled(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = plan_run(data, batch=64, resolution=2048)
    assert estimate.choose_batch_shapes(bases.find_model("nano"), huge.settings, data) == (
        (64, 2048, 2048),
        (1, 512, 512),
    )
    run = plan_run(data, batch=4, resolution=128)
    whole = measure_pace(run, data)
    monkeypatch.setattr(estimate, "MIN_PIXEL_BUDGET", 1)
    part, smaller = measure_pace(run, data), measure_pace(plan_run(data, batch=4, resolution=256), data)
    assert whole is not None
    assert part is not None
    assert smaller is not None
    assert (part.batch, part.measured_batch) == (whole.measured_batch, (1, 128, 128))
    assert part.memory == pytest.approx(whole.memory, rel=0.1), (
        "a batch takes as many times the memory as it has pictures"
    )
    lines = [estimate.estimate_run(run, data, pace).describe() for pace in (whole, part, smaller)]
    assert [line.split()[0] for line in lines] == ["About", "About", "At"]
    assert [line.partition("; ")[2] for line in lines] == ["", *["scaled from 1 image of 128 x 128"] * 2]


@pytest.mark.skipif(is_zerogpu(), reason="on a lent GPU its time is not known before")
def test_it_is_measured_once_for_one_visitor_at_a_time(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_estimate, "_paces", {})
    run = plan_run(data, batch=1, resolution=128)
    with train_estimate._measure_lock:
        assert train_estimate._try_estimate(run, data) is None, "a second visitor measures beside the first"
    told = train_estimate._try_estimate(run, data)
    assert told is not None
    with torch_thread.model_lock:
        assert train_estimate._try_estimate(run, data) == told, (
            "what is known is told while a job has the model"
        )
        assert train_estimate._try_estimate(plan_run(data, batch=2, resolution=128), data) is None


@pytest.mark.skipif(is_zerogpu(), reason="on a lent GPU its time is not known before")
def test_no_pace_is_measured_beside_a_training_and_kept(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person would read five minutes for a training of one."""
    monkeypatch.setattr(train_estimate, "_paces", {})
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    run = plan_run(data, batch=1, resolution=128)
    with runs.create_run(run, data, runs.RUNS / "other").lock():
        assert train_estimate._try_estimate(run, data) is None
    assert train_estimate._try_estimate(run, data) is not None


def test_where_the_memory_does_not_suffice_it_is_not_known(data: Dataset) -> None:
    def run_out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = bases.get_current_pipeline().unet.conv_in.register_forward_pre_hook(run_out_of_memory)
    try:
        assert measure_pace(plan_run(data, resolution=128), data) is None
    finally:
        hook.remove()


def test_what_disturbs_a_measurement_does_not_count(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # seconds of the first step, which warms up, then of three, of which one was disturbed
    clock = accumulate([0, 5.0, 0, 0.9, 0, 0.08, 0, 0.3])
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = measure_pace(plan_run(data, batch=4, resolution=128), data)
    assert found is not None
    assert found.seconds == pytest.approx(0.08)
    assert next(clock, None) is None
