"""What a run will take: told by a step that anybody may ask for and that nobody can fill the machine with."""

from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from core import gpu, models
from core.data.dataset import Dataset
from core.device import on_zero_gpu
from core.train import estimate, runs
from core.train.run import Run
from tabs import expected
from tests.train.parts import dataset


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    gpu.lane(models.load, "nano")
    return dataset(tmp_path / "data", captions=("1girl",))


def settled(data: Dataset, **overrides: object) -> Run:
    return runs.settled(data, "nano-quick", trigger="flow", overrides={"bucket_step": 64, "least_side": 64, "most_side": 2048, **overrides})[0]


def measured(run: Run, data: Dataset) -> estimate.Pace | None:
    return gpu.lane(estimate.pace, models.current(), models.find("nano"), run.settings, data)


def test_what_is_measured_is_bounded_and_said_to_be_scaled(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = settled(data, batch=64, resolution=2048)
    assert estimate.batches(models.find("nano"), huge.settings, data) == ((64, 2048, 2048), (1, 512, 512))
    run = settled(data, batch=4, resolution=128)
    whole = measured(run, data)
    monkeypatch.setattr(estimate, "LEAST_PIXELS", 1)
    part, smaller = measured(run, data), measured(settled(data, batch=4, resolution=256), data)
    assert whole is not None
    assert part is not None
    assert smaller is not None
    assert (part.batch, part.measured) == (whole.measured, (1, 128, 128))
    assert part.memory == pytest.approx(whole.memory, rel=0.1), "a batch takes as many times the memory as it has pictures"
    lines = [estimate.estimate(run, data, pace).line() for pace in (whole, part, smaller)]
    assert [line.split()[0] for line in lines] == ["about", "about", "at"]
    assert [line.partition("; ")[2] for line in lines] == ["", *["scaled from 1 picture of 128 x 128"] * 2]


@pytest.mark.skipif(on_zero_gpu(), reason="on a lent GPU its time is not known before")
def test_it_is_measured_once_for_one_visitor_at_a_time(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected, "_paces", {})
    run = settled(data, batch=1, resolution=128)
    with expected._measuring:
        assert expected._taken(run, data) is None, "a second visitor measures beside the first"
    told = expected._taken(run, data)
    assert told is not None
    with gpu._job:
        assert expected._taken(run, data) == told, "what is known is told while a job has the model"
        assert expected._taken(settled(data, batch=2, resolution=128), data) is None


def test_where_the_memory_does_not_suffice_it_is_not_known(data: Dataset) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = models.current().unet.conv_in.register_forward_pre_hook(full)
    try:
        assert measured(settled(data, resolution=128), data) is None
    finally:
        hook.remove()


def test_what_disturbs_a_measurement_does_not_count(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = accumulate([0, 5.0, 0, 0.9, 0, 0.08, 0, 0.3])  # seconds of the first, which warms up, then of three: one met with something else
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = measured(settled(data, batch=4, resolution=128), data)
    assert found is not None
    assert found.seconds == pytest.approx(0.08)
    assert next(clock, None) is None
