"""The stand-in for ZeroGPU (tests/zero.py) behaves as the real one was seen to."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import pytest
import spaces

from core.lora import apply as lora
from core.models import bases
from core.runtime import gpu
from core.schema.errors import UserError
from tests import zero
from tests.model import PLAIN_REQUEST
from tests.runtime.test_zerogpu import get_pixels, make_cells
from tests.sweep.conftest import EXAMPLE


def wrap_for_zerogpu(task: Callable, **options) -> Callable:
    return spaces.GPU(**options)(task)


def test_a_worker_is_kept_for_its_function(zero_gpu: zero.ZeroScheduler) -> None:
    def yield_pid():
        yield os.getpid()

    one, other = wrap_for_zerogpu(yield_pid), wrap_for_zerogpu(lambda: os.getpid())
    first = next(iter(one()))
    assert [*one(), other(), other()] == [first, (second := other()), second]
    assert len({first, second, os.getpid()}) == 3


def test_errors_keep_their_class_name_only(zero_gpu: zero.ZeroScheduler) -> None:
    def fail(error: Exception) -> None:
        raise error

    task = wrap_for_zerogpu(fail)
    with pytest.raises(gr.Error, match="UserError") as caught:
        task(UserError("width", "7 is not valid"))
    assert (caught.value.title, caught.value.message) == ("ZeroGPU worker error", "UserError")
    with pytest.raises(gr.Error, match="as it is"):
        task(gr.Error("as it is"))


def test_seconds_are_whole_and_those_of_the_arguments(zero_gpu: zero.ZeroScheduler) -> None:
    wrap_for_zerogpu(lambda many: many, duration=lambda many: many)(119.9)
    wrap_for_zerogpu(lambda: None)()
    assert zero_gpu.requested_seconds == [119, 60]


def test_a_job_that_is_given_up_ends_behind_its_next_word(
    zero_gpu: zero.ZeroScheduler, tmp_path: Path
) -> None:
    def count_slowly():
        try:
            for i in range(9):
                (tmp_path / "said").write_text(str(i))
                yield i
                time.sleep(0.2)
        finally:
            (tmp_path / "ended").touch()

    job = wrap_for_zerogpu(count_slowly)()
    next(job)
    job.close()
    assert (tmp_path / "ended").exists()
    assert (tmp_path / "said").read_text() == "1"


def test_the_page_has_no_weights(zero_gpu: zero.ZeroScheduler) -> None:
    pipeline = bases.load_model("nano")
    zero.pack_weights()
    try:
        with pytest.raises(Exception, match=r"Cannot apply function .* on disk-offloaded Tensor"):
            pipeline.unet.conv_in.weight.square()
        assert bases.count_prompt_tokens("1girl, smile") > 0
        assert gpu.inspect_with_model(lora.get_lora_file(str(EXAMPLE)))["why"].startswith(
            "The GPU is only available inside a job"
        )
        assert get_pixels(list(gpu.generate_on_gpu(make_cells(PLAIN_REQUEST)))).any(), "a worker has them"
    finally:
        zero.unpack_weights()
