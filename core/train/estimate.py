"""Estimate what a run will take before it starts.

Time and memory come from real steps of the run, or of a part of one; disk from what the run will
write.
"""

import math
import time
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline

from core.dataset.dataset import Dataset
from core.models.preset_match import find_preset
from core.prompts.conditioning import Conditioning
from core.schema.types import Model
from core.system.memory import is_out_of_memory, release_memory
from core.train.trainer.adapter import Adapter, get_trained_components
from core.train.trainer.batches import make_buckets
from core.train.trainer.loss import Batch, compute_losses, make_noise_scheduler
from core.train.trainer.previews import list_preview_strengths
from core.train.trainer.run_record import Run
from core.train.trainer.settings import TrainingSettings
from core.train.trainer.turns import keep_on_device

STATE_PER_PARAMETER = {"AdamW": 2.0, "AdamW8bit": 0.5, "Lion8bit": 0.25, "Adafactor": 0.1, "Prodigy": 4.0}
"""float32 numbers that an optimiser keeps for each one that is trained."""
START_SECONDS = 10
"""Seconds that a process takes to start and load its model."""
MIN_PIXEL_BUDGET = 512**2
"""Least pixel budget of a measured batch; a model with a larger native size has the pixels of that.

Anybody may ask for any batch, and it is measured on the thread that all jobs need.
"""
MEASURE_SECONDS = 1.0
"""Seconds of measuring; the shortest step counts, as other work on the machine only adds."""
PACE_SETTINGS = ("kind", "rank", "ranks", "targets", "text_encoders", "dropout", "optimizer")
"""The settings on which the pace depends, in addition to the pictures' size."""
BatchShape = tuple[int, int, int]
"""Number of pictures, their width and height in pixels."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What one batch takes, scaled by its pixels if it is larger than what may be measured."""

    seconds: float
    memory: int
    """Bytes of the model, the adapter, and what the forward pass keeps for the backward pass."""
    trained_parameters: int
    """Number of parameters that are trained."""
    batch: BatchShape
    measured_batch: BatchShape


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take."""

    seconds: float
    memory: int
    """Peak memory in bytes."""
    disk: int
    """Disk space in bytes."""
    scaled_from: str = ""
    """What the estimate is scaled from; empty if it is not scaled."""
    at_least: bool = False
    """Whether it was scaled from smaller pictures: time grows faster than their pixels."""

    def describe(self) -> str:
        """Return one line for a person."""
        minutes, seconds = divmod(round(self.seconds), 60)
        told = (
            f"{'At least' if self.at_least else 'About'} {minutes} min {seconds:02d} s "
            f"· +{_format_bytes(self.memory)} memory · {_format_bytes(self.disk)} disk"
        )
        return f"{told}; scaled from {self.scaled_from}" if self.scaled_from else told


def measure_pace(
    pipeline: StableDiffusionXLPipeline, model: Model, settings: TrainingSettings, dataset: Dataset
) -> Pace | None:
    """Train a batch of noise in the largest bucket for a second, and return its pace.

    The batch is no larger than what may be measured; the adapter is gone afterwards. Call it on the
    thread that has the model. Returns `None` if memory does not suffice.
    """
    try:
        with keep_on_device(pipeline, get_trained_components(settings)):
            return _measure_batch(pipeline, settings, *choose_batch_shapes(model, settings, dataset))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    release_memory()
    return None


def choose_batch_shapes(
    model: Model, settings: TrainingSettings, dataset: Dataset
) -> tuple[BatchShape, BatchShape]:
    """Return the largest batch of a run, and the part of it that is measured."""
    sizes = make_buckets(settings)
    width, height = max(
        (sizes.fit(s.width, s.height).bucket for s in dataset.samples),
        key=lambda bucket: bucket[0] * bucket[1],
    )
    most = max(MIN_PIXEL_BUDGET, model.native_size**2)
    if (many := most // (width * height)) >= 1:
        return (settings.batch, width, height), (min(settings.batch, many), width, height)
    less = math.sqrt(most / (width * height))
    narrow, low = (max(64, int(side * less) // 64 * 64) for side in (width, height))
    return (settings.batch, width, height), (1, narrow, low)


def _measure_batch(
    pipeline: StableDiffusionXLPipeline, settings: TrainingSettings, batch: BatchShape, measured: BatchShape
) -> Pace:
    adapter, noises = Adapter(pipeline, settings), make_noise_scheduler(pipeline)
    noise = _make_noise_batch(pipeline, measured, adapter.values.device)
    kept: dict[int, int] = {}

    def record_tensor(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    took: list[float] = []
    while len(took) < 2 or sum(took[1:]) < MEASURE_SECONDS:  # the first warms up
        kept.clear()
        begin = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(record_tensor, lambda tensor: tensor):
            compute_losses(adapter.pipeline.unet, noises, noise, None).sum().backward()
        float(adapter.gradients[0])
        took.append(time.perf_counter() - begin)
    parts = [getattr(pipeline, name) for name in ("unet", "vae", "text_encoder", "text_encoder_2")]
    weights = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
        for part in parts
        for p in part.parameters()
    }
    trained = len(adapter.values) * 4 * (2 + STATE_PER_PARAMETER[settings.optimizer])
    times = math.prod(batch) / math.prod(measured)
    memory = (
        sum(weights.values()) + trained + times * sum(size for at, size in kept.items() if at not in weights)
    )
    return Pace(
        seconds=times * min(took[1:]),
        memory=int(memory),
        trained_parameters=len(adapter.values),
        batch=batch,
        measured_batch=measured,
    )


def _make_noise_batch(
    pipeline: StableDiffusionXLPipeline, pictures: BatchShape, device: torch.device
) -> Batch:
    n, width, height = pictures
    latents = torch.randn(n, 4, height // 8, width // 8, device=device)
    wide = pipeline.unet.config.cross_attention_dim
    pooled = int(pipeline.text_encoder_2.config.projection_dim)
    return Batch(
        latents=latents,
        noise=latents,
        timesteps=torch.full((n,), 500, device=device),
        text=Conditioning(
            torch.zeros(n, 77, int(wide), device=device), torch.zeros(n, pooled, device=device)
        ),  # type: ignore[arg-type]
        time_ids=torch.tensor([[height, width, 0, 0, height, width]] * n, device=device, dtype=torch.float32),
        weights=torch.ones(n, device=device),
    )


def estimate_run(run: Run, dataset: Dataset, pace: Pace) -> Estimate:
    """Return what a run takes at this pace.

    A preview counts as one forward pass for each step and picture.
    """
    made, look = run.settings, find_preset(run.model)
    moments = made.steps // made.preview_every + 1 if made.preview_every else 0
    pictures = moments * len(run.prompts) * (len(list_preview_strengths(run)) - 1)
    previews = pictures * look.steps * 2 / 3 * pace.seconds / made.batch
    saved, (many, width, height) = made.steps // made.save_every + 1, pace.measured_batch
    state, lora = (
        pace.trained_parameters * 4 * (1 + STATE_PER_PARAMETER[made.optimizer]),
        pace.trained_parameters * (4 if made.precision == "float32" else 2),
    )
    shots = pictures * look.width * look.height * 2
    data = (
        sum(sample.width * sample.height * 3 for sample in dataset.samples)
        + len(dataset.samples) * made.resolution**2 // 2
    )
    return Estimate(
        seconds=START_SECONDS + made.steps * made.accumulation * pace.seconds + previews,
        memory=pace.memory,
        disk=int(saved * (state + lora) + shots + data),
        scaled_from=f"{many} image{'s' * (many > 1)} of {width} x {height}"
        if pace.batch != pace.measured_batch
        else "",
        at_least=pace.batch[1:] != pace.measured_batch[1:],
    )


def _format_bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MB"
