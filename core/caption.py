"""Reads the tags of a picture: WD14-v3-layout ONNX taggers through onnxruntime."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from core.memory import enough_memory

FULL = "This machine ran out of memory for the tagger: end other programs, or read fewer pictures at once."
NANO = Path(__file__).parent / "nano" / "weights" / "tagger"
"""The embedded tagger."""


class Tagger:
    """A folder with `model.onnx` and `selected_tags.csv`, as SmilingWolf's taggers are laid out.

    Input of the model: (n, size, size, 3) float32, BGR, 0..255, padded to a square with white.
    Output: (n, tags) probabilities. `categories` has each tag's kind: 0 general, 4 a character, 9 a rating.
    """

    def __init__(self, folder: Path = NANO):
        with enough_memory(FULL):
            self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.size = int(self.session.get_inputs()[0].shape[1])
        with (folder / "selected_tags.csv").open(newline="", encoding="utf-8") as table:
            rows = list(csv.DictReader(table))
        self.tags = [row["name"].replace("_", " ") for row in rows]
        self.categories = {tag: int(row["category"]) for tag, row in zip(self.tags, rows, strict=True)}

    def read(self, pictures: Sequence[Image.Image]) -> list[dict[str, float]]:
        """For each picture, every tag's probability. Raises `UserError` where memory runs out."""
        with enough_memory(FULL):
            batch = np.stack([self._prepared(picture) for picture in pictures])
            (found,) = self.session.run(None, {self.session.get_inputs()[0].name: batch})
        return [dict(zip(self.tags, map(float, row), strict=True)) for row in np.asarray(found)]

    def _prepared(self, picture: Image.Image) -> np.ndarray:
        side = max(picture.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(picture.convert("RGB"), ((side - picture.width) // 2, (side - picture.height) // 2))
        pixels = np.asarray(square.resize((self.size, self.size), Image.Resampling.BILINEAR), np.float32)
        return pixels[..., ::-1]
