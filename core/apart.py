"""Models that a visitor brought, in a process of their own: bounded in time and memory, and it may crash.

A model is a program: loops, functions that call functions, one product of matrices that takes hours. Most of it can be stopped
by nobody in the process that runs it, and some of it runs already while the file is opened. The process has no token to read.
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

from core import limits, paths
from core.detect import Detector, Found
from core.types import UserError

NEEDED = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""What the process has of the environment."""
FEW = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "CUDA_VISIBLE_DEVICES": ""}
"""Each thread and arena more takes memory, of which there is not much; and the GPU is others'."""

log = logging.getLogger(__name__)


class Apart:
    """As `Detector`, in a process for each picture; tried once when it is made, so that one that cannot be used is refused before any work."""

    def __init__(self, file: Path):
        self.file = file
        self.find(Image.new("RGB", (64, 64)), 1.0)

    def find(self, picture: Image.Image, confidence: float) -> list[Found]:
        """As `Detector.find`; raises `UserError` also where it takes too long or too much memory, or crashes."""
        asked = [str(self.file), str(picture.width), str(picture.height), str(confidence)]
        told = _told("detector", self.file, asked, limits.DETECTOR_SECONDS, picture.convert("RGB").tobytes())
        return [Found((left, top, right, bottom), sure) for left, top, right, bottom, sure in told]


@lru_cache(64)
def apart(file: Path) -> Apart:
    """The detector of a file, tried once."""
    return Apart(file)


@lru_cache(64)
def tried(file: Path) -> None:
    """Open an upscaler's file once where it may take what it likes. Raises `UserError` where it cannot be used."""
    _told("upscaler", file, [str(file)], limits.UPSCALER_SECONDS)


def _told(kind: str, file: Path, asked: list[str], seconds: int, given: bytes = b"") -> Any:
    """What the process says. Raises `UserError`."""
    environment = {name: os.environ[name] for name in NEEDED if name in os.environ} | FEW
    call = [sys.executable, "-m", "core.apart", kind, *asked]
    try:
        done = subprocess.run(call, cwd=paths.CODE, env=environment, input=given, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{kind}: {file.name} took longer than {seconds} seconds.") from error
    if done.returncode:
        log.warning("a %s that was brought ended with %d", kind, done.returncode)  # what it says itself is its maker's words
        raise UserError(f"{kind}: {file.name} broke off, or took more than {limits.BROUGHT_BYTES / 2**30:g} GB of memory.")
    told = json.loads(done.stdout)
    if isinstance(told, str):
        raise UserError(told)
    return told


def main() -> None:
    """The process: pixels come in, boxes go out, or the sentence why not; of an upscaler, whether it opens."""
    kind, file, *asked = sys.argv[1:]
    if sys.platform == "linux":
        import resource
        import signal

        resource.setrlimit(resource.RLIMIT_DATA, (limits.BROUGHT_BYTES, limits.BROUGHT_BYTES))
        signal.alarm(limits.UPSCALER_SECONDS + 1)  # where nobody is left to end it
    try:
        if kind == "upscaler":
            from core.upscale import upscaler  # late: a detector needs no torch

            upscaler(Path(file))
            told: object = None
        else:
            width, height, confidence = asked
            picture = Image.frombytes("RGB", (int(width), int(height)), sys.stdin.buffer.read())
            told = [[*found.box, found.confidence] for found in Detector(Path(file)).find(picture, float(confidence))]
    except UserError as error:
        told = str(error)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
