"""Reads the tags of a picture with ONNX taggers in WD14 v3's layout, through onnxruntime."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from core.system.memory import translate_out_of_memory

OUT_OF_MEMORY = (
    "This machine ran out of memory for the tagger: close other programs, or tag fewer images at once."
)
GENERAL, CHARACTER = 0, 4
"""Values of `Tagger.categories`. Ratings and other categories do not say what a picture shows."""
NANO_TAGGER = Path(__file__).parent.parent / "nano" / "weights" / "tagger"
"""The embedded tagger."""


class Tagger:
    """A tagger in a folder with `model.onnx` and `selected_tags.csv`, laid out as SmilingWolf's.

    Input of the model: (n, size, size, 3) float32, BGR, 0..255, padded to a square with white.
    Output: (n, tags) probabilities. `categories` has each tag's kind: 0 general, 4 a character, 9 a
    rating.
    """

    def __init__(self, folder: Path = NANO_TAGGER):
        with translate_out_of_memory(None, OUT_OF_MEMORY):
            self.session = onnxruntime.InferenceSession(
                folder / "model.onnx", providers=["CPUExecutionProvider"]
            )
        self.size = int(self.session.get_inputs()[0].shape[1])
        with (folder / "selected_tags.csv").open(newline="", encoding="utf-8") as table:
            rows = list(csv.DictReader(table))
        self.tags = [row["name"].replace("_", " ") for row in rows]
        self.categories = {tag: int(row["category"]) for tag, row in zip(self.tags, rows, strict=True)}

    def read_tags(self, pictures: Sequence[Image.Image]) -> list[dict[str, float]]:
        """Return each picture's probability of every tag. Raises `UserError` if memory runs out."""
        with translate_out_of_memory(None, OUT_OF_MEMORY):
            batch = np.stack([self._preprocess(picture) for picture in pictures])
            (found,) = self.session.run(None, {self.session.get_inputs()[0].name: batch})
        return [dict(zip(self.tags, map(float, row), strict=True)) for row in np.asarray(found)]

    def _preprocess(self, picture: Image.Image) -> np.ndarray:
        side = max(picture.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(picture.convert("RGB"), ((side - picture.width) // 2, (side - picture.height) // 2))
        pixels = np.asarray(square.resize((self.size, self.size), Image.Resampling.BILINEAR), np.float32)
        return pixels[..., ::-1]
