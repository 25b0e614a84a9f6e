"""Trains nano's VAE: SDXL's shape (8x down, 4 channels) in 1.7 M parameters.

Loss: L1, L1 of the image gradients (lines), L1 of the 8x8 averages (colours, which group norm
is slow to carry), and a small KL term that keeps the latents smooth enough to be generated.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from core.nano.pictures import contents, pictures
from core.nano.stage import fit

STEPS = 3_800
CROPPED = 0.85
"""Share of the steps on 64x64 crops; the rest see whole pictures, whose group norms differ."""


ROUGH = 0.1
"""Noise that is added to the latents, whose deviation is about 1.8: what a U-Net leaves. Details must survive it."""


def shape() -> AutoencoderKL:
    """An untrained VAE of nano's shape."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        norm_num_groups=GROUPS,
        sample_size=128,
        force_upcast=False,
    )


GROUPS = 4
REFERENCE = 2.0


@torch.no_grad()
def start_as_thumbnail(vae: AutoencoderKL) -> None:
    """Make the untrained VAE an autoencoder of the picture's 8x8 averages, so that it only has details to learn.

    Left to itself a small VAE finds colours last, since group norm takes away what they are:
    the mean. Here channels 0 and 1 of group g carry colour g and its negative, channels 2 and 3
    a constant and its negative, against which the group's norm leaves the colour readable;
    silu(x) - silu(-x) = x carries it through the last activation. Residual branches start at zero.
    """

    def carry(conv: torch.nn.Conv2d, kernel: torch.Tensor) -> None:
        wide_in, wide_out = conv.in_channels // GROUPS, conv.out_channels // GROUPS
        for g in range(3):
            for sign in (0, 1):
                conv.weight[g * wide_out + sign] = 0
                conv.weight[g * wide_out + sign, g * wide_in + sign] = kernel
                conv.weight[g * wide_out + 2 + sign] = 0
        _refer(conv)

    def _refer(conv: torch.nn.Conv2d) -> None:
        for start in range(0, conv.out_channels, conv.out_channels // GROUPS):
            conv.bias[start : start + 2] = 0
            conv.bias[start + 2], conv.bias[start + 3] = REFERENCE, -REFERENCE
        wide = conv.out_channels // GROUPS
        conv.weight[3 * wide + 2 : 3 * wide + 4] = 0

    def centre(value: float, size: int = 3) -> torch.Tensor:
        kernel = torch.zeros(size, size)
        kernel[size // 2, size // 2] = value
        return kernel

    def enter(conv: torch.nn.Conv2d, value: float) -> None:
        wide = conv.out_channels // GROUPS
        for g in range(3):
            for sign in (0, 1):
                conv.weight[g * wide + sign] = 0
                conv.weight[g * wide + sign, g] = centre(value if sign == 0 else -value)
                conv.weight[g * wide + 2 + sign] = 0
        _refer(conv)

    def leave(norm: torch.nn.GroupNorm, conv: torch.nn.Conv2d, value: float) -> None:
        wide = conv.in_channels // GROUPS
        norm.weight.fill_(REFERENCE * (2 / wide) ** 0.5)  # undoes the division by the group's deviation
        for g in range(3):
            conv.weight[g] *= 0.1
            conv.weight[g, g * wide : g * wide + 4] = 0
            conv.weight[g, g * wide] = centre(value)
            conv.weight[g, g * wide + 1] = centre(-value)
            conv.bias[g] = 0

    blocks = [layer for layer in vae.modules() if hasattr(layer, "conv_shortcut")]
    for block in blocks:
        block.conv2.weight.zero_()
        block.conv2.bias.zero_()
        if block.conv_shortcut is not None:
            carry(block.conv_shortcut, centre(1.0, 1))
    for half in (vae.encoder, vae.decoder):
        half.mid_block.attentions[0].to_out[0].weight.zero_()
        half.mid_block.attentions[0].to_out[0].bias.zero_()
    average = torch.tensor([[0.25, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0]])  # the encoder pads right and below
    smooth = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    for down in vae.encoder.down_blocks[:-1]:
        carry(down.downsamplers[0].conv, average)
    for up in vae.decoder.up_blocks[:-1]:
        carry(up.upsamplers[0].conv, smooth)
    enter(vae.encoder.conv_in, 1.0)
    leave(vae.encoder.conv_norm_out, vae.encoder.conv_out, 2.5)
    vae.encoder.conv_out.weight[4:] *= 0.1
    vae.encoder.conv_out.bias[4:] = -6.0  # log-variance: little noise at first
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.in_channels)[..., None, None])
        conv.bias.zero_()
    enter(vae.decoder.conv_in, 0.5)
    leave(vae.decoder.conv_norm_out, vae.decoder.conv_out, 1.23)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) in -1..1, channels last in memory."""
    return torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction(ours: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Distance of two pictures (n, 3, h, w) in -1..1: pixels, edges, and colours of 8x8 patches."""
    lines = F.l1_loss(ours.diff(dim=-1), truth.diff(dim=-1)) + F.l1_loss(ours.diff(dim=-2), truth.diff(dim=-2))
    return F.l1_loss(ours, truth) + lines + 2 * F.l1_loss(F.avg_pool2d(ours, 8), F.avg_pool2d(truth, 8))


def train() -> AutoencoderKL:
    """The trained VAE, with `scaling_factor` measured on the drawings."""
    torch.manual_seed(0)
    vae = shape()
    start_as_thumbnail(vae)
    vae = vae.to(memory_format=torch.channels_last)
    drawn = list(contents().values())
    shares = torch.tensor([float(len(d.scenes)) for d in drawn])

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        crop = step < CROPPED * STEPS
        pixels = drawn[int(torch.multinomial(shares, 1, generator=rng))].pixels
        _, h, w, _ = pixels.shape
        batch = []
        for i in torch.randint(len(pixels), (4 if crop else 2,), generator=rng).tolist():
            y, x = (int(torch.randint(s - 64 + 1, (), generator=rng)) for s in (h, w)) if crop else (0, 0)
            batch.append(pixels[i, y : y + 64, x : x + 64] if crop else pixels[i])
        truth = to_tensor(np.stack(batch))
        latent = vae.encode(truth).latent_dist
        spread = (latent.var + ROUGH**2).sqrt()
        z = latent.mean + spread * torch.randn(latent.mean.shape, generator=rng)
        return reconstruction(vae.decode(z).sample, truth) + 1e-5 * latent.kl().mean() / latent.mean[0].numel()

    fit("vae", vae, loss_of, steps=STEPS, rate=4e-4)
    with torch.no_grad():
        z = vae.encode(to_tensor(pictures((128, 128)).pixels[:256])).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / float(z.std()), 4))
    return vae
