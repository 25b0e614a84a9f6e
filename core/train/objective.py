"""What is minimised: the error of the noise (or the velocity) that the model predicts, weighted.

Min-SNR weights after Hang et al. 2023 (arXiv 2303.09556), as diffusers' and kohya's trainers have them.
"""

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr

from core.encode import Conditioning


class Batch(NamedTuple):
    """Pictures of one size as a step sees them."""

    clean: torch.Tensor
    """(n, 4, h, w) latents, scaled."""
    noise: torch.Tensor
    """(n, 4, h, w)"""
    times: torch.Tensor
    """(n,) whole, 0 to 999."""
    text: Conditioning
    sizes: torch.Tensor
    """(n, 6) SDXL's time ids: original height and width, crop top and left, target height and width."""
    weights: torch.Tensor
    """(n,): what a picture's error counts."""


def schedule(pipeline: StableDiffusionXLPipeline) -> DDPMScheduler:
    """The model's noise, with zero terminal SNR and what is predicted as the model has them."""
    made = DDPMScheduler.from_config(pipeline.scheduler.config)
    assert isinstance(made, DDPMScheduler)
    made.alphas_cumprod = made.alphas_cumprod.to(pipeline.unet.device)
    return made


def errors(unet: UNet2DConditionModel, noises: DDPMScheduler, batch: Batch, min_snr: float | None) -> torch.Tensor:
    """(n,) float32: each picture's weighted error. Gradients flow to what of the U-Net and the text is trained."""
    dtype = unet.dtype
    noisy = noises.add_noise(batch.clean, batch.noise, batch.times)  # type: ignore[arg-type]
    added = {"text_embeds": batch.text.pooled.to(dtype), "time_ids": batch.sizes}
    predicted = unet(noisy.to(dtype), batch.times, batch.text.states.to(dtype), added_cond_kwargs=added, return_dict=False)[0].float()
    velocity = noises.config.prediction_type == "v_prediction"
    target = noises.get_velocity(batch.clean, batch.noise, batch.times) if velocity else batch.noise  # type: ignore[arg-type]
    found = (predicted - target).square().mean((1, 2, 3)) * batch.weights
    return found if min_snr is None else found * snr_weights(noises, batch.times, min_snr)


def snr_weights(noises: DDPMScheduler, times: torch.Tensor, gamma: float) -> torch.Tensor:
    """min(SNR, gamma) / SNR for noise, / (SNR + 1) for velocity; (n,)."""
    snr = compute_snr(noises, times)
    if noises.config.prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return torch.where(snr > 0, snr.clamp(max=gamma) / snr.clamp(min=1e-12), torch.ones_like(snr))  # at zero terminal SNR, the limit
