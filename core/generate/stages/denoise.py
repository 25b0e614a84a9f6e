"""The one denoising loop, from noise or a picture, whole or in a mask; and the VAE at both ends.

Each request's noise, ancestral noise included, is drawn from its own CPU generator in the order
of diffusers' pipelines, so a seed gives the same picture on every device and in every batch.
The maths is that of `StableDiffusionXLPipeline`, `...Img2ImgPipeline` and `...InpaintPipeline`.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from core.prompts.conditioning import encode_requests
from core.schema import samplers
from core.schema.types import Request


class DenoiseState(NamedTuple):
    """The state after a denoising step."""

    step: int
    steps: int
    latents: torch.Tensor
    """(n, 4, height / 8, width / 8)"""
    clean: torch.Tensor
    """(n, 4, height / 8, width / 8): the final latents as the model predicts them."""


class DenoiseStart(NamedTuple):
    """Latents of existing pictures that denoising starts from instead of pure noise."""

    latents: torch.Tensor
    """(n, 4, height / 8, width / 8)"""
    schedule_steps: int
    """Steps of the whole schedule from noise, of which only the last `Request.steps` are run."""
    mask: torch.Tensor | None = None
    """(n, 1, height / 8, width / 8): 1 where the picture may change."""


@torch.no_grad()
def denoise(
    pipeline: StableDiffusionXLPipeline,
    requests: Sequence[Request],
    start: DenoiseStart | None = None,
    steps_before: int = 0,
) -> Iterator[DenoiseState]:
    """Denoise one batch of requests and yield the state after each step.

    The requests have the same size, steps, sampler and number of chunks, and all are guided or none
    is. `steps_before` is the number of steps of an earlier pass, for prompts that change at a step.
    """
    first = requests[0]
    guided = first.is_guided
    device, dtype = pipeline._execution_device, pipeline.unet.dtype
    conditioning = encode_requests(pipeline, requests, guided, steps_before)
    size = torch.tensor(
        [[first.height, first.width, 0, 0, first.height, first.width]], device=device, dtype=dtype
    )
    time_ids = size.repeat(len(requests) * (1 + guided), 1)
    cfg = torch.tensor([r.cfg for r in requests], device=device).view(-1, 1, 1, 1)

    scheduler, times = _make_schedule(pipeline, first, start, device)
    rng, noise = draw_seed_noise(pipeline, requests)
    noisy_steps = {"generator": rng} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = (
        scheduler.add_noise(start.latents.to(noise), noise, times[:1].repeat(len(requests)))
        if start
        else noise * scheduler.init_noise_sigma
    )
    for i, t in enumerate(times):
        # Second-order samplers run the model twice in a step.
        states, pooled = conditioning(1 + i * first.steps // len(times))
        seen = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        conditions_added = {"text_embeds": pooled, "time_ids": time_ids}
        predicted = pipeline.unet(
            seen.to(dtype),
            t,
            encoder_hidden_states=states,
            added_cond_kwargs=conditions_added,
            return_dict=False,
        )[0].float()
        if guided:
            predicted = apply_cfg(predicted, cfg)
        result = scheduler.step(predicted, t, latents, **noisy_steps)
        latents = result.prev_sample.float()
        if start and start.mask is not None:
            kept, mask = start.latents.to(latents), start.mask.to(latents)
            if i + 1 < len(times):
                kept = scheduler.add_noise(kept, noise, times[i + 1 : i + 2].repeat(len(requests)))
            latents = kept + mask * (latents - kept)
        clean = getattr(result, "pred_original_sample", None)
        yield DenoiseState(i + 1, len(times), latents, latents if clean is None else clean)


def draw_seed_noise(
    pipeline: StableDiffusionXLPipeline, requests: Sequence[Request]
) -> tuple[list[torch.Generator], torch.Tensor]:
    """Draw the noise of each request's seed, (n, 4, height / 8, width / 8).

    Returns the generators, too, from which samplers draw further. The noise is float32 whatever the
    model's dtype, since bfloat16 would draw other, coarser noise.
    """
    rng = [torch.Generator().manual_seed(request.seed) for request in requests]
    factor = pipeline.vae_scale_factor
    shape = (len(requests), 4, requests[0].height // factor, requests[0].width // factor)
    device = pipeline._execution_device
    return rng, randn_tensor(shape, generator=rng, device=device, dtype=torch.float32)


def apply_cfg(predicted: torch.Tensor, cfg: torch.Tensor) -> torch.Tensor:
    """Combine two predictions by classifier-free guidance, of arXiv 2207.12598.

    `predicted` is (2n, 4, h, w), first without the prompt, then with it; `cfg` is (n, 1, 1, 1).
    """
    without, towards = predicted.chunk(2)
    return without + cfg * (towards - without)


def _make_schedule(
    pipeline: StableDiffusionXLPipeline, request: Request, start: DenoiseStart | None, device: torch.device
) -> tuple[Any, torch.Tensor]:
    """Make a request's scheduler, set to its first step, and return it with the timesteps to run."""
    scheduler = samplers.make_scheduler(request.sampler, pipeline.scheduler.config)
    scheduler.set_timesteps(start.schedule_steps if start else request.steps, device=device)
    skipped = (start.schedule_steps - request.steps) * scheduler.order if start else 0
    if start and hasattr(scheduler, "set_begin_index"):  # DDIM finds its place by the timestep
        scheduler.set_begin_index(skipped)
    return scheduler, scheduler.timesteps[skipped:]


@torch.no_grad()
def decode(pipeline: StableDiffusionXLPipeline, latents: torch.Tensor) -> list[Image.Image]:
    """Decode latents (n, 4, h, w) to n RGB pictures of 8h x 8w pixels."""
    vae = pipeline.vae
    pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    images = pipeline.image_processor.postprocess(pixels, output_type="pil")
    assert isinstance(images, list)
    return images


@torch.no_grad()
def encode_pictures(pipeline: StableDiffusionXLPipeline, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Encode n RGB pictures of one size to latents (n, 4, h / 8, w / 8).

    The sides are multiples of 8 pixels. The latents are the VAE's mean, without random sampling.
    """
    vae = pipeline.vae
    pixels = pipeline.image_processor.preprocess(list(pictures)).to(pipeline._execution_device, vae.dtype)
    return vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
