"""Cells -> pictures: the one denoising loop, as a generator of events.

Cells that can share a forward pass are denoised together. Each cell's noise, ancestral noise
included, is drawn from its own CPU generator in the order of diffusers' pipeline, so a seed
gives the same picture on every device and in every batch.
"""

import inspect
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL.Image import Image

from core import models, samplers
from core.device import GIB, this_machine
from core.types import Cell, Event, Picture, Request, Step, UserError

PREVIEWS = 8
"""Previews in a run."""
PREVIEW_LATENTS = 32
"""Longest side of a preview in latents: a preview costs a VAE decode of at most 256 x 256 pixels."""


def generate(cells: Sequence[Cell], *, previews: bool = False) -> Generator[Event, None, None]:
    """Make every cell's picture: a `Step` after each denoising step, a `Picture` for each cell.

    The cells of one batch come together, in the order of the cells. Closing the generator
    stops the work within one step. Raises `UserError` for a model that cannot be had and when
    memory runs out.
    """
    begin, work = time.monotonic(), sum(cell.request.steps for cell in cells)
    pictures_done = steps_done = 0
    for batch in batches(cells):
        requests = [cells[i].request for i in batch]
        try:
            pipeline = models.load(requests[0].model)
            for step, steps, latents, clean in denoise(pipeline, requests):  # noqa: B007  (the last latents are decoded)
                share = (steps_done + len(batch) * requests[0].steps * step / steps) / work
                left = (time.monotonic() - begin) * (1 - share) / share
                look = previews and step % max(1, steps // PREVIEWS) == 0 and step < steps
                shown = tuple(decode(pipeline, shrunk(clean))) if look else ()
                yield Step(step=step, steps=steps, pictures_done=pictures_done, pictures=len(cells), seconds_left=left, previews=shown)
            images = decode(pipeline, latents)
        except torch.OutOfMemoryError as error:
            models.release()
            lower = f"count ({len(batch)} at once)" if len(batch) > 1 else f"width and height ({requests[0].width} x {requests[0].height})"
            raise UserError(f"This machine ran out of memory: lower {lower}. What was finished stays.") from error
        for i, image in zip(batch, images, strict=True):
            yield Picture(index=i, cell=cells[i], image=image)
        pictures_done += len(batch)
        steps_done += sum(request.steps for request in requests)


def batches(cells: Sequence[Cell]) -> Iterator[list[int]]:
    """Indices of cells that go through the model together; each model is needed once."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for i, cell in enumerate(cells):
        r = cell.request
        alike[r.model, r.width, r.height, r.steps, r.sampler, r.cfg > 1].append(i)
    for (_, width, height, *_), indices in sorted(alike.items(), key=lambda item: item[0][0]):
        size = batch_size(width, height)
        yield from (indices[i : i + size] for i in range(0, len(indices), size))


def batch_size(width: int, height: int) -> int:
    """Pictures of this size that fit beside the model: 2 GiB each at 1024 x 1024, at most 8."""
    free = max(this_machine().memory - 8 * GIB, 0)
    return max(1, min(8, int(free / (2 * GIB * width * height / 1024**2))))


@torch.no_grad()
def denoise(pipeline: StableDiffusionXLPipeline, requests: Sequence[Request]) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """One batch of requests that `batches` found alike.

    Yields (step, steps, latents, predicted clean latents) after each step, both latents
    (n, 4, height / 8, width / 8). The maths is that of `StableDiffusionXLPipeline.__call__`.
    """
    first = requests[0]
    guided = first.cfg > 1
    device, dtype = pipeline._execution_device, pipeline.unet.dtype
    states, pooled = encode(pipeline, requests, guided)
    time_ids = torch.tensor([[first.height, first.width, 0, 0, first.height, first.width]], device=device, dtype=dtype).repeat(len(states), 1)
    conditions = {"text_embeds": pooled, "time_ids": time_ids}
    cfg = torch.tensor([r.cfg for r in requests], device=device, dtype=dtype).view(-1, 1, 1, 1)

    scheduler = samplers.make(first.sampler, pipeline.scheduler.config)
    scheduler.set_timesteps(first.steps, device=device)
    rng = [torch.Generator().manual_seed(r.seed) for r in requests]
    noisy_steps = {"generator": rng} if "generator" in inspect.signature(scheduler.step).parameters else {}
    factor = pipeline.vae_scale_factor
    latents = randn_tensor((len(requests), 4, first.height // factor, first.width // factor), generator=rng, device=device, dtype=dtype)
    latents = latents * scheduler.init_noise_sigma
    steps = len(scheduler.timesteps)  # second-order samplers look twice in a step
    for step, t in enumerate(scheduler.timesteps, 1):
        seen = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        predicted = pipeline.unet(seen, t, encoder_hidden_states=states, added_cond_kwargs=conditions, return_dict=False)[0]
        if guided:
            without, towards = predicted.chunk(2)
            predicted = without + cfg * (towards - without)
        result = scheduler.step(predicted, t, latents, **noisy_steps)
        latents = result.prev_sample.to(dtype)
        clean = getattr(result, "pred_original_sample", None)
        yield step, steps, latents, latents if clean is None else clean


def encode(pipeline: StableDiffusionXLPipeline, requests: Sequence[Request], guided: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Text states (m, 77, width) and pooled vectors (m, width) of a batch, m = n, or 2n with the negatives first.

    Each distinct pair of prompt and negative is encoded once.
    """
    pairs = list(dict.fromkeys((r.prompt, r.negative) for r in requests))
    made = {}
    for prompt, negative in pairs:
        # An absent negative is None: what that means (zeros or the empty text) is the model's own choice.
        made[prompt, negative] = pipeline.encode_prompt(prompt, negative_prompt=negative or None, do_classifier_free_guidance=guided)
    positive, none, pooled, none_pooled = ([made[r.prompt, r.negative][k] for r in requests] for k in range(4))
    if guided:
        return torch.cat([*none, *positive]), torch.cat([*none_pooled, *pooled])
    return torch.cat(positive), torch.cat(pooled)


@torch.no_grad()
def decode(pipeline: StableDiffusionXLPipeline, latents: torch.Tensor) -> list[Image]:
    """Latents (n, 4, h, w) -> n PIL pictures of 8h x 8w."""
    vae = pipeline.vae
    pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    images = pipeline.image_processor.postprocess(pixels, output_type="pil")
    assert isinstance(images, list)
    return images


def shrunk(latents: torch.Tensor) -> torch.Tensor:
    """Latents small enough for a preview."""
    longest = max(latents.shape[-2:])
    if longest <= PREVIEW_LATENTS:
        return latents
    return torch.nn.functional.interpolate(latents, scale_factor=PREVIEW_LATENTS / longest, mode="area")
