"""ZeroGPU: a worker that is reused gives everybody a clean model, and whatever it has against a job is one sentence. Numbers are trust.md's."""

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

from core import closing, generate, gpu, lora, models
from core.details import Detail
from core.events import Event, Failed, Picture, Step
from core.plan import plan
from core.sweep import Study
from core.train import runs
from core.transfer.plan import plan as crossing
from core.transfer.study import Study as Crossing
from core.types import Cell, Hires, LoraUse, Request
from tests import zero
from tests.model import PLAIN
from tests.sweep.conftest import EXAMPLE
from tests.train.parts import assert_same, dataset, followed, prepared
from tests.transfer.conftest import asked

WORN = replace(
    PLAIN,
    width=128,
    height=128,
    loras=(LoraUse(path=str(EXAMPLE), strength=3.0),),
    hires=Hires(upscaler="Latent", factor=1.25, steps=2),
    detail=Detail(detector="nano face", confidence=0.05, largest=1, steps=4),
)


STOPS: dict[str, Callable[[Event], bool]] = {
    "LoRA loaded": lambda _: True,
    "decode": lambda event: isinstance(event, Step) and event.step == event.steps,
    "between pictures": lambda event: isinstance(event, Picture),
    **{stage: partial(lambda stage, event: isinstance(event, Step) and event.stage == stage, stage) for stage in ("base", "hires", "detail")},
}
"""Stage -> the event behind which a person gives the job up."""


def cells(*requests: Request) -> list[Cell]:
    return [Cell(label="", request=request) for request in requests]


def pixels(events: list[Event]) -> np.ndarray:
    (picture,) = [event for event in events if isinstance(event, Picture)]
    return np.asarray(picture.image)


def sentence(events: list[Event]) -> str:
    assert isinstance(events[-1], Failed), events[-1]
    assert events[-1].unlent
    return events[-1].message


# --- 15: a reused worker ---------------------------------------------------------------------------


def test_case_15_a_job_that_ends_anywhere_leaves_nothing_to_the_next(lender: zero.Zero, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A's job runs out of memory, or its process dies, or it is given up, at each stage; B, in the same worker where it lives, has a clean run's picture."""
    trap = tmp_path / "trap"
    watched, stages, decode, put_on = generate._watched, generate._stages, generate.decode, lora.Loaded.set

    def here(stage: str) -> None:
        at, how = trap.read_text().split("/") if trap.exists() else ("", "")
        if at == stage:
            trap.unlink()
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise torch.OutOfMemoryError if how == "memory" else RuntimeError

    def step(pipeline, moments, stage, *rest, **more):
        steps = watched(pipeline, moments, stage, *rest, **more)
        while True:
            try:
                event = next(steps)
            except StopIteration as done:
                return done.value
            here(stage)
            yield event

    def batch(pipeline, requests, *rest):
        if requests[0].seed == 8:
            here("between pictures")
        return (yield from stages(pipeline, requests, *rest))

    monkeypatch.setattr(generate, "_watched", step)
    monkeypatch.setattr(generate, "_stages", batch)
    monkeypatch.setattr(generate, "decode", lambda *of: (here("decode"), decode(*of))[1])
    monkeypatch.setattr(lora.Loaded, "set", lambda *of: (put_on(*of), here("LoRA loaded"))[0])
    clean, first = pixels(list(gpu.run(cells(PLAIN)))), dict(lender.workers)
    assert first
    for stage in ("LoRA loaded", "base", "decode", "hires", "detail", "between pictures"):
        for how in ("memory", "mistake", "dies", "stops"):
            second = replace(WORN, seed=8, loras=(replace(WORN.loras[0], strength=2.0),))
            job_of_a = cells(WORN, *[second][: stage == "between pictures"])
            before = dict(lender.workers)
            if how == "stops":
                job = gpu.run(job_of_a)
                next(event for event in job if STOPS[stage](event))
                job.close()  # type: ignore[attr-defined]
            else:
                trap.write_text(f"{stage}/{how}")
                last = list(gpu.run(job_of_a))[-1]
                assert not trap.exists(), f"the job never came to: {stage}; it ended with {last}"
                spared = how == "memory" and isinstance(last, Picture) and generate.SPARED in last.notes  # it is tried once more, and says so
                assert isinstance(last, Failed) or spared, f"{stage}, {how}: {last}"
            assert (lender.workers == before) == (how in ("memory", "stops")), f"{stage}, {how}: the worker was to be {'kept' if how == 'memory' else 'gone'}"
            assert (pixels(list(gpu.run(cells(PLAIN)))) == clean).all(), f"{stage}, {how}: the next picture is not that of a clean run"


def test_case_15_a_lora_that_was_left_on_is_found(lender: zero.Zero, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    job = inspect.unwrap(gpu._run)
    models._loaded.clear()  # opened here: a test before may have it with parts of another model
    clean = pixels(list(job(cells(PLAIN))))
    with monkeypatch.context() as patch:
        patch.setattr(lora.Loaded, "off", lambda _: None)
        with caplog.at_level(logging.ERROR):
            assert (pixels(list(job(cells(replace(PLAIN, loras=WORN.loras))))) != clean).any()
    assert "nano was not as it was loaded: unet." in caplog.text
    assert (pixels(list(job(cells(PLAIN)))) == clean).all()
    caplog.clear()
    hook = models.load("nano").vae.decoder.conv_in.register_forward_hook(lambda *_: None)
    models.checked()
    assert "the layer vae.decoder.conv_in is ('Conv2d', 1) and was ('Conv2d', 0)" in caplog.text
    hook.remove()


# --- 21: what ZeroGPU has against a job ------------------------------------------------------------


def test_case_21_overrun(lender: zero.Zero) -> None:
    lender.second = 0.05
    said = sentence(list(gpu.run(cells(replace(PLAIN, steps=150, width=256, height=256)))))
    assert said == "The GPU was taken away before the work was done: its time was over, or its process died. Nothing was finished: press Generate again."


def test_case_21_quota(lender: zero.Zero) -> None:
    lender.left = 10
    said = sentence(list(gpu.run(cells(PLAIN))))
    assert said == (
        "Your ZeroGPU quota does not reach: 16 s are asked for and 10 s are left: try again in 1:00:00. Nothing was finished: press Generate again."
    )


def test_case_21_illegal_duration_is_halved_once(lender: zero.Zero) -> None:
    lender.longest = 70
    other = cells(replace(PLAIN, model="nano-cel"))
    assert pixels(list(gpu.run(other))).shape == (64, 64, 3)
    assert lender.asked == [76, 60]
    lender.longest = 10
    said = sentence(list(gpu.run(other)))
    assert said == "ZeroGPU does not lend its GPU for 60 s at once. Nothing was finished: press Generate again."


def test_case_21_queue_timeout_and_nobody_to_lend_to(lender: zero.Zero) -> None:
    lender.free = False
    assert sentence(list(gpu.run(cells(PLAIN)))).startswith("No GPU was free within 60 s: try again later. Nothing was finished")
    lender.easy()
    events: list[Event] = []
    thread = threading.Thread(target=lambda: events.extend(gpu.run(cells(PLAIN))))  # which has no request
    thread.start()
    thread.join()
    assert sentence(events).startswith("ZeroGPU lends nothing to a Space that has reached its limit")


def test_case_21_what_cannot_be_pickled_and_a_mistake(lender: zero.Zero, monkeypatch: pytest.MonkeyPatch) -> None:
    said = sentence(list(gpu.run([Cell(label=threading.Lock(), request=PLAIN)])))  # type: ignore[arg-type]
    assert said.startswith("The job could not be handed to the GPU's process (PicklingError), which is a mistake of the studio.")
    monkeypatch.setattr(generate, "decode", lambda *_: {}["nothing"])
    assert sentence(list(gpu.run(cells(PLAIN)))).startswith("The work broke off on the GPU (KeyError), which is a mistake of the studio.")


def test_case_21_death_of_the_worker_names_what_was_finished(lender: zero.Zero) -> None:
    events: list[Event] = []
    for event in gpu.run(cells(PLAIN, replace(PLAIN, width=192, height=128, steps=20))):
        events.append(event)
        if isinstance(event, Picture):
            lender.retire()
    assert sentence(events).endswith("What was finished stays, 1 of 2 pictures: press Generate again.")
    assert pixels(list(gpu.run(cells(PLAIN)))).any(), "the next job has a worker"


def test_case_21_a_sweep_goes_on_from_there(lender: zero.Zero, monkeypatch: pytest.MonkeyPatch) -> None:
    new = time.time_ns() % 2**31  # no other test has made these
    values = {"lora": str(EXAMPLE), "seeds": f"{new}, {new + 1}", "strengths": "0, 2", "prompts": "1girl, red hair"}
    stages = generate._stages

    def taken_away(pipeline, requests, *rest):
        if requests[0].loras:  # its second batch; killed from inside, since a worker runs ahead of who watches it
            os.kill(os.getpid(), signal.SIGKILL)
        return (yield from stages(pipeline, requests, *rest))

    with monkeypatch.context() as patch:
        patch.setattr(generate, "_stages", taken_away)
        events = list(Study(plan(values)).run())
    assert sentence(events).endswith("What was finished stays, now 2 more of 4 pictures: press the button again and it goes on from there.")
    again = Study(plan(values))
    events = list(again.run())
    assert not [event for event in events if isinstance(event, Failed)]
    assert sum(isinstance(event, Picture) for event in events) == 2
    assert (again.found, again.verdict is not None) == (2, True)


def test_case_21_a_study_asks_once_for_a_gpu_that_is_not_lent(lender: zero.Zero) -> None:
    lender.free = False
    study = Crossing(crossing(asked(models=["nano", "nano-paint"], strengths="1", seeds="4, 5")))
    assert not list(study.run())
    assert len(lender.asked) == 1
    assert all("No GPU was free" in (pair.failed or "") for pair in study.pairs.values())


def test_case_21_a_training_goes_on_from_there(lender: zero.Zero, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(tmp_path / "data")
    straight, lent = (prepared(data, tmp_path / name, steps=8, save_every=4)[0] for name in ("straight", "lent"))
    followed(straight)
    here = os.getpid()

    def taken_away() -> None:
        if os.getpid() != here and any(line.get("step") == 6 for line in lent.said()):
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(closing, "check", taken_away)
        events = list(gpu.lesson(lent.path))
    assert sentence(events).endswith("The run is saved at step 4: press Continue and it goes on from there.")
    assert runs.status(lent).state == "failed"
    assert runs.status(lent).error == "Its process was killed, or ran out of memory, and could not say so. Resume it, and it goes on from step 4."
    lender.left = 10
    assert "90 s are asked for and 10 s are left" in sentence(list(gpu.lesson(lent.path)))
    lender.easy()
    assert not [event for event in gpu.lesson(lent.path) if isinstance(event, Failed)]
    assert runs.status(lent).state == "done"
    assert_same(straight, lent)


def test_a_long_job_is_made_in_several_calls(lender: zero.Zero, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LONGEST", 16)  # a second beside the start
    monkeypatch.setattr("core.lent.SECONDS_PER_MEGAPIXEL_STEP", 0.5 / (3 * 0.064**2))  # two pictures
    asked_for = [replace(PLAIN, seed=seed) for seed in range(5)]
    events = list(gpu.run(cells(*asked_for)))
    pictures = [event for event in events if isinstance(event, Picture)]
    assert lender.asked == [16, 16, 16]
    assert [event.index for event in pictures] == [0, 1, 2, 3, 4]
    assert [event.cell.request for event in pictures] == asked_for
    steps = [event for event in events if isinstance(event, Step)]
    assert (steps[-1].pictures_done, steps[-1].pictures) == (4, 5)
    assert steps[0].seconds_left > 1.5 > steps[-1].seconds_left
