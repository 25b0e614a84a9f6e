"""What a run will take, before it starts: seconds and memory from real steps of it or a part of one, disk from what it will write."""

import math
import time
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline

from core.data.dataset import Dataset
from core.encode import Conditioning
from core.memory import ran_out_of_memory, release
from core.train.adapter import Adapter, components_of
from core.train.lesson import buckets
from core.train.objective import Batch, errors, schedule
from core.train.preview import preset, strengths
from core.train.run import Run
from core.train.settings import Training
from core.train.turns import keep_on_device
from core.types import Model

NUMBERS = {"AdamW": 2.0, "AdamW8bit": 0.5, "Lion8bit": 0.25, "Adafactor": 0.1, "Prodigy": 4.0}
"""float32 numbers that an optimiser keeps for each one that is trained."""
START_SECONDS = 10
"""Of a process, with its model."""
LEAST_PIXELS = 512**2
"""Of a batch that is measured, as many as a model's own size has, or these: anybody may ask for any batch, on the thread that all jobs need."""
ENOUGH = 1.0
"""Seconds of measuring; the least of what fits into them counts, as whatever else the machine does meanwhile only adds."""
SHAPED_BY = ("kind", "rank", "ranks", "targets", "text_encoders", "dropout", "optimizer")
"""The settings on which a pace depends, beside the pictures' size."""
Pictures = tuple[int, int, int]
"""How many, their width and height."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What one batch takes; where it is larger than what may be measured, scaled by its pixels."""

    seconds: float
    memory: int
    """Bytes of the model, the adapter, and what the forward pass keeps for the backward one."""
    numbers: int
    """That are trained."""
    batch: Pictures
    measured: Pictures


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take."""

    seconds: float
    memory: int
    """Bytes."""
    disk: int
    """Bytes."""
    scaled: str = ""
    """What it is scaled from, if it is."""
    at_least: bool = False
    """Whether it was scaled from smaller pictures: time grows faster than their pixels."""

    def line(self) -> str:
        """One line for a person."""
        minutes, seconds = divmod(round(self.seconds), 60)
        told = f"{'at least' if self.at_least else 'about'} {minutes} min {seconds:02d} s, {_bytes(self.memory)} of memory, {_bytes(self.disk)} on disk"
        return f"{told}; scaled from {self.scaled}" if self.scaled else told


def pace(pipeline: StableDiffusionXLPipeline, model: Model, made: Training, dataset: Dataset) -> Pace | None:
    """Train one batch of noise in the largest bucket, for a second, no more of it than may be measured; the adapter is gone afterwards.

    On the thread that has the model. `None` where the memory does not suffice.
    """
    try:
        with keep_on_device(pipeline, components_of(made)):
            return _pace(pipeline, made, *batches(model, made, dataset))
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
    release()
    return None


def batches(model: Model, made: Training, dataset: Dataset) -> tuple[Pictures, Pictures]:
    """The largest batch of a run, and what of it is measured."""
    sizes = buckets(made)
    width, height = max((sizes.fit(s.width, s.height).bucket for s in dataset.samples), key=lambda bucket: bucket[0] * bucket[1])
    most = max(LEAST_PIXELS, model.native_size**2)
    if (many := most // (width * height)) >= 1:
        return (made.batch, width, height), (min(made.batch, many), width, height)
    less = math.sqrt(most / (width * height))
    narrow, low = (max(64, int(side * less) // 64 * 64) for side in (width, height))
    return (made.batch, width, height), (1, narrow, low)


def _pace(pipeline: StableDiffusionXLPipeline, made: Training, batch: Pictures, measured: Pictures) -> Pace:
    adapter, noises = Adapter(pipeline, made), schedule(pipeline)
    noise = _noise(pipeline, measured, adapter.values.device)
    kept: dict[int, int] = {}

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    took: list[float] = []
    while len(took) < 2 or sum(took[1:]) < ENOUGH:  # the first warms up
        kept.clear()
        begin = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            errors(adapter.pipeline.unet, noises, noise, None).sum().backward()
        float(adapter.gradients[0])
        took.append(time.perf_counter() - begin)
    parts = [getattr(pipeline, name) for name in ("unet", "vae", "text_encoder", "text_encoder_2")]
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for part in parts for p in part.parameters()}
    trained = len(adapter.values) * 4 * (2 + NUMBERS[made.optimizer])
    times = math.prod(batch) / math.prod(measured)
    memory = sum(weights.values()) + trained + times * sum(size for at, size in kept.items() if at not in weights)
    return Pace(seconds=times * min(took[1:]), memory=int(memory), numbers=len(adapter.values), batch=batch, measured=measured)


def _noise(pipeline: StableDiffusionXLPipeline, pictures: Pictures, device: torch.device) -> Batch:
    n, width, height = pictures
    latents = torch.randn(n, 4, height // 8, width // 8, device=device)
    wide = pipeline.unet.config.cross_attention_dim
    pooled = int(pipeline.text_encoder_2.config.projection_dim)
    return Batch(
        clean=latents,
        noise=latents,
        times=torch.full((n,), 500, device=device),
        text=Conditioning(torch.zeros(n, 77, int(wide), device=device), torch.zeros(n, pooled, device=device)),  # type: ignore[arg-type]
        sizes=torch.tensor([[height, width, 0, 0, height, width]] * n, device=device, dtype=torch.float32),
        weights=torch.ones(n, device=device),
    )


def estimate(run: Run, dataset: Dataset, found: Pace) -> Estimate:
    """What a run takes at this pace; previews count as one forward pass a step and picture."""
    made, look = run.settings, preset(run.model)
    moments = made.steps // made.preview_every + 1 if made.preview_every else 0
    pictures = moments * len(run.prompts) * (len(strengths(run)) - 1)
    previews = pictures * look.steps * 2 / 3 * found.seconds / made.batch
    saved, (many, width, height) = made.steps // made.save_every + 1, found.measured
    state, lora = found.numbers * 4 * (1 + NUMBERS[made.optimizer]), found.numbers * (4 if made.precision == "float32" else 2)
    shots = pictures * look.width * look.height * 2
    data = sum(sample.width * sample.height * 3 for sample in dataset.samples) + len(dataset.samples) * made.resolution**2 // 2
    return Estimate(
        seconds=START_SECONDS + made.steps * made.accumulation * found.seconds + previews,
        memory=found.memory,
        disk=int(saved * (state + lora) + shots + data),
        scaled=f"{many} picture{'s' * (many > 1)} of {width} x {height}" if found.batch != found.measured else "",
        at_least=found.batch[1:] != found.measured[1:],
    )


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MB"
