"""The one denoising loop, from noise or a picture, whole or in a mask; and the VAE at both ends.

Each request's noise, also what samplers add on the way, is drawn from its own CPU generator, so a
seed gives the same picture on every device and in every batch.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count, pairwise
from typing import NamedTuple

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from core.generate.stages import schedules
from core.generate.stages.solvers import SOLVERS, Prediction
from core.prompts.conditioning import encode_requests
from core.prompts.grammar import split_parts
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
    prompt_steps: int | None = None
    """Steps over which a prompt's changes are counted; `None` for `Request.steps`."""


Predictor = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""What the U-Net predicts, with guidance and without, from latents in its own scale at a timestep, with
the prompts of a call, counted from 0."""


@torch.no_grad()
def denoise(
    pipeline: StableDiffusionXLPipeline,
    requests: Sequence[Request],
    start: DenoiseStart | None = None,
    steps_before: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[DenoiseState]:
    """Denoise one batch of requests and yield the state after each step.

    The requests have the same size, steps, sampler, schedule, CFG rescale and number of parts and chunks,
    and all are guided or none is. `steps_before` is the number of steps of an earlier pass, for prompts
    that change at a step. `on_step` is told the step before each call of the model, as A1111 counts: from
    0, and one behind until the step's first call is done.
    """
    first = requests[0]
    old = first.schedule in samplers.OLD_SCHEDULES
    per_step = first.calls // first.steps
    counted = first.steps if old or start is None else start.prompt_steps or first.steps
    predict = make_predictor(pipeline, requests, per_step * counted, per_step * steps_before)
    rng, noise = draw_seed_noise(pipeline, requests)
    run = _run_old_schedule if old else _run_solver
    yield from run(pipeline, first, start, predict, rng, noise, on_step)


def make_predictor(
    pipeline: StableDiffusionXLPipeline, requests: Sequence[Request], calls: int, calls_before: int = 0
) -> Predictor:
    """Return what asks the U-Net about all requests, with and without their prompts.

    `calls` are those over which a prompt's changes are counted, after `calls_before` of an earlier pass.
    Prompts joined by `AND` guide together: each pulls away from the prediction without any by its
    weight, as in A1111 (Liu et al. 2022, arXiv 2206.01714).
    """
    first, parts = requests[0], [split_parts(r.prompt) for r in requests]
    joined = len(parts[0]) > 1
    guided = first.is_guided or joined
    rows = guided + len(parts[0])
    device, dtype = pipeline._execution_device, pipeline.unet.dtype
    conditioning = encode_requests(pipeline, requests, guided, calls, calls_before)
    size = torch.tensor(
        [[first.height, first.width, 0, 0, first.height, first.width]], device=device, dtype=dtype
    )
    time_ids = size.repeat(len(requests) * rows, 1)
    weights = torch.tensor([[part.weight for part in each] for each in parts], device=device)
    cfg = torch.tensor([r.cfg for r in requests], device=device).view(-1, 1, 1, 1)

    def predict(seen: torch.Tensor, t: torch.Tensor, call: int) -> tuple[torch.Tensor, torch.Tensor]:
        states, pooled = conditioning(call)
        predicted = pipeline.unet(
            (torch.cat([seen] * rows) if guided else seen).to(dtype),
            t,
            encoder_hidden_states=states,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            return_dict=False,
        )[0].float()
        if not guided:
            return predicted, predicted
        without, *towards = predicted.chunk(rows)
        if joined:
            pulls = torch.stack(towards, 1) - without[:, None]
            predicted = torch.cat([without, without + (pulls * weights[:, :, None, None, None]).sum(1)])
        return apply_cfg(predicted, cfg, first.cfg_rescale), without

    return predict


def _run_solver(
    pipeline: StableDiffusionXLPipeline,
    request: Request,
    start: DenoiseStart | None,
    predict: Predictor,
    rng: list[torch.Generator],
    noise: torch.Tensor,
    on_step: Callable[[int], None] | None,
) -> Iterator[DenoiseState]:
    """Go down the levels of the request's schedule by its sampler's solver.

    In a mask, as in A1111, what the model predicts is the picture wherever that stays.
    """
    config, traits = pipeline.scheduler.config, samplers.SAMPLERS[request.sampler]
    own = schedules.find_model_levels(config)
    planned = start.schedule_steps if start else request.steps
    levels = schedules.build_levels(request.sampler, request.schedule, own, planned)
    if start:
        levels = levels[-request.steps - 1 :]
    if request.sampler == "Restart":
        levels = schedules.add_restarts(levels)
    steps, calls = sum(sigma > to for sigma, to in pairwise(levels)), count()
    kept, mask = (None, None) if start is None else (start.latents.to(noise), start.mask)

    def hold(latents: torch.Tensor) -> torch.Tensor:
        return latents if mask is None or kept is None else kept + mask.to(noise) * (latents - kept)

    done, is_first = 0, True

    def model(x: torch.Tensor, sigma: float) -> Prediction:
        nonlocal is_first
        if on_step:
            on_step(max(0, done - is_first))
        is_first = False
        t = torch.tensor(schedules.timestep_at(own, sigma), dtype=torch.float32, device=x.device)
        scale = math.hypot(1, sigma)
        said = predict(x / scale, t, next(calls))
        return Prediction(
            *(
                hold(x / scale**2 - one * (sigma / scale))
                if config.prediction_type == "v_prediction"
                else hold(x - sigma * one)
                for one in said
            )
        )

    def draw() -> torch.Tensor:
        return randn_tensor(noise.shape, generator=rng, device=noise.device, dtype=noise.dtype)

    first = math.hypot(1, levels[0]) if traits.unit_noise else levels[0]
    noisy = noise * first if kept is None else kept + noise * levels[0]
    for done, (latents, clean) in enumerate(SOLVERS[request.sampler](model, noisy, levels, draw), 1):
        yield DenoiseState(done, steps, hold(latents) if done == steps else latents, clean)
        is_first = True


def _run_old_schedule(
    pipeline: StableDiffusionXLPipeline,
    request: Request,
    start: DenoiseStart | None,
    predict: Predictor,
    rng: list[torch.Generator],
    noise: torch.Tensor,
    on_step: Callable[[int], None] | None,
) -> Iterator[DenoiseState]:
    """Denoise with diffusers' schedulers and spacing, so that pictures of version 0.1 are remade.

    The maths is that of `StableDiffusionXLPipeline`, `...Img2ImgPipeline` and `...InpaintPipeline`.
    """
    scheduler = samplers.make_scheduler(request.sampler, request.schedule, pipeline.scheduler.config)
    scheduler.set_timesteps(start.schedule_steps if start else request.steps, device=noise.device)
    skipped = (start.schedule_steps - request.steps) * scheduler.order if start else 0
    if start and hasattr(scheduler, "set_begin_index"):  # DDIM finds its place by the timestep
        scheduler.set_begin_index(skipped)
    times, many = scheduler.timesteps[skipped:], len(noise)
    noisy_steps = {"generator": rng} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = (
        scheduler.add_noise(start.latents.to(noise), noise, times[:1].repeat(many))
        if start
        else noise * scheduler.init_noise_sigma
    )
    for i, t in enumerate(times):
        # Second-order samplers run the model twice in a step; a prompt's steps were counted from 1.
        seen = scheduler.scale_model_input(latents, t)
        if on_step:
            on_step(max(0, i * request.steps // len(times) - 1))
        predicted = predict(seen, t, 1 + i * request.steps // len(times))[0]
        result = scheduler.step(predicted, t, latents, **noisy_steps)
        latents = result.prev_sample.float()
        if start and start.mask is not None:
            kept, mask = start.latents.to(latents), start.mask.to(latents)
            if i + 1 < len(times):
                kept = scheduler.add_noise(kept, noise, times[i + 1 : i + 2].repeat(many))
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


def apply_cfg(predicted: torch.Tensor, cfg: torch.Tensor, rescale: float = 0.0) -> torch.Tensor:
    """Combine two predictions by classifier-free guidance, of arXiv 2207.12598.

    `predicted` is (2n, 4, h, w), first without the prompt, then with it; `cfg` is (n, 1, 1, 1). By the
    share `rescale`, the result gets the deviation of the prediction with the prompt (arXiv 2305.08891,
    section 3.4), which keeps high guidance from burning a picture out.
    """
    without, towards = predicted.chunk(2)
    guided = without + cfg * (towards - without)
    if not rescale:
        return guided
    deviations = (one.std(dim=(1, 2, 3), keepdim=True) for one in (towards, guided))
    return guided * (1 - rescale + rescale * next(deviations) / next(deviations))


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
