"""Find faces (or hands, or persons) with animeface or a model in YOLOv8's ONNX layout.

YOLOv8's layout: input (1, 3, side, side), RGB, 0..1, the picture shrunk into a grey square; output
(1, 4 + classes, n), each column a box's centre x and y, width and height in input pixels, then its
scores. The model runs through onnxruntime.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnx
from PIL import Image

from core.generate.stages.masks import Box, overlap
from core.schema import limits
from core.schema.errors import UserError
from core.system.memory import translate_out_of_memory

GREY = (114, 114, 114)
NMS_IOU = 0.5
"""Two boxes that overlap by more than this intersection over union are one object."""
DEFAULT_SIDE = 640
MAX_CANDIDATES = 2000
"""Columns that are considered, the most confident ones; one object is found in some fifty."""
# onnxruntime's own classes for a file that it cannot use; they have no common base class.
ONNX_ERRORS = (
    onnx.Fail,
    onnx.InvalidArgument,
    onnx.InvalidGraph,
    onnx.InvalidProtobuf,
    onnx.NoSuchFile,
    onnx.NotImplemented,
    onnx.RuntimeException,
)


@dataclass(frozen=True)
class Detection:
    """A box that a detector found, with its confidence from 0 to 1."""

    box: Box
    confidence: float


class Detector:
    """A detection model in YOLOv8's layout. Raises `UserError` for a file that is not one."""

    def __init__(self, file: Path):
        try:
            with translate_out_of_memory(
                "detector", f"{file.name} does not fit into this machine's memory; choose a smaller one."
            ):
                self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        except ONNX_ERRORS as error:
            raise UserError("detector", f"{file.name} cannot be opened as an ONNX model.") from error
        wanted, given = self.session.get_inputs()[0], self.session.get_outputs()[0]
        if len(wanted.shape) != 4 or wanted.shape[1] != 3 or len(given.shape) != 3:
            raise UserError(
                "detector",
                f"{file.name} does not have YOLOv8's layout: its input is {wanted.shape} and "
                f"its output {given.shape}.",
            )
        self.input = wanted.name
        self.side = wanted.shape[2] if isinstance(wanted.shape[2], int) else DEFAULT_SIDE
        self.name, (least, most) = file.name, limits.DETECTOR_SIDE
        if not least <= self.side <= most:
            raise UserError(
                "detector",
                f"{file.name} expects images of {self.side} pixels a side. Use a model of {least} to {most}.",
            )

    def find(self, picture: Image.Image, confidence: float) -> list[Detection]:
        """Find boxes, in the picture's pixels, with at least that confidence.

        They come sorted by confidence, highest first, at most `limits.DETECTED_BOXES`. Raises
        `UserError` if the model fails, or returns anything but columns of numbers.
        """
        scale = self.side / max(picture.size)
        small = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        square = Image.new("RGB", (self.side, self.side), GREY)
        square.paste(picture.convert("RGB").resize(small, Image.Resampling.BILINEAR))
        pixels = np.asarray(square, np.float32).transpose(2, 0, 1)[None] / 255
        try:
            with translate_out_of_memory(
                "detector", f"{self.name} ran out of memory on an image; choose a smaller one."
            ):
                # (n, 4 + classes)
                columns = np.asarray(self.session.run(None, {self.input: pixels})[0], np.float32)[0].T
        except (*ONNX_ERRORS, ValueError, TypeError, IndexError) as error:
            raise UserError("detector", f"{self.name} fails on an image ({type(error).__name__}).") from error
        if columns.ndim != 2 or columns.shape[1] < 5:
            raise UserError("detector", f"{self.name} does not return boxes and scores like YOLOv8.")
        columns = columns[np.isfinite(columns).all(axis=1)]
        scores = columns[:, 4:].max(axis=1)
        found: list[Detection] = []
        for i in np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]:
            if scores[i] < confidence or len(found) == limits.DETECTED_BOXES:
                break
            x, y, w, h = columns[i, :4] / scale
            edges = (
                (x - w / 2, picture.width),
                (y - h / 2, picture.height),
                (x + w / 2, picture.width),
                (y + h / 2, picture.height),
            )
            left, top, right, bottom = (int(np.clip(round(float(edge)), 0, end)) for edge, end in edges)
            box = (left, top, right, bottom)
            if right > left and bottom > top and all(overlap(box, other.box) <= NMS_IOU for other in found):
                found.append(Detection(box, float(scores[i])))
        return found


class AnimeFace:
    """The package animeface, a detector of 2009 that needs no download.

    It finds frontal faces in anime pictures.
    """

    def find(self, picture: Image.Image, confidence: float) -> list[Detection]:
        """Find faces, in the picture's pixels, with at least that confidence, highest first."""
        import animeface  # late: only needed where nothing better is available

        found = [(face.face.pos, float(face.likelihood)) for face in animeface.detect(picture.convert("RGB"))]
        boxes = [
            Detection((pos.x, pos.y, pos.x + pos.width, pos.y + pos.height), likelihood)
            for pos, likelihood in found
            if likelihood >= confidence
        ]
        return sorted(boxes, key=lambda box: -box.confidence)


@lru_cache(2)
def load_detector(file: Path) -> Detector:
    """Open the detector of a file; the two most recently used are cached."""
    return Detector(file)
