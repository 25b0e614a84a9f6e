"""A run's pictures and captions as the batches that its steps see."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler

from core.dataset.buckets import Buckets, Fit
from core.dataset.caption_variation import CaptionVariation, vary_caption
from core.dataset.dataset import Dataset, Sample
from core.dataset.tagging import split_tags
from core.models import bases
from core.train.trainer.adapter import Adapter
from core.train.trainer.batch_order import BatchOrder, SampleRandom, derive_seed
from core.train.trainer.latent_cache import CaptionEncoder, LatentCache
from core.train.trainer.loss import Batch
from core.train.trainer.run_folder import RunFolder
from core.train.trainer.run_record import Run
from core.train.trainer.settings import TrainingSettings

NUM_VALIDATION_TIMESTEPS = 4
"""Number of times between 0 and 1,000 at which a held-out picture is measured."""


class TrainingExample(NamedTuple):
    """A picture as a step sees it."""

    sample: Sample
    latents: torch.Tensor
    noise: torch.Tensor
    timestep: int
    caption: str


class TrainingBatches:
    """The batches of a run, each a function of its number.

    Call `cache_latents` before the first batch.
    """

    def __init__(
        self, run: Run, dataset: Dataset, adapter: Adapter, noise_scheduler: DDPMScheduler, folder: RunFolder
    ):
        made = run.settings
        self.run, self.dataset, self.noise_scheduler, self.device = (
            run,
            dataset,
            noise_scheduler,
            adapter.values.device,
        )
        self.training_samples, self.held_out_samples = split_held_out(dataset.samples, made)
        sizes = make_buckets(made)
        self.fits = {sample.file: sizes.fit(sample.width, sample.height) for sample in dataset.samples}
        shapes = [self.fits[sample.file].bucket for sample in self.training_samples]
        self.order = BatchOrder(
            shapes,
            [s.repeats for s in self.training_samples],
            [s.regularisation for s in self.training_samples],
            made.batch,
            made.seed,
        )
        self.latent_cache = LatentCache(adapter.pipeline, run.model, folder.latents)
        self.caption_encoder = CaptionEncoder(adapter.pipeline, made.clip_skip, cached=not made.text_encoders)
        self.size_conditioning = bases.find_model(run.model).size_conditioning

    @property
    def bucket_counts(self) -> Counter[tuple[int, int]]:
        """How many pictures each bucket has."""
        return Counter(self.fits[sample.file].bucket for sample in self.training_samples)

    def cache_latents(self) -> Iterator[bool]:
        """Encode every picture by the VAE; yields for each whether it had to be encoded."""
        for sample in self.dataset.samples:
            for flip in (False, True) if self._can_flip(sample) else (False,):
                yield self.latent_cache.load_or_encode(
                    self.dataset.folder / sample.file, self.fits[sample.file], flip
                )

    def get_batch_size(self, number: int) -> int:
        """Return the number of pictures in a batch."""
        return len(self.order.get_batch(number)[1])

    def make_batch(self, number: int, slots: Sequence[int]) -> Batch:
        """Make a batch of the pictures in some slots of it.

        The random choices for a picture do not depend on which other slots are asked for.
        """
        epoch, members = self.order.get_batch(number)
        made = self.run.settings
        rows = []
        for slot in slots:
            sample, chance = self.training_samples[members[slot]], SampleRandom(made.seed, number, slot)
            flip = self._can_flip(sample) and chance.draw_integer(2) == 1
            mean, deviation = self.latent_cache.get_posterior(
                self.dataset.folder / sample.file, self.fits[sample.file], flip
            )
            clean, noise, time = (
                mean + deviation * chance.draw_normal(*mean.shape),
                chance.draw_normal(*mean.shape),
                chance.draw_integer(self.noise_scheduler.config.num_train_timesteps),
            )
            if made.noise_offset:
                noise = noise + made.noise_offset * chance.draw_normal(len(noise), 1, 1)
            caption = vary_caption(
                prepend_trigger(sample, self.run.trigger),
                sample.wording or make_wording(made),
                chance.caption_random,
                epoch,
            )
            rows.append(TrainingExample(sample, clean, noise, time, caption))
        return self._collate(rows)

    def iter_validation_batches(self) -> Iterator[Batch]:
        """Yield held-out pictures as they are, at the same times and noise in every call."""
        step = self.noise_scheduler.config.num_train_timesteps // NUM_VALIDATION_TIMESTEPS
        for number, sample in enumerate(self.held_out_samples):
            mean, _ = self.latent_cache.get_posterior(
                self.dataset.folder / sample.file, self.fits[sample.file], False
            )
            chance, plain = SampleRandom(0, number, 0), CaptionVariation(keep_tokens=0)
            caption = vary_caption(prepend_trigger(sample, self.run.trigger), plain, chance.caption_random)
            yield self._collate(
                [
                    TrainingExample(
                        sample, mean, chance.draw_normal(*mean.shape), step // 2 + look * step, caption
                    )
                    for look in range(NUM_VALIDATION_TIMESTEPS)
                ]
            )

    def _collate(self, rows: Sequence["TrainingExample"]) -> Batch:
        clean, noise = (
            torch.stack(tensors).to(self.device, non_blocking=True)
            for tensors in ([row.latents for row in rows], [row.noise for row in rows])
        )
        prior = self.run.settings.prior_weight
        told = [
            [*self._get_original_size(row.sample), *self.fits[row.sample.file].bucket[::-1]] for row in rows
        ]
        return Batch(
            latents=clean,
            noise=noise,
            timesteps=torch.tensor([row.timestep for row in rows], device=self.device),
            text=self.caption_encoder([row.caption for row in rows]),
            time_ids=torch.tensor(told, device=self.device, dtype=torch.float32),
            weights=torch.tensor(
                [prior if row.sample.regularisation else 1.0 for row in rows], device=self.device
            ),
        )

    def _get_original_size(self, sample: Sample) -> list[int]:
        """Return height and width before scaling, and top and left of the crop, in pixels.

        For a model that was trained without size conditioning, as if nothing were scaled or
        cropped.
        """
        fit: Fit = self.fits[sample.file]
        return (
            [sample.height, sample.width, fit.crop[1], fit.crop[0]]
            if self.size_conditioning
            else [fit.bucket[1], fit.bucket[0], 0, 0]
        )

    def _can_flip(self, sample: Sample) -> bool:
        return self.run.settings.flip if sample.flip is None else sample.flip


def make_buckets(settings: TrainingSettings) -> Buckets:
    """Return the buckets that a run's settings ask for."""
    return Buckets(
        resolution=settings.resolution,
        least=settings.least_side,
        most=settings.most_side,
        step=settings.bucket_step,
        upscale=settings.upscale,
    )


def make_wording(settings: TrainingSettings) -> CaptionVariation:
    """Return how a run's settings vary captions."""
    return CaptionVariation(
        shuffle=settings.shuffle,
        keep_tokens=settings.keep_tokens,
        tag_dropout=settings.tag_dropout,
        caption_dropout=settings.caption_dropout,
        wildcard=settings.wildcards,
    )


def prepend_trigger(sample: Sample, trigger: str) -> str:
    """Return a picture's caption, with the trigger before each line that lacks one of its tags.

    The captions of regularisation pictures stay as they are.
    """
    if sample.regularisation or not trigger:
        return sample.caption
    wanted = set(split_tags(trigger))
    return "\n".join(
        line if wanted <= set(split_tags(line)) else ", ".join(filter(None, (trigger, line)))
        for line in sample.caption.splitlines() or [""]
    )


def split_held_out(
    samples: Sequence[Sample], settings: TrainingSettings
) -> tuple[list[Sample], list[Sample]]:
    """Return the pictures to train on and those held out, at most a third of the training set."""
    own = [sample for sample in samples if not sample.regularisation]
    out = random.Random(derive_seed(settings.seed, 4)).sample(own, min(settings.held_out, len(own) // 3))
    return [sample for sample in samples if sample not in out], [replace(sample, repeats=1) for sample in out]
