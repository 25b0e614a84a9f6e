"""The one denoising loop, from noise or from a picture, whole or inside a mask; and the VAE at both ends.

Each request's noise, ancestral noise included, is drawn from its own CPU generator in the order
of diffusers' pipelines, so a seed gives the same picture on every device and in every batch.
The maths is that of `StableDiffusionXLPipeline`, `...Img2ImgPipeline` and `...InpaintPipeline`.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from core import samplers
from core.encode import conditions
from core.types import Request


class Moment(NamedTuple):
    """What is there after a step."""

    step: int
    steps: int
    latents: torch.Tensor
    """(n, 4, height / 8, width / 8)"""
    clean: torch.Tensor
    """The same, as the model expects them to end."""


class Start(NamedTuple):
    """Pictures that are changed instead of made anew."""

    latents: torch.Tensor
    """(n, 4, height / 8, width / 8)"""
    schedule: int
    """Steps of the whole way from noise, of which only the last `Request.steps` are gone."""
    mask: torch.Tensor | None = None
    """(n, 1, height / 8, width / 8): 1 where the picture may change."""


@torch.no_grad()
def denoise(pipeline: StableDiffusionXLPipeline, requests: Sequence[Request], start: Start | None = None, gone: int = 0) -> Iterator[Moment]:
    """One batch of requests of the same size, steps, sampler and number of chunks, all guided or none.

    `gone` are the steps of a pass before this one, for prompts that turn at a step.
    """
    first = requests[0]
    guided = first.cfg > 1
    device, dtype = pipeline._execution_device, pipeline.unet.dtype  # noise and latents are float32: bfloat16 draws other, cruder noise
    conditioning = conditions(pipeline, requests, guided, gone)
    size = torch.tensor([[first.height, first.width, 0, 0, first.height, first.width]], device=device, dtype=dtype)
    time_ids = size.repeat(len(requests) * (1 + guided), 1)
    cfg = torch.tensor([r.cfg for r in requests], device=device).view(-1, 1, 1, 1)

    scheduler = samplers.make(first.sampler, pipeline.scheduler.config)
    scheduler.set_timesteps(start.schedule if start else first.steps, device=device)
    skipped = (start.schedule - first.steps) * scheduler.order if start else 0
    times = scheduler.timesteps[skipped:]
    if start and hasattr(scheduler, "set_begin_index"):  # DDIM finds its place by the time
        scheduler.set_begin_index(skipped)
    rng = [torch.Generator().manual_seed(r.seed) for r in requests]
    noisy_steps = {"generator": rng} if "generator" in inspect.signature(scheduler.step).parameters else {}
    factor = pipeline.vae_scale_factor
    noise = randn_tensor((len(requests), 4, first.height // factor, first.width // factor), generator=rng, device=device, dtype=torch.float32)
    latents = scheduler.add_noise(start.latents.to(noise), noise, times[:1].repeat(len(requests))) if start else noise * scheduler.init_noise_sigma
    for i, t in enumerate(times):
        states, pooled = conditioning(1 + i * first.steps // len(times))  # second-order samplers look twice in a step
        seen = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        conditions_added = {"text_embeds": pooled, "time_ids": time_ids}
        predicted = pipeline.unet(seen.to(dtype), t, encoder_hidden_states=states, added_cond_kwargs=conditions_added, return_dict=False)[0].float()
        if guided:
            without, towards = predicted.chunk(2)
            predicted = without + cfg * (towards - without)
        result = scheduler.step(predicted, t, latents, **noisy_steps)
        latents = result.prev_sample.float()
        if start and start.mask is not None:
            kept, mask = start.latents.to(latents), start.mask.to(latents)
            if i + 1 < len(times):
                kept = scheduler.add_noise(kept, noise, times[i + 1 : i + 2].repeat(len(requests)))
            latents = kept + mask * (latents - kept)
        clean = getattr(result, "pred_original_sample", None)
        yield Moment(i + 1, len(times), latents, latents if clean is None else clean)


@torch.no_grad()
def decode(pipeline: StableDiffusionXLPipeline, latents: torch.Tensor) -> list[Image.Image]:
    """Latents (n, 4, h, w) -> n RGB pictures of 8h x 8w."""
    vae = pipeline.vae
    pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    images = pipeline.image_processor.postprocess(pixels, output_type="pil")
    assert isinstance(images, list)
    return images


@torch.no_grad()
def encode_pictures(pipeline: StableDiffusionXLPipeline, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """n RGB pictures of one size, sides multiples of 8 -> latents (n, 4, h / 8, w / 8): the VAE's mean, no chance in it."""
    vae = pipeline.vae
    pixels = pipeline.image_processor.preprocess(list(pictures)).to(pipeline._execution_device, vae.dtype)
    return vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
