"""The stand-in for ZeroGPU (tests/zero.py) beside what was read of the real one."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import pytest
import spaces

from core import gpu, lora, models
from core.types import UserError
from tests import zero
from tests.model import PLAIN
from tests.sweep.conftest import EXAMPLE
from tests.test_zero import cells, pixels


def lent(task: Callable, **how) -> Callable:
    return spaces.GPU(**how)(task)


def test_a_worker_is_kept_for_its_function(lender: zero.Zero) -> None:
    def pid():
        yield os.getpid()

    one, other = lent(pid), lent(lambda: os.getpid())
    first = next(iter(one()))
    assert [*one(), other(), other()] == [first, (second := other()), second]
    assert len({first, second, os.getpid()}) == 3


def test_errors_keep_their_class_name_only(lender: zero.Zero) -> None:
    def fails(error: Exception) -> None:
        raise error

    task = lent(fails)
    with pytest.raises(gr.Error, match="UserError") as caught:
        task(UserError("width: 7 is not allowed"))
    assert (caught.value.title, caught.value.message) == ("ZeroGPU worker error", "UserError")
    with pytest.raises(gr.Error, match="as it is"):
        task(gr.Error("as it is"))


def test_seconds_are_whole_and_those_of_the_arguments(lender: zero.Zero) -> None:
    lent(lambda many: many, duration=lambda many: many)(119.9)
    lent(lambda: None)()
    assert lender.asked == [119, 60]


def test_a_job_that_is_given_up_ends_behind_its_next_word(lender: zero.Zero, tmp_path: Path) -> None:
    def goes_on():
        try:
            for i in range(9):
                (tmp_path / "said").write_text(str(i))
                yield i
                time.sleep(0.2)
        finally:
            (tmp_path / "ended").touch()

    job = lent(goes_on)()
    next(job)
    job.close()
    assert (tmp_path / "ended").exists()
    assert (tmp_path / "said").read_text() == "1"


def test_the_page_has_no_weights(lender: zero.Zero) -> None:
    pipeline = models.load("nano")
    zero.pack()
    try:
        with pytest.raises(Exception, match=r"Cannot apply function .* on disk-offloaded Tensor"):
            pipeline.unet.conv_in.weight.square()
        assert models.tokens("1girl, smile") > 0
        assert gpu.inspected(lora.file(str(EXAMPLE)))["why"].startswith("The GPU is lent by the job")
        assert pixels(list(gpu.run(cells(PLAIN)))).any(), "a worker has them"
    finally:
        zero.unpack()
