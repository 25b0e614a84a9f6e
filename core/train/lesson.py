"""A run's pictures and captions as the batches that its steps see."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler

from core import models
from core.data.buckets import Buckets, Fit
from core.data.dataset import Dataset, Sample
from core.data.tagging import tags_of
from core.data.words import Wording, varied
from core.train.adapter import Adapter
from core.train.caches import Posteriors, Texts
from core.train.folder import Folder
from core.train.objective import Batch
from core.train.order import Chance, Order, drawn
from core.train.run import Run
from core.train.settings import Training

LOOKS = 4
"""Times between 0 and 1,000 at which a held-out picture is measured."""


class Row(NamedTuple):
    """A picture as a step sees it."""

    sample: Sample
    clean: torch.Tensor
    noise: torch.Tensor
    time: int
    caption: str


class Lessons:
    """The batches of a run, each a function of its number; `prepare` before the first."""

    def __init__(self, run: Run, dataset: Dataset, adapter: Adapter, noises: DDPMScheduler, folder: Folder):
        made = run.settings
        self.run, self.dataset, self.noises, self.device = run, dataset, noises, adapter.values.device
        self.learnt, self.held_out = divided(dataset.samples, made)
        sizes = buckets(made)
        self.fits = {sample.file: sizes.fit(sample.width, sample.height) for sample in dataset.samples}
        shapes = [self.fits[sample.file].bucket for sample in self.learnt]
        self.order = Order(shapes, [s.repeats for s in self.learnt], [s.regularisation for s in self.learnt], made.batch, made.seed)
        self.posteriors = Posteriors(adapter.pipeline, run.model, folder.latents)
        self.texts = Texts(adapter.pipeline, made.clip_skip, keep=not made.text_encoders)
        self.sized = models.find(run.model).told_sizes

    @property
    def occupied(self) -> Counter[tuple[int, int]]:
        """How many pictures each bucket has."""
        return Counter(self.fits[sample.file].bucket for sample in self.learnt)

    def prepare(self) -> Iterator[bool]:
        """Bring every picture through the VAE; yields for each whether it had not been already."""
        for sample in self.dataset.samples:
            for flip in (False, True) if self._flips(sample) else (False,):
                yield self.posteriors.prepare(self.dataset.folder / sample.file, self.fits[sample.file], flip)

    def size(self, number: int) -> int:
        """Pictures in a batch."""
        return len(self.order.batch(number)[1])

    def batch(self, number: int, slots: Sequence[int]) -> Batch:
        """Some pictures of a batch; what chance decides for a picture does not depend on which others are asked for."""
        epoch, members = self.order.batch(number)
        made = self.run.settings
        rows = []
        for slot in slots:
            sample, chance = self.learnt[members[slot]], Chance(made.seed, number, slot)
            flip = self._flips(sample) and chance.below(2) == 1
            mean, deviation = self.posteriors.of(self.dataset.folder / sample.file, self.fits[sample.file], flip)
            clean, noise, time = mean + deviation * chance.normal(*mean.shape), chance.normal(*mean.shape), chance.below(self.noises.config.num_train_timesteps)
            if made.noise_offset:
                noise = noise + made.noise_offset * chance.normal(len(noise), 1, 1)
            caption = varied(caption_of(sample, self.run.trigger), sample.wording or wording(made), chance.words, epoch)
            rows.append(Row(sample, clean, noise, time, caption))
        return self._batch(rows)

    def validation(self) -> Iterator[Batch]:
        """Held-out pictures as they are, each at the same times and noise whenever it is asked."""
        step = self.noises.config.num_train_timesteps // LOOKS
        for number, sample in enumerate(self.held_out):
            mean, _ = self.posteriors.of(self.dataset.folder / sample.file, self.fits[sample.file], False)
            chance, plain = Chance(0, number, 0), Wording(keep_tokens=0)
            caption = varied(caption_of(sample, self.run.trigger), plain, chance.words)
            yield self._batch([Row(sample, mean, chance.normal(*mean.shape), step // 2 + look * step, caption) for look in range(LOOKS)])

    def _batch(self, rows: Sequence["Row"]) -> Batch:
        clean, noise = (torch.stack(tensors).to(self.device, non_blocking=True) for tensors in ([row.clean for row in rows], [row.noise for row in rows]))
        prior = self.run.settings.prior_weight
        told = [[*self._original(row.sample), *self.fits[row.sample.file].bucket[::-1]] for row in rows]
        return Batch(
            clean=clean,
            noise=noise,
            times=torch.tensor([row.time for row in rows], device=self.device),
            text=self.texts([row.caption for row in rows]),
            sizes=torch.tensor(told, device=self.device, dtype=torch.float32),
            weights=torch.tensor([prior if row.sample.regularisation else 1.0 for row in rows], device=self.device),
        )

    def _original(self, sample: Sample) -> list[int]:
        """Height and width before scaling, top and left of the crop; as if nothing were scaled for a model that was never told."""
        fit: Fit = self.fits[sample.file]
        return [sample.height, sample.width, fit.crop[1], fit.crop[0]] if self.sized else [fit.bucket[1], fit.bucket[0], 0, 0]

    def _flips(self, sample: Sample) -> bool:
        return self.run.settings.flip if sample.flip is None else sample.flip


def buckets(made: Training) -> Buckets:
    """The buckets that a run's settings ask for."""
    return Buckets(resolution=made.resolution, least=made.least_side, most=made.most_side, step=made.bucket_step, upscale=made.upscale)


def wording(made: Training) -> Wording:
    return Wording(
        shuffle=made.shuffle, keep_tokens=made.keep_tokens, tag_dropout=made.tag_dropout, caption_dropout=made.caption_dropout, wildcard=made.wildcards
    )


def caption_of(sample: Sample, trigger: str) -> str:
    """A picture's caption with the trigger's tags before each of its lines that lacks them; regularisation pictures know no trigger."""
    if sample.regularisation or not trigger:
        return sample.caption
    wanted = set(tags_of(trigger))
    return "\n".join(line if wanted <= set(tags_of(line)) else ", ".join(filter(None, (trigger, line))) for line in sample.caption.splitlines() or [""])


def divided(samples: Sequence[Sample], made: Training) -> tuple[list[Sample], list[Sample]]:
    """What is trained on, and what is held out; never more than a third of the training set."""
    own = [sample for sample in samples if not sample.regularisation]
    out = random.Random(drawn(made.seed, 4)).sample(own, min(made.held_out, len(own) // 3))
    return [sample for sample in samples if sample not in out], [replace(sample, repeats=1) for sample in out]
