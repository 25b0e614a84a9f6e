"""Trains nano's tagger and exports it in WD14 v3's layout: `model.onnx` and `selected_tags.csv`.

As in WD14 v3 the input is (n, size, size, 3), BGR, 0..255, padded to a square with white, and the
output is one probability per tag.
"""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.nano.pictures import load_all_pictures
from core.nano.stage import train_model, update_batch_norm
from core.nano.world import TAGS, list_tags

SIDE = 128
STEPS = 4_000
BATCH = 32  # per worker
GENERAL_CATEGORY = 0
"""WD14's number for general tags."""


class TaggerNetwork(nn.Module):
    """Six strided convolutions and one linear layer, 0.4 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1, groups=after), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(128 * 4 * 4, len(TAGS))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map (n, SIDE, SIDE, 3) BGR 0..255 to probabilities (n, tags)."""
        return self.logits(pictures).sigmoid()

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map (n, SIDE, SIDE, 3) BGR 0..255 to logits (n, tags)."""
        x = pictures.flip(-1).permute(0, 3, 1, 2) / 127.5 - 1
        return self.head(self.features(x).flatten(1))


def pad_to_square(pixels: np.ndarray) -> torch.Tensor:
    """Pad with white, then shrink: (n, h, w, 3) RGB uint8 -> (n, SIDE, SIDE, 3) BGR 0..255."""
    _, h, w, _ = pixels.shape
    x = torch.from_numpy(np.ascontiguousarray(pixels[..., ::-1])).permute(0, 3, 1, 2).float()
    side = max(h, w)
    x = F.pad(x, ((side - w) // 2, (side - w) // 2, (side - h) // 2, (side - h) // 2), value=255)
    if side != SIDE:
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
    return x.permute(0, 2, 3, 1)


def train_tagger(name: str, steps: int, seed: int) -> TaggerNetwork:
    """Return a tagger trained on drawings.

    They are roughened a little, so that a generated picture's noise is nothing new.
    """
    torch.manual_seed(seed)
    tagger = TaggerNetwork()
    drawn = list(load_all_pictures().values())
    truth = [
        torch.tensor(
            [[tag in found for tag in TAGS] for found in map(list_tags, part.scenes)], dtype=torch.float32
        )
        for part in drawn
    ]
    shares = torch.tensor([float(len(part.scenes)) for part in drawn])

    def compute_loss(step: int, rng: torch.Generator) -> torch.Tensor:
        k = int(torch.multinomial(shares, 1, generator=rng))
        chosen = torch.randint(len(drawn[k].scenes), (BATCH,), generator=rng)
        x = pad_to_square(drawn[k].pixels[chosen.numpy()])
        x = x * (0.92 + 0.16 * torch.rand(BATCH, 1, 1, 1, generator=rng)) + 8 * torch.randn(
            BATCH, 1, 1, 3, generator=rng
        )
        x = x + 10 * torch.rand(BATCH, 1, 1, 1, generator=rng) * torch.randn(x.shape, generator=rng)
        shift = torch.randint(-5, 6, (2,), generator=rng).tolist()
        x = torch.roll(x, shift, (1, 2)).clamp(0, 255)
        return F.binary_cross_entropy_with_logits(tagger.logits(x), truth[k][chosen])

    train_model(name, tagger, compute_loss, steps=steps, learning_rate=3e-3, ema_decay=0.995)
    batches = [part.pixels[i : i + 64] for part in drawn for i in range(0, min(1024, len(part.pixels)), 64)]
    update_batch_norm(tagger, (lambda b=batch: tagger.logits(pad_to_square(b)) for batch in batches))
    return tagger


def save_tagger(tagger: TaggerNetwork, folder: Path) -> None:
    """Write `folder/model.onnx` and `folder/selected_tags.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        tagger.eval(),
        (torch.zeros(1, SIDE, SIDE, 3),),
        str(folder / "model.onnx"),
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        dynamo=False,  # the older exporter needs no further package
    )
    with (folder / "selected_tags.csv").open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows([i, tag.replace(" ", "_"), GENERAL_CATEGORY, 1] for i, tag in enumerate(TAGS))
