"""What is minimised: the error of the noise (or the velocity) that the model predicts, weighted.

Min-SNR weights after Hang et al. 2023 (arXiv 2303.09556), as in diffusers' and kohya's trainers.
"""

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr

from core.prompts.conditioning import Conditioning


class Batch(NamedTuple):
    """Pictures of one size as a step sees them."""

    latents: torch.Tensor
    """Latents, scaled, (n, 4, h, w)."""
    noise: torch.Tensor
    """Noise that is added to the latents, (n, 4, h, w)."""
    timesteps: torch.Tensor
    """Timesteps, (n,), whole numbers from 0 to 999."""
    text: Conditioning
    time_ids: torch.Tensor
    """SDXL's time ids, (n, 6).

    Original height and width, crop top and left, target height and width, in pixels.
    """
    weights: torch.Tensor
    """How much each picture's error counts, (n,)."""


def make_noise_scheduler(pipeline: StableDiffusionXLPipeline) -> DDPMScheduler:
    """Return the model's noise scheduler, with its own terminal SNR and prediction type."""
    made = DDPMScheduler.from_config(pipeline.scheduler.config)
    assert isinstance(made, DDPMScheduler)
    made.alphas_cumprod = made.alphas_cumprod.to(pipeline.unet.device)
    return made


def compute_losses(
    unet: UNet2DConditionModel, noise_scheduler: DDPMScheduler, batch: Batch, min_snr: float | None
) -> torch.Tensor:
    """Return each picture's weighted error, (n,) float32.

    Gradients flow to those parts of the U-Net and the text encoders that are trained.
    """
    dtype = unet.dtype
    noisy = noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)  # type: ignore[arg-type]
    added = {"text_embeds": batch.text.pooled.to(dtype), "time_ids": batch.time_ids}
    predicted = unet(
        noisy.to(dtype),
        batch.timesteps,
        batch.text.states.to(dtype),
        added_cond_kwargs=added,
        return_dict=False,
    )[0].float()
    velocity = noise_scheduler.config.prediction_type == "v_prediction"
    target = (
        noise_scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)  # type: ignore[arg-type]
        if velocity
        else batch.noise
    )
    found = (predicted - target).square().mean((1, 2, 3)) * batch.weights
    return (
        found
        if min_snr is None
        else found * compute_min_snr_weights(noise_scheduler, batch.timesteps, min_snr)
    )


def compute_min_snr_weights(
    noise_scheduler: DDPMScheduler, timesteps: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Return Min-SNR weights, (n,): min(SNR, gamma) / SNR for noise, / (SNR + 1) for velocity."""
    snr = compute_snr(noise_scheduler, timesteps)
    if noise_scheduler.config.prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    # At zero terminal SNR, the limit is 1.
    return torch.where(snr > 0, snr.clamp(max=gamma) / snr.clamp(min=1e-12), torch.ones_like(snr))
