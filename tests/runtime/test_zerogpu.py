"""A reused ZeroGPU worker gives everybody a clean model; every refusal of a job is one sentence.

Numbers are trust.md's.
"""

import inspect
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from core.generate import pipeline as generation
from core.generate.probe import Probe
from core.generate.stages import denoise
from core.lora import apply as lora
from core.models import bases
from core.runtime import gpu
from core.schema.events import Event, Failed, ModelChange, Picture, Step
from core.schema.records import read_form
from core.schema.types import Cell, Detail, Hires, LoraUse, Request
from core.sweep.plan import SweepForm, plan_sweep
from core.sweep.study import SweepStudy
from core.system import shutdown
from core.train import runs
from core.transfer.plan import TransferForm
from core.transfer.plan import plan_transfer as crossing
from core.transfer.study import TransferStudy as Crossing
from tests import zero
from tests.model import PLAIN_REQUEST
from tests.sweep.conftest import EXAMPLE
from tests.train.parts import assert_same, make_dataset, prepare_run, run_training
from tests.transfer.conftest import build_values

LORA_REQUEST = replace(
    PLAIN_REQUEST,
    width=128,
    height=128,
    loras=(LoraUse(path=str(EXAMPLE), strength=1.5),),
    hires=Hires(upscaler="Latent", factor=1.25, steps=2),
    detail=Detail(detector="nano face", confidence=0.05, largest=1, steps=4),
)


STOP_CONDITIONS: dict[str, Callable[[Event], bool]] = {
    "LoRA loaded": lambda _: True,
    "decode": lambda event: isinstance(event, Step) and event.step == event.steps,
    "between pictures": lambda event: isinstance(event, Picture),
    **{
        stage: partial(lambda stage, event: isinstance(event, Step) and event.stage == stage, stage)
        for stage in ("base", "hires", "detail")
    },
}
"""Stage -> the event after which a person gives the job up."""


def make_cells(*requests: Request) -> list[Cell]:
    return [Cell(label="", request=request) for request in requests]


def get_pixels(events: list[Event]) -> np.ndarray:
    (picture,) = [event for event in events if isinstance(event, Picture)]
    return np.asarray(picture.image)


def get_failure_message(events: list[Event]) -> str:
    assert isinstance(events[-1], Failed), events[-1]
    assert events[-1].gpu_unavailable
    return events[-1].message


# --- 15: a reused worker --------------------------------------------------------------------------


def set_trap_in_stages(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a job fail once at the stage, and in the way, that the file `trap` names."""
    report_steps, run_stages = generation._report_steps, generation._run_stages
    decode, set_strengths = denoise.decode, lora.AppliedLoras.set_strengths

    def spring_trap(stage: str) -> None:
        at, how = trap.read_text().split("/") if trap.exists() else ("", "")
        if at == stage:
            trap.unlink()
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise torch.OutOfMemoryError if how == "memory" else RuntimeError

    def report_steps_with_trap(job, states, stage, requests):
        steps = report_steps(job, states, stage, requests)
        while True:
            try:
                event = next(steps)
            except StopIteration as done:
                return done.value
            spring_trap(stage)
            yield event

    def run_stages_with_trap(job, requests):
        if requests[0].seed == 8:
            spring_trap("between pictures")
        return (yield from run_stages(job, requests))

    monkeypatch.setattr(generation, "_report_steps", report_steps_with_trap)
    monkeypatch.setattr(generation, "_run_stages", run_stages_with_trap)
    monkeypatch.setattr(generation, "decode", lambda *of: (spring_trap("decode"), decode(*of))[1])
    monkeypatch.setattr(
        lora.AppliedLoras, "set_strengths", lambda *of: (set_strengths(*of), spring_trap("LoRA loaded"))[0]
    )


def test_case_15_a_job_that_ends_anywhere_leaves_nothing_to_the_next(
    zero_gpu: zero.ZeroScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B has a clean run's picture after A's job ended at any stage.

    A's job runs out of memory, or its process dies, or A gives it up; B runs in the same worker if
    that is alive.
    """
    trap = tmp_path / "trap"
    set_trap_in_stages(trap, monkeypatch)
    clean, first = get_pixels(list(gpu.generate_on_gpu(make_cells(PLAIN_REQUEST)))), dict(zero_gpu.workers)
    assert first
    for stage in ("LoRA loaded", "base", "decode", "hires", "detail", "between pictures"):
        for how in ("memory", "mistake", "dies", "stops"):
            second = replace(LORA_REQUEST, seed=8, loras=(replace(LORA_REQUEST.loras[0], strength=1.0),))
            job_of_a = make_cells(LORA_REQUEST, *[second][: stage == "between pictures"])
            before = dict(zero_gpu.workers)
            if how == "stops":
                job = gpu.generate_on_gpu(job_of_a)
                next(event for event in job if STOP_CONDITIONS[stage](event))
                job.close()  # type: ignore[attr-defined]
            else:
                trap.write_text(f"{stage}/{how}")
                last = list(gpu.generate_on_gpu(job_of_a))[-1]
                assert not trap.exists(), f"the job never came to: {stage}; it ended with {last}"
                # A job that runs out of memory is tried once more, and says so.
                spared = (
                    how == "memory" and isinstance(last, Picture) and generation.LOW_MEMORY_NOTE in last.notes
                )
                assert isinstance(last, Failed) or spared, f"{stage}, {how}: {last}"
            assert (zero_gpu.workers == before) == (how in ("memory", "stops")), (
                f"{stage}, {how}: the worker was to be {'kept' if how == 'memory' else 'gone'}"
            )
            assert (get_pixels(list(gpu.generate_on_gpu(make_cells(PLAIN_REQUEST)))) == clean).all(), (
                f"{stage}, {how}: the next picture is not that of a clean run"
            )


def test_case_15_a_lora_that_was_left_on_is_found(
    zero_gpu: zero.ZeroScheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = inspect.unwrap(gpu._generate_on_lent_gpu)
    bases._pipelines.clear()  # opened here: a test before may have it with parts of another model
    clean = get_pixels(list(job(make_cells(PLAIN_REQUEST))))
    with monkeypatch.context() as patch:
        patch.setattr(lora.AppliedLoras, "restore_weights", lambda _: None)
        with caplog.at_level(logging.ERROR):
            assert (
                get_pixels(list(job(make_cells(replace(PLAIN_REQUEST, loras=LORA_REQUEST.loras))))) != clean
            ).any()
    assert "nano was not as it was loaded: unet." in caplog.text
    assert (get_pixels(list(job(make_cells(PLAIN_REQUEST)))) == clean).all()
    caplog.clear()
    hook = bases.load_model("nano").vae.decoder.conv_in.register_forward_hook(lambda *_: None)
    bases.verify_weights()
    assert "the layer vae.decoder.conv_in is ('Conv2d', 1) and was ('Conv2d', 0)" in caplog.text
    hook.remove()


# --- 21: what ZeroGPU has against a job -----------------------------------------------------------


def test_case_21_overrun(zero_gpu: zero.ZeroScheduler) -> None:
    zero_gpu.second_length = 0.05
    said = get_failure_message(
        list(gpu.generate_on_gpu(make_cells(replace(PLAIN_REQUEST, steps=150, width=256, height=256))))
    )
    assert said == (
        "The GPU was taken away before the job was done: its time was up, or its process died. "
        "Nothing was finished. Press Generate again."
    )


def test_case_21_quota(zero_gpu: zero.ZeroScheduler) -> None:
    zero_gpu.quota_left = 10
    said = get_failure_message(list(gpu.generate_on_gpu(make_cells(PLAIN_REQUEST))))
    assert said == (
        "Your ZeroGPU quota is too small: 16 s are needed and 10 s are left: try again in 1:00:00. "
        "Nothing was finished. Press Generate again."
    )


def test_case_21_illegal_duration_is_halved_once(zero_gpu: zero.ZeroScheduler) -> None:
    zero_gpu.max_duration = 70
    other = make_cells(replace(PLAIN_REQUEST, model="nano-cel"))
    assert get_pixels(list(gpu.generate_on_gpu(other))).shape == (64, 64, 3)
    assert zero_gpu.requested_seconds == [76, 60]
    zero_gpu.max_duration = 10
    said = get_failure_message(list(gpu.generate_on_gpu(other)))
    assert (
        said == "ZeroGPU does not give 60 s of GPU time at once. Nothing was finished. Press Generate again."
    )


def test_case_21_queue_timeout_and_nobody_to_lend_to(zero_gpu: zero.ZeroScheduler) -> None:
    zero_gpu.has_free_gpu = False
    assert get_failure_message(list(gpu.generate_on_gpu(make_cells(PLAIN_REQUEST)))).startswith(
        "No GPU was free within 60 s: try again later. Nothing was finished"
    )
    zero_gpu.reset_limits()
    events: list[Event] = []
    # A thread of its own has no request.
    thread = threading.Thread(target=lambda: events.extend(gpu.generate_on_gpu(make_cells(PLAIN_REQUEST))))
    thread.start()
    thread.join()
    assert get_failure_message(events).startswith("This Space has reached its ZeroGPU limit")


def test_case_21_what_cannot_be_pickled_and_a_mistake(
    zero_gpu: zero.ZeroScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(label="", request=PLAIN_REQUEST)
    object.__setattr__(cell, "label", threading.Lock())
    said = get_failure_message(list(gpu.generate_on_gpu([cell])))
    assert said.startswith(
        "The job could not be passed to the GPU's process (PicklingError). This is a bug in Sweetspot."
    )
    monkeypatch.setattr(generation, "decode", lambda *_: {}["nothing"])
    assert get_failure_message(list(gpu.generate_on_gpu(make_cells(PLAIN_REQUEST)))).startswith(
        "The job failed on the GPU (KeyError). This is a bug in Sweetspot."
    )


def test_case_21_death_of_the_worker_names_what_was_finished(zero_gpu: zero.ZeroScheduler) -> None:
    events: list[Event] = []
    for event in gpu.generate_on_gpu(
        make_cells(PLAIN_REQUEST, replace(PLAIN_REQUEST, width=192, height=128, steps=20))
    ):
        events.append(event)
        if isinstance(event, Picture):
            zero_gpu.retire_workers()
    assert get_failure_message(events).endswith("Finished images are kept, 1 of 2. Press Generate again.")
    assert get_pixels(list(gpu.generate_on_gpu(make_cells(PLAIN_REQUEST)))).any(), "the next job has a worker"


def test_case_21_a_sweep_goes_on_from_there(
    zero_gpu: zero.ZeroScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = time.time_ns() % 2**31  # no other test has made these
    values = {
        "lora": str(EXAMPLE),
        "seeds": f"{new}, {new + 1}",
        "strengths": "0, 2",
        "prompts": "1girl, red hair",
    }
    stages = generation._run_stages

    def kill_worker(job, requests):
        # Its second batch; killed from inside, since a worker runs ahead of those who watch it.
        if requests[0].loras:
            os.kill(os.getpid(), signal.SIGKILL)
        return (yield from stages(job, requests))

    with monkeypatch.context() as patch:
        patch.setattr(generation, "_run_stages", kill_worker)
        events = list(SweepStudy(plan_sweep(read_form(SweepForm, values))).run(gpu.generate_on_gpu))
    assert get_failure_message(events).endswith(
        "Finished images are kept, now 2 more of 4. Press the button again to continue."
    )
    again = SweepStudy(plan_sweep(read_form(SweepForm, values)))
    events = list(again.run(gpu.generate_on_gpu))
    assert not [event for event in events if isinstance(event, Failed)]
    assert sum(isinstance(event, Picture) for event in events) == 2
    assert (again.cells_found, again.verdict is not None) == (2, True)


def test_case_21_a_probe_is_one_call_or_one_sentence(zero_gpu: zero.ZeroScheduler) -> None:
    probe = Probe(requests=(replace(LORA_REQUEST, hires=None, detail=None),), changes=(0.03,))
    zero_gpu.has_free_gpu = False
    said = get_failure_message(list(gpu.generate_on_gpu([], probe=probe)))
    assert said.endswith("try again later. Press the button again.")
    zero_gpu.reset_limits()
    events = list(gpu.generate_on_gpu([], probe=probe))
    assert isinstance(events[-1], ModelChange)
    assert len(zero_gpu.requested_seconds) == 2


def test_case_21_a_study_asks_once_for_a_gpu_that_is_not_lent(zero_gpu: zero.ZeroScheduler) -> None:
    zero_gpu.has_free_gpu = False
    study = Crossing(
        crossing(
            read_form(TransferForm, build_values(models=["nano", "nano-paint"], strengths="1", seeds="4, 5"))
        )
    )
    assert not list(study.run(gpu.generate_on_gpu))
    assert len(zero_gpu.requested_seconds) == 1
    assert all("No GPU was free" in (pair.failure or "") for pair in study.pairs.values())


def test_case_21_a_training_goes_on_from_there(
    zero_gpu: zero.ZeroScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(tmp_path / "data")
    straight, lent = (
        prepare_run(data, tmp_path / name, steps=8, save_every=4)[0] for name in ("straight", "lent")
    )
    run_training(straight)
    here = os.getpid()

    def kill_worker() -> None:
        if os.getpid() != here and any(line.get("step") == 6 for line in lent.read_events()):
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(shutdown, "check_shutdown", kill_worker)
        events = list(gpu.train_slice(lent.path))
    assert get_failure_message(events).endswith("The run is saved at step 4. Press Continue to resume.")
    assert runs.read_status(lent).state == "failed"
    assert (
        runs.read_status(lent).error
        == "Its process was killed or ran out of memory. Resume it to continue from step 4."
    )
    zero_gpu.quota_left = 10
    assert "90 s are needed and 10 s are left" in get_failure_message(list(gpu.train_slice(lent.path)))
    zero_gpu.reset_limits()
    assert not [event for event in gpu.train_slice(lent.path) if isinstance(event, Failed)]
    assert runs.read_status(lent).state == "done"
    assert_same(straight, lent)


def test_a_long_job_is_made_in_several_calls(
    zero_gpu: zero.ZeroScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "MAX_CALL_SECONDS", 16)  # a second beside the start
    # Two pictures a call.
    monkeypatch.setattr("core.runtime.zerogpu.SECONDS_PER_MEGAPIXEL_STEP", 0.5 / (3 * 0.064**2))
    asked_for = [replace(PLAIN_REQUEST, seed=seed) for seed in range(5)]
    events = list(gpu.generate_on_gpu(make_cells(*asked_for)))
    pictures = [event for event in events if isinstance(event, Picture)]
    assert zero_gpu.requested_seconds == [16, 16, 16]
    assert [event.index for event in pictures] == [0, 1, 2, 3, 4]
    assert [event.cell.request for event in pictures] == asked_for
    steps = [event for event in events if isinstance(event, Step)]
    assert (steps[-1].pictures_done, steps[-1].pictures) == (4, 5)
    assert steps[0].seconds_left > 1.5 > steps[-1].seconds_left
