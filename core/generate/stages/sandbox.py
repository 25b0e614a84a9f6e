"""Run a visitor's models in a process of their own, bounded in time and memory, which may crash.

A model is a program: loops, functions that call functions, one product of matrices that takes
hours. Most of it cannot be stopped from within the process that runs it, and some of it already
runs while the file is opened. The process has no token to read.
"""

import json
import logging
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from core.generate.stages.detector import Detection, Detector
from core.schema import limits
from core.schema.errors import UserError
from core.system import paths

ENVIRONMENT_NAMES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""Environment variables that are passed to the process."""
ENVIRONMENT_LIMITS = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "CUDA_VISIBLE_DEVICES": ""}
"""Each further thread and arena takes memory, which is scarce; and the GPU belongs to others."""

log = logging.getLogger(__name__)


class SandboxedDetector:
    """A detection model in YOLOv8's layout that runs in a new process for each picture.

    It is tried once when it is created, so that an unusable one is refused before any work.
    """

    def __init__(self, file: Path):
        self.file = file
        self.find(Image.new("RGB", (64, 64)), 1.0)

    def find(self, picture: Image.Image, confidence: float) -> list[Detection]:
        """Find boxes, in the picture's pixels, with at least that confidence, highest first.

        Raises `UserError` if the model fails, crashes, or takes too long or too much memory.
        """
        asked = [str(self.file), str(picture.width), str(picture.height), str(confidence)]
        told = _run_sandbox(
            "detector", self.file, asked, limits.DETECTOR_SECONDS, picture.convert("RGB").tobytes()
        )
        return [Detection((left, top, right, bottom), sure) for left, top, right, bottom, sure in told]


@lru_cache(64)
def load_sandboxed_detector(file: Path) -> SandboxedDetector:
    """Return the sandboxed detector of a file, which is tried once and cached.

    Raises `UserError` if it cannot be used.
    """
    return SandboxedDetector(file)


@lru_cache(64)
def check_upscaler(file: Path) -> None:
    """Open an upscaler's file once in the sandbox. Raises `UserError` if it cannot be used."""
    _run_sandbox("upscaler", file, [str(file)], limits.UPSCALER_SECONDS)


def _run_sandbox(kind: str, file: Path, arguments: list[str], seconds: int, stdin: bytes = b"") -> Any:
    """Run the process and return its answer.

    Raises `UserError` if it takes too long, crashes, or answers with a sentence.
    """
    environment = {
        name: os.environ[name] for name in ENVIRONMENT_NAMES if name in os.environ
    } | ENVIRONMENT_LIMITS
    call = [sys.executable, "-m", "core.generate.stages.sandbox", kind, *arguments]
    try:
        done = subprocess.run(
            call, cwd=paths.CODE, env=environment, input=stdin, capture_output=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(kind, f"{file.name} took longer than {seconds} seconds.") from error
    if done.returncode:
        # Its own output is left out: those are the words of the model's maker.
        log.warning("a %s process ended with exit code %d", kind, done.returncode)
        raise UserError(
            kind, f"{file.name} crashed, or took more than {limits.SANDBOX_BYTES / 2**30:g} GB of memory."
        )
    told = json.loads(done.stdout)
    if isinstance(told, str):
        raise UserError(kind, told)
    return told


def main() -> None:
    """Run the model inside the sandboxed process and print the answer as JSON.

    A detector reads pixels from stdin and answers with boxes; an upscaler is only opened and
    answers `null`. If the model cannot be used, the answer is a sentence that says why.
    """
    kind, file, *asked = sys.argv[1:]
    if sys.platform == "linux":
        import resource
        import signal

        resource.setrlimit(resource.RLIMIT_DATA, (limits.SANDBOX_BYTES, limits.SANDBOX_BYTES))
        signal.alarm(limits.UPSCALER_SECONDS + 1)  # if the parent is gone and cannot end it
    try:
        if kind == "upscaler":
            # Imported late: a detector needs no torch.
            from core.generate.stages.upscaler import load_upscaler

            load_upscaler(Path(file))
            told: object = None
        else:
            width, height, confidence = asked
            picture = Image.frombytes("RGB", (int(width), int(height)), sys.stdin.buffer.read())
            told = [
                [*found.box, found.confidence]
                for found in Detector(Path(file)).find(picture, float(confidence))
            ]
    except UserError as error:
        told = error.sentence
    print(json.dumps(told))


if __name__ == "__main__":
    main()
