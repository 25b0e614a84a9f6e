"""Trains nano's U-Net: SDXL's topology and conditioning in 3.4 M parameters, on the VAE's latents."""

# pyright: reportArgumentType=false
# (diffusers types its configs as 1-tuples and its layers as plain modules)

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from core.nano.pictures import contents
from core.nano.stage import BUILD, fit
from core.nano.text import POOLED
from core.nano.vae import to_tensor
from core.nano.world import Scene, caption

STEPS = 11_000
BATCH = 12  # a worker
SNR_GAMMA = 5.0
"""Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556)."""
NO_PROMPT = 0.1
"""Share of pictures seen without their caption, for classifier-free guidance."""


class Encoders(NamedTuple):
    """A tokenizer and the two text encoders, frozen."""

    tokenizer: CLIPTokenizer
    first: CLIPTextModel
    second: CLIPTextModelWithProjection

    @torch.no_grad()
    def __call__(self, texts: list[str], places: int = 77) -> tuple[torch.Tensor, torch.Tensor]:
        """SDXL's conditioning: penultimate states (n, places, 64 + 96) and the pooled vector (n, 96)."""
        ids = self.tokenizer(texts, padding="max_length", max_length=places, truncation=True, return_tensors="pt").input_ids
        one, two = self.first(ids, output_hidden_states=True), self.second(ids, output_hidden_states=True)
        return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two.text_embeds


class Latents(NamedTuple):
    scenes: list[Scene]
    values: torch.Tensor  # (n, 4, height / 8, width / 8), scaled
    size: tuple[int, int]  # width, height in pixels


def shape() -> UNet2DConditionModel:
    """An untrained U-Net: (Down, CrossDown, CrossDown; mid; CrossUp, CrossUp, Up), 2 layers a block."""
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 64, 72),
        layers_per_block=2,
        attention_head_dim=(6, 8, 9),  # SDXL's name for the number of heads
        norm_num_groups=8,
        cross_attention_dim=64 + 96,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + POOLED,
    )


def schedule() -> DDPMScheduler:
    """SDXL's noise schedule."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


@torch.no_grad()
def latents(vae: AutoencoderKL) -> list[Latents]:
    """All training pictures through the VAE's encoder, kept on disk."""
    found = []
    for size, drawn in contents().items():
        file = BUILD / f"latents-{size[0]}x{size[1]}.pt"
        if not file.exists():
            parts = [vae.encode(to_tensor(drawn.pixels[i : i + 32])).latent_dist.mean for i in range(0, len(drawn.scenes), 32)]
            torch.save((torch.cat(parts) * vae.config.scaling_factor).contiguous(), file)
        found.append(Latents(drawn.scenes, torch.load(file, weights_only=True), size))
    return found


def train(vae: AutoencoderKL, encoders: Encoders) -> UNet2DConditionModel:
    """The trained U-Net; both encoders and the VAE stay as they are."""
    torch.manual_seed(0)
    unet = shape()
    encoders.first.requires_grad_(False)
    encoders.second.requires_grad_(False)
    fit("unet", unet, denoising_loss(unet, latents(vae), encoders), steps=STEPS, rate=1.5e-3, average=0.998)
    return unet


def denoising_loss(unet: UNet2DConditionModel, data: list[Latents], encoders: Encoders):
    """The loss of step n: noise predicted in one batch of one size, with captions drawn anew."""
    noise_schedule = schedule()
    shares = torch.tensor([8.0 if part.size == (128, 128) else 1.0 for part in data])  # the others cost half as much again

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        chance = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
        part = data[int(torch.multinomial(shares, 1, generator=rng))]
        chosen = torch.randint(len(part.scenes), (BATCH,), generator=rng)
        texts = ["" if chance.random() < NO_PROMPT else caption(part.scenes[i], chance) for i in chosen.tolist()]
        states, pooled = encoders(texts, 77 if step % 3 == 0 else 44)  # captions are shorter; the padding is seen now and then
        clean = part.values[chosen]
        noise = torch.randn(clean.shape, generator=rng)
        t = torch.randint(1000, (BATCH,), generator=rng)
        noisy = noise_schedule.add_noise(clean, noise, t)  # type: ignore[arg-type]
        width, height = part.size
        time_ids = torch.tensor([[height, width, 0, 0, height, width]]).repeat(BATCH, 1)
        predicted = unet(noisy, t, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}).sample
        snr = compute_snr(noise_schedule, t)
        weight = snr.clamp(max=SNR_GAMMA) / snr
        return (F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3)) * weight).mean()

    return loss_of
