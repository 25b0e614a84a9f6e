"""Trains nano's tagger and exports it in WD14 v3's layout: `model.onnx` and `selected_tags.csv`.

As in WD14 v3 the input is (n, size, size, 3), BGR, 0..255, padded to a square with white, and the
output one probability a tag.
"""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.nano.pictures import contents
from core.nano.stage import fit, settle
from core.nano.world import TAGS, tags

SIDE = 128
STEPS = 4_000
BATCH = 32  # a worker
CATEGORY = 0
"""WD14's number for general tags."""


class Tagger(nn.Module):
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
        """(n, SIDE, SIDE, 3) BGR 0..255 -> probabilities (n, tags)."""
        return self.logits(pictures).sigmoid()

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        x = pictures.flip(-1).permute(0, 3, 1, 2) / 127.5 - 1
        return self.head(self.features(x).flatten(1))


def squared(pixels: np.ndarray) -> torch.Tensor:
    """(n, h, w, 3) RGB uint8 -> (n, SIDE, SIDE, 3) BGR 0..255, padded with white, then shrunk."""
    _, h, w, _ = pixels.shape
    x = torch.from_numpy(np.ascontiguousarray(pixels[..., ::-1])).permute(0, 3, 1, 2).float()
    side = max(h, w)
    x = F.pad(x, ((side - w) // 2, (side - w) // 2, (side - h) // 2, (side - h) // 2), value=255)
    if side != SIDE:
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
    return x.permute(0, 2, 3, 1)


def train(name: str = "tagger", steps: int = STEPS, seed: int = 0) -> Tagger:
    """Read drawings, roughened a little so that a generated picture's noise is not news."""
    torch.manual_seed(seed)
    tagger = Tagger()
    drawn = list(contents().values())
    truth = [torch.tensor([[tag in found for tag in TAGS] for found in map(tags, part.scenes)], dtype=torch.float32) for part in drawn]
    shares = torch.tensor([float(len(part.scenes)) for part in drawn])

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        k = int(torch.multinomial(shares, 1, generator=rng))
        chosen = torch.randint(len(drawn[k].scenes), (BATCH,), generator=rng)
        x = squared(drawn[k].pixels[chosen.numpy()])
        x = x * (0.92 + 0.16 * torch.rand(BATCH, 1, 1, 1, generator=rng)) + 8 * torch.randn(BATCH, 1, 1, 3, generator=rng)
        x = x + 10 * torch.rand(BATCH, 1, 1, 1, generator=rng) * torch.randn(x.shape, generator=rng)
        shift = torch.randint(-5, 6, (2,), generator=rng).tolist()
        x = torch.roll(x, shift, (1, 2)).clamp(0, 255)
        return F.binary_cross_entropy_with_logits(tagger.logits(x), truth[k][chosen])

    fit(name, tagger, loss_of, steps=steps, rate=3e-3, average=0.995)
    batches = [part.pixels[i : i + 64] for part in drawn for i in range(0, 1024, 64)]
    settle(tagger, (lambda b=batch: tagger.logits(squared(b)) for batch in batches))
    return tagger


def save(tagger: Tagger, folder: Path) -> None:
    """Write `folder/model.onnx` and `folder/selected_tags.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        tagger.eval(),
        (torch.zeros(1, SIDE, SIDE, 3),),
        str(folder / "model.onnx"),
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        dynamo=False,  # the plain exporter needs no further package
    )
    with (folder / "selected_tags.csv").open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows([i, tag.replace(" ", "_"), CATEGORY, 1] for i, tag in enumerate(TAGS))
