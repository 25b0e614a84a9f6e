"""What a run will take, before it starts: seconds and memory from one real step of it, disk from what it will write."""

import time
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline

from core.data.dataset import Dataset
from core.encode import Conditioning
from core.train.adapter import Adapter
from core.train.lesson import buckets
from core.train.objective import Batch, errors, schedule
from core.train.preview import preset, strengths
from core.train.run import Run
from core.train.settings import Training

NUMBERS = {"AdamW": 2.0, "AdamW8bit": 0.5, "Lion8bit": 0.25, "Adafactor": 0.1, "Prodigy": 4.0}
"""float32 numbers that an optimiser keeps for each one that is trained."""
START_SECONDS = 10
"""Of a process, with its model."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What one batch takes."""

    seconds: float
    memory: int
    """Bytes of the model, the adapter, and what the forward pass keeps for the backward one."""
    numbers: int
    """That are trained."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take."""

    seconds: float
    memory: int
    """Bytes."""
    disk: int
    """Bytes."""

    def line(self) -> str:
        """One line for a person."""
        minutes, seconds = divmod(round(self.seconds), 60)
        return f"about {minutes} min {seconds:02d} s, {_bytes(self.memory)} of memory, {_bytes(self.disk)} on disk"


def pace(pipeline: StableDiffusionXLPipeline, made: Training, dataset: Dataset) -> Pace:
    """Train one batch of noise in the largest bucket, twice; the adapter is gone afterwards. On the thread that has the model."""
    adapter, noises, sizes = Adapter(pipeline, made), schedule(pipeline), buckets(made)
    width, height = max((sizes.fit(s.width, s.height).bucket for s in dataset.samples), key=lambda bucket: bucket[0] * bucket[1])
    n, device = made.batch, adapter.values.device
    latents = torch.randn(n, 4, height // 8, width // 8, device=device)
    wide = pipeline.unet.config.cross_attention_dim
    pooled = int(pipeline.text_encoder_2.config.projection_dim)
    batch = Batch(
        clean=latents,
        noise=latents,
        times=torch.full((n,), 500, device=device),
        text=Conditioning(torch.zeros(n, 77, int(wide), device=device), torch.zeros(n, pooled, device=device)),  # type: ignore[arg-type]
        sizes=torch.tensor([[height, width, 0, 0, height, width]] * n, device=device, dtype=torch.float32),
        weights=torch.ones(n, device=device),
    )
    kept: dict[int, int] = {}

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    seconds = 0.0
    for _ in range(2):  # the first warms up
        begin = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            errors(adapter.pipeline.unet, noises, batch, None).sum().backward()
        float(adapter.gradients[0])
        seconds = time.perf_counter() - begin
    parts = [getattr(pipeline, name) for name in ("unet", "vae", "text_encoder", "text_encoder_2")]
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for part in parts for p in part.parameters()}
    trained = len(adapter.values) * 4 * (2 + NUMBERS[made.optimizer])
    return Pace(seconds=seconds, memory=int(sum(({**kept, **weights}).values()) + trained), numbers=len(adapter.values))


def estimate(run: Run, dataset: Dataset, found: Pace) -> Estimate:
    """What a run takes at this pace; previews count as one forward pass a step and picture."""
    made, look = run.settings, preset(run.model)
    moments = made.steps // made.preview_every + 1 if made.preview_every else 0
    pictures = moments * len(run.prompts) * (len(strengths(run)) - 1)
    previews = pictures * look.steps * 2 / 3 * found.seconds / made.batch
    saved = made.steps // made.save_every + 1
    state, lora = found.numbers * 4 * (1 + NUMBERS[made.optimizer]), found.numbers * (4 if made.precision == "float32" else 2)
    shots = pictures * look.width * look.height * 2
    data = sum(sample.width * sample.height * 3 for sample in dataset.samples) + len(dataset.samples) * made.resolution**2 // 2
    return Estimate(
        seconds=START_SECONDS + made.steps * made.accumulation * found.seconds + previews,
        memory=found.memory,
        disk=int(saved * (state + lora) + shots + data),
    )


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MB"
