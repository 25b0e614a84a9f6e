"""Trains nano's U-Net on the VAE's latents: SDXL's topology and conditioning, 3.4 M parameters."""

# pyright: reportArgumentType=false
# (diffusers types its configs as 1-tuples and its layers as plain modules)

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from core.nano.pictures import load_all_pictures
from core.nano.stage import BUILD_FOLDER, train_model
from core.nano.text import POOLED_WIDTH
from core.nano.vae import to_tensor
from core.nano.world import Scene, write_caption

STEPS = 11_000
BATCH = 12  # per worker
SNR_GAMMA = 5.0
"""Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556)."""
CAPTION_DROPOUT = 0.1
"""Share of pictures seen without their caption, for classifier-free guidance."""


class TextEncoders(NamedTuple):
    """A tokenizer and the two text encoders, frozen."""

    tokenizer: CLIPTokenizer
    first: CLIPTextModel
    second: CLIPTextModelWithProjection

    @torch.no_grad()
    def __call__(self, texts: list[str], max_length: int = 77) -> tuple[torch.Tensor, torch.Tensor]:
        """Return SDXL's conditioning of the texts.

        That is the penultimate states (n, max_length, 64 + 96) and the pooled vector (n, 96).
        """
        ids = self.tokenizer(
            texts, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
        ).input_ids
        one, two = self.first(ids, output_hidden_states=True), self.second(ids, output_hidden_states=True)
        return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two.text_embeds


class Latents(NamedTuple):
    """Scenes of one size, and the latents of their pictures."""

    scenes: list[Scene]
    values: torch.Tensor  # (n, 4, height / 8, width / 8), scaled
    size: tuple[int, int]  # width, height in pixels


def make_unet() -> UNet2DConditionModel:
    """Return an untrained U-Net with 2 layers a block.

    Its blocks are (Down, CrossDown, CrossDown; mid; CrossUp, CrossUp, Up).
    """
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
        projection_class_embeddings_input_dim=6 * 32 + POOLED_WIDTH,
    )


def make_ddpm_scheduler() -> DDPMScheduler:
    """Return SDXL's noise schedule."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )


@torch.no_grad()
def encode_latents(vae: AutoencoderKL) -> list[Latents]:
    """Return the VAE's latents of all training pictures, kept on disk."""
    found = []
    for size, drawn in load_all_pictures().items():
        file = BUILD_FOLDER / f"latents-{size[0]}x{size[1]}.pt"
        if not file.exists():
            parts = [
                vae.encode(to_tensor(drawn.pixels[i : i + 32])).latent_dist.mean
                for i in range(0, len(drawn.scenes), 32)
            ]
            torch.save((torch.cat(parts) * vae.config.scaling_factor).contiguous(), file)
        found.append(Latents(drawn.scenes, torch.load(file, weights_only=True), size))
    return found


def train_unet(vae: AutoencoderKL, encoders: TextEncoders) -> UNet2DConditionModel:
    """Return the trained U-Net; both encoders and the VAE stay as they are."""
    torch.manual_seed(0)
    unet = make_unet()
    encoders.first.requires_grad_(False)
    encoders.second.requires_grad_(False)
    train_model(
        "unet",
        unet,
        make_denoising_loss(unet, encode_latents(vae), encoders),
        steps=STEPS,
        learning_rate=1.5e-3,
        ema_decay=0.998,
    )
    return unet


def make_denoising_loss(unet: UNet2DConditionModel, data: list[Latents], encoders: TextEncoders):
    """Return the loss function of a step.

    It predicts the noise in one batch of one size, with newly drawn captions.
    """
    noise_schedule = make_ddpm_scheduler()
    # The other sizes cost half as much again.
    shares = torch.tensor([8.0 if part.size == (128, 128) else 1.0 for part in data])

    def compute_loss(step: int, rng: torch.Generator) -> torch.Tensor:
        chance = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
        part = data[int(torch.multinomial(shares, 1, generator=rng))]
        chosen = torch.randint(len(part.scenes), (BATCH,), generator=rng)
        texts = [
            "" if chance.random() < CAPTION_DROPOUT else write_caption(part.scenes[i], chance)
            for i in chosen.tolist()
        ]
        # Captions are shorter than 77 tokens; full padding is seen now and then.
        states, pooled = encoders(texts, 77 if step % 3 == 0 else 44)
        clean = part.values[chosen]
        noise = torch.randn(clean.shape, generator=rng)
        t = torch.randint(1000, (BATCH,), generator=rng)
        noisy = noise_schedule.add_noise(clean, noise, t)  # type: ignore[arg-type]
        width, height = part.size
        time_ids = torch.tensor([[height, width, 0, 0, height, width]]).repeat(BATCH, 1)
        predicted = unet(
            noisy, t, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}
        ).sample
        snr = compute_snr(noise_schedule, t)
        weight = snr.clamp(max=SNR_GAMMA) / snr
        return (F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3)) * weight).mean()

    return compute_loss
