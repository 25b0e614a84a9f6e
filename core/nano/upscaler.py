"""Trains nano's DATx2: spandrel's DAT in a small shape, on drawings at half and at full size."""

# pyright: reportIndexIssue=false, reportOptionalSubscript=false
# (torch types its layers as plain modules)

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from spandrel.architectures.DAT import DAT

from core.nano.draw import draw_with_face
from core.nano.pictures import make_scene
from core.nano.stage import train_model, update_batch_norm
from core.nano.world import SIZES

STEPS = 2_000
BATCH = 4  # per worker
CROP = 32  # pixels of the small picture
BICUBIC = (-0.0703, 0.8672, 0.2266)
"""Catmull and Rom's weights at 1.25, 0.25 and 0.75 pixels."""


def make_upscaler() -> DAT:
    """Return an untrained DATx2 of nano's shape."""
    # DAT keeps masks for one picture size, `img_size`, and recomputes them for others: 16 keeps
    # them small.
    return DAT(
        img_size=16,
        embed_dim=32,
        depth=[3],
        num_heads=[4],
        split_size=[8, 16],
        expansion_factor=2.0,
        upscale=2,
        drop_path_rate=0.0,
    )


@torch.no_grad()
def start_as_interpolation(model: DAT) -> None:
    """Set an untrained model's weights so that it enlarges as a bicubic filter of 3x3 taps.

    It then has only the rest to learn. Channels 0 to 2 carry the colours and 3 to 5 their
    negatives, since lrelu(x) - lrelu(-x) = 1.01 x.
    """
    right = torch.tensor(BICUBIC) / sum(BICUBIC)
    rows = {0: right.flip(0), 1: right}  # the new pixel lies a quarter to the left, or to the right
    before, enlarge = model.conv_before_upsample[0], model.upsample[0]
    for layer in (model.conv_first, before, enlarge, model.conv_last):
        layer.weight[:6] = 0
        layer.bias[:6] = 0
    model.conv_after_body.weight[:6] = 0
    model.conv_after_body.bias[:6] = 0
    model.conv_last.weight.zero_()
    for colour in range(3):
        model.conv_last.weight[colour, colour, 1, 1] = 1
        for sign, channel in ((1, colour), (-1, colour + 3)):
            model.conv_first.weight[channel, colour, 1, 1] = sign
            before.weight[channel, channel, 1, 1] = 1
        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
            out = 4 * colour + 2 * y + x  # the channel that PixelShuffle reads this pixel from
            kernel = torch.outer(rows[y], rows[x]) / 1.01
            enlarge.weight[out] = 0
            enlarge.bias[out] = 0
            enlarge.weight[out, colour], enlarge.weight[out, colour + 3] = kernel, -kernel


def train_upscaler() -> DAT:
    """Return a DATx2 trained with L1 to turn a drawing's 2x2 averages back into the drawing."""
    torch.manual_seed(0)
    model = make_upscaler()
    start_as_interpolation(model)

    def draw_pair(chance: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return crops of drawings at half their size, and at full size."""
        crops = []
        for _ in range(BATCH // 2):
            large = np.asarray(
                draw_with_face(
                    make_scene(int(chance.integers(500_000)), SIZES[int(chance.integers(3))]), scale=2
                ).picture
            )
            for _ in range(2):  # two places of one drawing
                y, x = (2 * int(chance.integers(side // 2 - CROP + 1)) for side in large.shape[:2])
                crops.append(large[y : y + 2 * CROP, x : x + 2 * CROP])
        truth = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
        return F.avg_pool2d(truth, 2), truth

    def compute_loss(step: int, rng: torch.Generator) -> torch.Tensor:
        small, truth = draw_pair(np.random.default_rng(int(torch.randint(2**31, (), generator=rng))))
        return F.l1_loss(model(small), truth)

    train_model("upscaler", model, compute_loss, steps=STEPS, learning_rate=1e-3, ema_decay=0.995)
    chance = np.random.default_rng(0)
    update_batch_norm(model, (lambda: model(draw_pair(chance)[0]) for _ in range(100)))
    return model


def save_upscaler(model: DAT, folder: Path) -> None:
    """Write `folder/model.safetensors`, in float32 as the real DATx2."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors"
    )
