"""Trains nano's face detector and exports it in YOLOv8's layout.

That is `model.onnx`, (1, 3, 128, 128) -> (1, 5, 256).
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.generate.stages.detector import GREY
from core.nano.draw import draw_with_face
from core.nano.pictures import make_scene
from core.nano.stage import train_model, update_batch_norm
from core.nano.world import SIZES

SIDE = 128
STRIDE = 8  # pixels of the input per cell
STEPS = 1_200
BATCH = 16  # per worker
CLAIM_RADIUS = 1.3  # cells; a face is claimed by the cells whose centres are within it
MIN_SCALE = 0.4  # of the frame; pictures are also shown shrunk


class DetectorNetwork(nn.Module):
    """Convolutions down to one cell per 8 pixels, with a wide view at the end; 0.3 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((3, 16, 32, 64)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        for wide in (2, 4):
            layers += [nn.Conv2d(64, 64, 3, padding=wide, dilation=wide), nn.BatchNorm2d(64), nn.ReLU()]
        self.cell_centres: torch.Tensor
        self.features = nn.Sequential(*layers, nn.Conv2d(64, 5, 1))
        rows = torch.arange(SIDE // STRIDE) * STRIDE + STRIDE / 2
        self.register_buffer(
            "cell_centres",
            torch.stack(torch.meshgrid(rows, rows, indexing="xy")).flatten(1),
            persistent=False,
        )

    def predict_raw(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map (n, 3, SIDE, SIDE) in 0..1 to (n, 5, cells).

        The 5 values are centre x, centre y, width and height in pixels, and the score's logit.
        """
        x = self.features(pictures).flatten(2)
        return torch.cat([self.cell_centres + STRIDE * x[:, :2], SIDE / 4 * x[:, 2:4].exp(), x[:, 4:]], dim=1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return boxes and scores as YOLOv8 does: the score is a probability."""
        found = self.predict_raw(pictures)
        return torch.cat([found[:, :4], found[:, 4:].sigmoid()], dim=1)


def _draw_example(rng: np.random.Generator) -> tuple[np.ndarray, tuple[float, float, float, float] | None]:
    """Return a drawing somewhere in a grey square of SIDE, and its face in the square's pixels."""
    drawn = draw_with_face(make_scene(int(rng.integers(500_000)), SIZES[int(rng.integers(len(SIZES)))]))
    width, height = drawn.picture.size
    scale = SIDE / max(width, height) * (1.0 if rng.random() < 0.6 else rng.uniform(MIN_SCALE, 1.0))
    small = drawn.picture.resize((round(width * scale), round(height * scale)))
    x, y = (int(rng.integers(SIDE - side + 1)) if rng.random() < 0.5 else 0 for side in small.size)
    square = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    square[y : y + small.height, x : x + small.width] = np.asarray(small)
    if drawn.face is None:
        return square, None
    # Faces are cut at the picture's edges, as the detector is to find them.
    left, right = (min(max(edge * scale, 0), small.width) + x for edge in drawn.face[::2])
    top, bottom = (min(max(edge * scale, 0), small.height) + y for edge in drawn.face[1::2])
    return square, (left, top, right, bottom)


def train_detector() -> DetectorNetwork:
    """Return a detector trained to find the face in drawings of any size in the frame."""
    torch.manual_seed(0)
    detector = DetectorNetwork()

    def compute_loss(step: int, rng: torch.Generator) -> torch.Tensor:
        chance = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
        squares, faces = zip(*(_draw_example(chance) for _ in range(BATCH)), strict=True)
        x = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
        x = (
            x * (0.9 + 0.2 * torch.rand(BATCH, 1, 1, 1, generator=rng))
            + 0.04 * torch.randn(x.shape, generator=rng)
        ).clamp(0, 1)
        found = detector.predict_raw(x)
        box = torch.tensor([face or (-999.0,) * 4 for face in faces])
        middle, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
        # (n, cells)
        near = (detector.cell_centres[None] - middle[..., None]).norm(dim=1) < CLAIM_RADIUS * STRIDE
        sure = F.binary_cross_entropy_with_logits(found[:, 4], near.float())
        target = torch.cat([middle, size], dim=1)[..., None].expand(-1, -1, found.shape[2])
        off = ((found[:, :4] - target).abs() / (0.5 * size.mean(1).clamp(min=1))[:, None, None]).mean(1)
        return 10 * sure + (off * near).sum() / near.sum().clamp(min=1)

    train_model("detector", detector, compute_loss, steps=STEPS, learning_rate=2e-3, ema_decay=0.995)
    chance = np.random.default_rng(0)
    batches = (np.stack([_draw_example(chance)[0] for _ in range(32)]) for _ in range(20))
    update_batch_norm(
        detector,
        (
            lambda b=batch: detector.predict_raw(torch.from_numpy(b).permute(0, 3, 1, 2).float() / 255)
            for batch in batches
        ),
    )
    return detector


def save_detector(detector: DetectorNetwork, folder: Path) -> None:
    """Write `folder/model.onnx`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        detector,
        (torch.zeros(1, 3, SIDE, SIDE),),
        str(folder / "model.onnx"),
        input_names=["images"],
        output_names=["output0"],
        dynamo=False,
    )
