"""What a step sees: order, chance, captions, noise and weights, beside kohya's rules and diffusers' formulas."""

from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from core import gpu, models
from core.data.dataset import Sample
from core.encode import encode
from core.prompts import Span
from core.train import loop
from core.train.adapter import Adapter
from core.train.caches import Texts
from core.train.lesson import Lessons, caption_of
from core.train.objective import schedule, snr_weights
from core.train.optimizer import factor
from core.train.order import Chance, Order
from core.train.settings import SCHEDULERS, settings
from tests.train.parts import dataset, followed, losses, prepared

SMALL, WIDE = (128, 128), (160, 96)


def test_an_epoch_shows_every_picture_as_often_as_it_is_repeated() -> None:
    order = Order([SMALL, SMALL, WIDE, WIDE, WIDE], [1, 2, 1, 1, 3], [False] * 5, batch=2, seed=1)
    for epoch in (1, 2, 3):
        batches = order.epoch(epoch)
        assert Counter(i for batch in batches for i in batch) == {0: 1, 1: 2, 2: 1, 3: 1, 4: 3}
        assert all(len({i < 2 for i in batch}) == 1 for batch in batches), "pictures of two sizes in one batch"
    assert order.epoch(1) != order.epoch(2)


def test_regularisation_pictures_are_as_many_and_other_ones_in_each_epoch() -> None:
    order = Order([SMALL] * 7, [1] * 7, [False] * 2 + [True] * 5, batch=2, seed=1)
    seen = [{i for batch in order.epoch(epoch) for i in batch if i >= 2} for epoch in (1, 2, 3)]
    assert [len(each) for each in seen] == [2, 2, 2]
    assert set.union(*seen) == {2, 3, 4, 5, 6}, "kohya never shows some of them"


def test_a_batch_is_the_same_whenever_it_is_asked_for() -> None:
    forwards, backwards = (Order([SMALL, WIDE, SMALL], [3, 2, 1], [False] * 3, batch=2, seed=5) for _ in range(2))
    there = [forwards.batch(number) for number in range(30)]
    assert [backwards.batch(number) for number in (29, 3, 17)] == [there[number] for number in (29, 3, 17)]
    one, other = Chance(7, 3, 0), Chance(7, 3, 1)
    assert not torch.equal(one.normal(4), other.normal(4))
    assert torch.equal(Chance(7, 3, 0).normal(4), Chance(7, 3, 0).normal(4))


def test_half_of_a_batch_is_what_the_whole_has_there(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", sizes=(SMALL,))
    folder, run = prepared(data, tmp_path / "run", batch=4, flip=True, shuffle=True)

    def made() -> tuple[Lessons, list]:
        adapter = Adapter(models.load("nano"), run.settings)
        lessons = Lessons(run, data, adapter, schedule(adapter.pipeline), folder)
        list(lessons.prepare())
        return lessons, [lessons.batch(1, range(4)), lessons.batch(1, [1, 3])]

    lessons, (whole, half) = gpu.lane(made)
    for mine, its in ((whole.clean, half.clean), (whole.noise, half.noise), (whole.times, half.times), (whole.text.states, half.text.states)):
        assert torch.equal(mine[[1, 3]], its)
    assert lessons.batch(1, range(4)).sizes.tolist() == [[128, 128, 0, 0, 128, 128]] * 4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero", [False, True])
def test_min_snr_is_diffusers_formula(prediction: Literal["epsilon", "v_prediction"], zero: bool) -> None:
    noises = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction, rescale_betas_zero_snr=zero)
    times = torch.arange(0, 999 if zero else 1000)
    snr = compute_snr(noises, times)
    theirs = torch.stack([snr, 5.0 * torch.ones_like(snr)], dim=1).min(dim=1)[0] / (snr if prediction == "epsilon" else snr + 1)
    assert torch.allclose(snr_weights(noises, times, 5.0), theirs, rtol=1e-6)
    assert snr_weights(noises, torch.tensor([999]), 5.0).isfinite().all()


def test_captions_through_the_cache_are_what_the_encoders_say(tmp_path: Path) -> None:
    """Parentheses are words, long captions are read to their end, short ones filled up."""
    captions = ["1girl, saber_(fate)", ", ".join(f"tag{i}" for i in range(60)), ""]

    @torch.no_grad()
    def made() -> tuple:
        pipeline = models.load("nano")
        said = [(Span(caption, 1.0),) for caption in captions]
        return Texts(pipeline, 2, keep=True)(captions), encode(pipeline, said), Texts(pipeline, 1, keep=True)(captions), encode(pipeline, said, 1)

    cached, plain, last, plain_last = gpu.lane(made)
    assert cached.states.shape[1] > 77
    assert torch.equal(cached.states, plain.states)
    assert torch.allclose(cached.pooled, plain.pooled, rtol=1e-5, atol=1e-5), "of one chunk, or of two at once"
    assert torch.equal(last.states, plain_last.states)
    assert not torch.equal(last.states, cached.states), "clip_skip 1 is another layer"


@pytest.mark.parametrize(
    ("caption", "regularisation", "seen"),
    [
        ("1girl, smile", False, "art, 1girl, smile"),
        ("art, 1girl", False, "art, 1girl"),
        ("party hat", False, "art, party hat"),
        ("", False, "art"),
        ("1girl", True, "1girl"),
        ("one\ntwo, art", False, "art, one\ntwo, art"),
    ],
)
def test_the_trigger_stands_once_in_every_line(caption: str, regularisation: bool, seen: str) -> None:
    sample = Sample(file="x", name="x", caption=caption, width=1, height=1, regularisation=regularisation, group="g")
    assert caption_of(sample, "art") == seen


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_of_diffusers(scheduler: str) -> None:
    from diffusers.optimization import get_scheduler

    rules = "0.5:2,0.1" if scheduler == "piecewise_constant" else ""
    made = settings("nano-quick", models.find("nano"), {"steps": 5, "scheduler": scheduler, "step_rules": rules, "warmup": 2, "cycles": 2})
    times = factor(made)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=made.rate)
    theirs = get_scheduler(scheduler, optimizer, step_rules=rules or None, num_warmup_steps=2, num_training_steps=5, num_cycles=2)
    for step in range(5):
        assert made.rate * times(step) == pytest.approx(theirs.get_last_lr()[0]), f"step {step}"
        optimizer.step()
        theirs.step()


def test_a_batch_that_does_not_fit_into_memory_is_computed_with_less_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step after memory ran out is the very step that would have been: checkpointing changes no number."""
    data = dataset(tmp_path / "data", sizes=(SMALL,))
    plain, short = (prepared(data, tmp_path / name, steps=3)[0] for name in "ab")
    followed(plain)
    real, left = loop.errors, [1, 1]

    def scarce(*arguments):
        if left:
            left.pop()
            raise torch.OutOfMemoryError("no memory")
        return real(*arguments)

    monkeypatch.setattr(loop, "errors", scarce)
    followed(short)
    assert losses(short) == losses(plain)
