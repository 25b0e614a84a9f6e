"""Finds faces (or hands, or persons): a model in YOLOv8's ONNX layout through onnxruntime, or animeface.

YOLOv8's layout: input (1, 3, side, side), RGB, 0..1, the picture shrunk into a grey square; output
(1, 4 + classes, n), each column a box's centre x and y, width and height in input pixels, then its scores.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnx
from PIL import Image

from core import limits
from core.masks import Box, overlap
from core.memory import enough_memory
from core.types import UserError

GREY = (114, 114, 114)
SAME = 0.5
"""Two boxes that overlap by more (intersection over union) are one thing."""
DYNAMIC_SIDE = 640
MOST = 2000
"""Columns that are looked at, the surest ones; one thing is found in some fifty of them."""
# onnxruntime's own classes for a file that it cannot use; they have no common one.
NOT_A_MODEL = (onnx.Fail, onnx.InvalidArgument, onnx.InvalidGraph, onnx.InvalidProtobuf, onnx.NoSuchFile, onnx.NotImplemented, onnx.RuntimeException)


@dataclass(frozen=True)
class Found:
    box: Box
    confidence: float


class Detector:
    """One detection model. Raises `UserError` for a file that is not one in YOLOv8's layout."""

    def __init__(self, file: Path):
        try:
            with enough_memory(f"detector: {file.name} does not fit into this machine's memory; choose a smaller one."):
                self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        except NOT_A_MODEL as error:
            raise UserError(f"detector: {file.name} cannot be opened as an ONNX model.") from error
        wanted, given = self.session.get_inputs()[0], self.session.get_outputs()[0]
        if len(wanted.shape) != 4 or wanted.shape[1] != 3 or len(given.shape) != 3:
            raise UserError(f"detector: {file.name} is not laid out as YOLOv8's are: it takes {wanted.shape} and gives {given.shape}.")
        self.input = wanted.name
        self.side = wanted.shape[2] if isinstance(wanted.shape[2], int) else DYNAMIC_SIDE
        self.name, (least, most) = file.name, limits.DETECTOR_SIDE
        if not least <= self.side <= most:
            raise UserError(f"detector: {file.name} takes pictures of {self.side} pixels a side; it takes a model of {least} to {most}.")

    def find(self, picture: Image.Image, confidence: float) -> list[Found]:
        """What is found with at least that confidence, the surest first and no more than are made anew; boxes in the picture's pixels.

        Raises `UserError` where the model fails, or gives something else than columns of numbers.
        """
        scale = self.side / max(picture.size)
        small = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        square = Image.new("RGB", (self.side, self.side), GREY)
        square.paste(picture.convert("RGB").resize(small, Image.Resampling.BILINEAR))
        pixels = np.asarray(square, np.float32).transpose(2, 0, 1)[None] / 255
        try:
            with enough_memory(f"detector: {self.name} ran out of memory on a picture; choose a smaller one."):
                columns = np.asarray(self.session.run(None, {self.input: pixels})[0], np.float32)[0].T  # (n, 4 + classes)
        except (*NOT_A_MODEL, ValueError, TypeError, IndexError) as error:
            raise UserError(f"detector: {self.name} fails on a picture ({type(error).__name__}).") from error
        if columns.ndim != 2 or columns.shape[1] < 5:
            raise UserError(f"detector: {self.name} does not give boxes and scores as YOLOv8's do.")
        columns = columns[np.isfinite(columns).all(axis=1)]
        scores = columns[:, 4:].max(axis=1)
        found: list[Found] = []
        for i in np.argsort(-scores, kind="stable")[:MOST]:
            if scores[i] < confidence or len(found) == limits.FOUND:
                break
            x, y, w, h = columns[i, :4] / scale
            edges = ((x - w / 2, picture.width), (y - h / 2, picture.height), (x + w / 2, picture.width), (y + h / 2, picture.height))
            left, top, right, bottom = (int(np.clip(round(float(edge)), 0, end)) for edge, end in edges)
            box = (left, top, right, bottom)
            if right > left and bottom > top and all(overlap(box, other.box) <= SAME for other in found):
                found.append(Found(box, float(scores[i])))
        return found


class AnimeFace:
    """The package animeface, a detector of 2009 that needs no download: finds faces of anime pictures from the front."""

    def find(self, picture: Image.Image, confidence: float) -> list[Found]:
        """As `Detector.find`."""
        import animeface  # late: only where nothing better is to be had

        found = [(face.face.pos, float(face.likelihood)) for face in animeface.detect(picture.convert("RGB"))]
        boxes = [Found((pos.x, pos.y, pos.x + pos.width, pos.y + pos.height), likelihood) for pos, likelihood in found if likelihood >= confidence]
        return sorted(boxes, key=lambda box: -box.confidence)


@lru_cache(2)
def detector(file: Path) -> Detector:
    """The detector of a file, opened once for as long as no two others were asked for."""
    return Detector(file)
