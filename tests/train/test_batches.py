"""What a step sees, beside kohya's rules and diffusers' formulas.

Order, chance, captions, noise and weights.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from core.dataset.dataset import Sample
from core.models import bases
from core.prompts.conditioning import encode_texts
from core.prompts.grammar import Span
from core.runtime import torch_thread
from core.train.trainer import loop, loss
from core.train.trainer.adapter import Adapter
from core.train.trainer.batch_order import BatchOrder, SampleRandom
from core.train.trainer.batches import TrainingBatches, prepend_trigger
from core.train.trainer.latent_cache import CaptionEncoder
from core.train.trainer.loss import compute_min_snr_weights, make_noise_scheduler
from core.train.trainer.optimizer import make_lr_schedule
from core.train.trainer.settings import SCHEDULERS, resolve_settings
from tests.train.parts import make_dataset, prepare_run, read_losses, run_training

SMALL, WIDE = (128, 128), (160, 96)


def test_an_epoch_shows_every_picture_as_often_as_it_is_repeated() -> None:
    order = BatchOrder([SMALL, SMALL, WIDE, WIDE, WIDE], [1, 2, 1, 1, 3], [False] * 5, batch_size=2, seed=1)
    for epoch in (1, 2, 3):
        batches = order.get_epoch(epoch)
        assert Counter(i for batch in batches for i in batch) == {0: 1, 1: 2, 2: 1, 3: 1, 4: 3}
        assert all(len({i < 2 for i in batch}) == 1 for batch in batches), (
            "pictures of two sizes in one batch"
        )
    assert order.get_epoch(1) != order.get_epoch(2)


def test_regularisation_pictures_are_as_many_and_other_ones_in_each_epoch() -> None:
    order = BatchOrder([SMALL] * 7, [1] * 7, [False] * 2 + [True] * 5, batch_size=2, seed=1)
    seen = [{i for batch in order.get_epoch(epoch) for i in batch if i >= 2} for epoch in (1, 2, 3)]
    assert [len(each) for each in seen] == [2, 2, 2]
    assert set.union(*seen) == {2, 3, 4, 5, 6}, "kohya never shows some of them"


def test_a_batch_is_the_same_whenever_it_is_asked_for() -> None:
    forwards, backwards = (
        BatchOrder([SMALL, WIDE, SMALL], [3, 2, 1], [False] * 3, batch_size=2, seed=5) for _ in range(2)
    )
    there = [forwards.get_batch(number) for number in range(30)]
    assert [backwards.get_batch(number) for number in (29, 3, 17)] == [
        there[number] for number in (29, 3, 17)
    ]
    one, other = SampleRandom(7, 3, 0), SampleRandom(7, 3, 1)
    assert not torch.equal(one.draw_normal(4), other.draw_normal(4))
    assert torch.equal(SampleRandom(7, 3, 0).draw_normal(4), SampleRandom(7, 3, 0).draw_normal(4))


def test_half_of_a_batch_is_what_the_whole_has_there(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", sizes=(SMALL,))
    folder, run = prepare_run(data, tmp_path / "run", batch=4, flip=True, shuffle=True)

    def make_batches() -> tuple[TrainingBatches, list]:
        adapter = Adapter(bases.load_model("nano"), run.settings)
        lessons = TrainingBatches(run, data, adapter, make_noise_scheduler(adapter.pipeline), folder)
        list(lessons.cache_latents())
        return lessons, [lessons.make_batch(1, range(4)), lessons.make_batch(1, [1, 3])]

    lessons, (whole, half) = torch_thread.run_on_torch_thread(make_batches)
    for mine, its in (
        (whole.latents, half.latents),
        (whole.noise, half.noise),
        (whole.timesteps, half.timesteps),
        (whole.text.states, half.text.states),
    ):
        assert torch.equal(mine[[1, 3]], its)
    assert lessons.make_batch(1, range(4)).time_ids.tolist() == [[128, 128, 0, 0, 128, 128]] * 4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero", [False, True])
def test_min_snr_is_diffusers_formula(prediction: Literal["epsilon", "v_prediction"], zero: bool) -> None:
    noises = DDPMScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction, rescale_betas_zero_snr=zero
    )
    times = torch.arange(0, 999 if zero else 1000)
    snr = compute_snr(noises, times)
    theirs = torch.stack([snr, 5.0 * torch.ones_like(snr)], dim=1).min(dim=1)[0] / (
        snr if prediction == "epsilon" else snr + 1
    )
    assert torch.allclose(compute_min_snr_weights(noises, times, 5.0), theirs, rtol=1e-6)
    assert compute_min_snr_weights(noises, torch.tensor([999]), 5.0).isfinite().all()


def test_captions_through_the_cache_are_what_the_encoders_say(tmp_path: Path) -> None:
    """Parentheses are words, long captions are read to their end, short ones are padded."""
    captions = ["1girl, saber_(fate)", ", ".join(f"tag{i}" for i in range(60)), ""]

    @torch.no_grad()
    def encode_captions() -> tuple:
        pipeline = bases.load_model("nano")
        said = [(Span(caption, 1.0),) for caption in captions]
        return (
            CaptionEncoder(pipeline, 2, cached=True)(captions),
            encode_texts(pipeline, said),
            CaptionEncoder(pipeline, 1, cached=True)(captions),
            encode_texts(pipeline, said, 1),
        )

    cached, plain, last, plain_last = torch_thread.run_on_torch_thread(encode_captions)
    assert cached.states.shape[1] > 77
    assert torch.equal(cached.states, plain.states)
    assert torch.allclose(cached.pooled, plain.pooled, rtol=1e-5, atol=1e-5), (
        "of one chunk, or of two at once"
    )
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
    sample = Sample(
        file="x", name="x", caption=caption, width=1, height=1, regularisation=regularisation, group="g"
    )
    assert prepend_trigger(sample, "art") == seen


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_of_diffusers(scheduler: str) -> None:
    from diffusers.optimization import get_scheduler

    rules = "0.5:2,0.1" if scheduler == "piecewise_constant" else ""
    made = resolve_settings(
        "nano-quick",
        bases.find_model("nano"),
        {"steps": 5, "scheduler": scheduler, "step_rules": rules, "warmup": 2, "cycles": 2},
    )
    times = make_lr_schedule(made)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=made.learning_rate)
    theirs = get_scheduler(
        scheduler, optimizer, step_rules=rules or None, num_warmup_steps=2, num_training_steps=5, num_cycles=2
    )
    for step in range(5):
        assert made.learning_rate * times(step) == pytest.approx(theirs.get_last_lr()[0]), f"step {step}"
        optimizer.step()
        theirs.step()


def test_a_batch_that_does_not_fit_into_memory_is_computed_with_less_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step after memory ran out is the same step: checkpointing changes no number."""
    data = make_dataset(tmp_path / "data", sizes=(SMALL,))
    plain, short = (prepare_run(data, tmp_path / name, steps=3)[0] for name in "ab")
    run_training(plain)
    real, left = loss.compute_losses, [1, 1]

    def fail_while_left(*arguments):
        if left:
            left.pop()
            raise torch.OutOfMemoryError("no memory")
        return real(*arguments)

    monkeypatch.setattr(loop, "compute_losses", fail_while_left)
    run_training(short)
    assert read_losses(short) == read_losses(plain)
