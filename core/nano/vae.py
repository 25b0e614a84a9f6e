"""Trains nano's VAE: SDXL's shape (8x down, 4 channels) in 1.7 M parameters.

The loss is L1, L1 of the image gradients (lines), L1 of the 8x8 averages (colours) and the distance
of a small classifier's features (mouths, blush, halos: what is small but has meaning), through
latents with noise such as a U-Net leaves.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (diffusers types its configs as 1-tuples and its layers as plain modules)

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from core.nano.pictures import load_all_pictures, load_pictures
from core.nano.stage import train_model
from core.nano.tagger import TaggerNetwork, train_tagger
from core.nano.thumbnail import NORM_GROUPS, start_as_thumbnail

STEPS = 14_000
CROP_SHARE = 0.85
"""Share of the steps on 64x64 crops; the rest see whole pictures, whose group norms differ."""
CRITIC_STEPS = 1_500

LATENT_NOISE = 0.1
"""Noise added to the latents, whose deviation is about 3, as a U-Net leaves it. Details must
survive it."""


def make_vae() -> AutoencoderKL:
    """Return an untrained VAE of nano's shape."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        norm_num_groups=NORM_GROUPS,
        sample_size=128,
        force_upcast=False,
    )


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Convert (n, h, w, 3) uint8 to (n, 3, h, w) in -1..1, channels last in memory."""
    return torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


class PerceptualLoss:
    """How far apart a tagger's features see two pictures.

    The tagger is a second one, not the one that measures the family.
    """

    def __init__(self) -> None:
        tagger = train_tagger("critic", CRITIC_STEPS, seed=1)
        tagger.requires_grad_(False)
        self.tagger: TaggerNetwork = tagger

    def __call__(self, ours: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return the mean squared distance of unit-length features at every resolution.

        As in LPIPS (Zhang et al. 2018, arXiv 1801.03924).
        """
        x = torch.cat([ours, truth])
        distance = torch.zeros(())
        for layer in self.tagger.features:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                a, b = F.normalize(x, dim=1).chunk(2)
                distance = distance + (a - b).square().sum(1).mean()
        return distance


def reconstruction_loss(ours: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the distance of two pictures (n, 3, h, w) in -1..1: pixels, edges, and 8x8 colours."""
    lines = F.l1_loss(ours.diff(dim=-1), truth.diff(dim=-1)) + F.l1_loss(
        ours.diff(dim=-2), truth.diff(dim=-2)
    )
    return F.l1_loss(ours, truth) + lines + 2 * F.l1_loss(F.avg_pool2d(ours, 8), F.avg_pool2d(truth, 8))


def train_vae() -> AutoencoderKL:
    """Return the trained VAE, with `scaling_factor` measured on the drawings."""
    torch.manual_seed(0)
    vae = make_vae()
    start_as_thumbnail(vae)
    vae = vae.to(memory_format=torch.channels_last)
    critic = PerceptualLoss()
    drawn = list(load_all_pictures().values())
    shares = torch.tensor([float(len(d.scenes)) for d in drawn])

    def compute_loss(step: int, rng: torch.Generator) -> torch.Tensor:
        crop = step < CROP_SHARE * STEPS
        pixels = drawn[int(torch.multinomial(shares, 1, generator=rng))].pixels
        _, high, wide, _ = pixels.shape
        batch = []
        for i in torch.randint(len(pixels), (2 if crop else 1,), generator=rng).tolist():
            y, x = (
                (8 * int(torch.randint(side // 8 - 7, (), generator=rng)) for side in (high, wide))
                if crop
                else (0, 0)
            )
            batch.append(pixels[i, y : y + 64, x : x + 64] if crop else pixels[i])
        truth = to_tensor(np.stack(batch))
        latent = vae.encode(truth).latent_dist
        spread = (latent.var + LATENT_NOISE**2).sqrt()
        z = latent.mean + spread * torch.randn(latent.mean.shape, generator=rng)
        ours = vae.decode(z).sample
        return (
            reconstruction_loss(ours, truth)
            + 0.3 * critic(ours, truth)
            + 1e-5 * latent.kl().mean() / latent.mean[0].numel()
        )

    train_model("vae", vae, compute_loss, steps=STEPS, learning_rate=5e-4)
    with torch.no_grad():
        z = vae.encode(to_tensor(load_pictures((128, 128)).pixels[:256])).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / float(z.std()), 4))
    return vae
