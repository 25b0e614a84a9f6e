"""The app as a process of its own: `python app.py`, stopped by real signals."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SITECUSTOMIZE = """import os, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = os.environ["HIDDEN"].split(",")
        return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        hidden = os.environ["HIDDEN"].split(",")
        return (each for each in PathFinder.find_distributions(*context) if each.name not in hidden)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
"""A sitecustomize.py that hides packages as if they were not installed."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Server:
    """`python app.py` with its folders in one place; `command_prefix` comes before the command."""

    def __init__(
        self, folder: Path, command_prefix: Sequence[str] = (), hidden_packages: str = "", **environment: str
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self.folder, self.out, self.err = folder, folder / "out", folder / "err"
        places = {
            "GRADIO_TEMP_DIR": folder / "files",
            "SWEETSPOT_CELLS": folder / "cells",
            "SWEETSPOT_RUNS": folder / "runs",
            "SWEETSPOT_OUTPUTS": folder / "outputs",
            "PYTHONPATH": folder,
        }
        usual = {
            "HIDDEN": hidden_packages,
            "HF_HUB_OFFLINE": "1",
            "GRADIO_SERVER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(folder / "hub"),
            "HOME": str(folder),
        }
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "SPACE", "CUDA_VISIBLE"))
        }
        environment = {
            **kept,
            **{name: str(path) for name, path in places.items()},
            **usual,
            "CUDA_VISIBLE_DEVICES": "",
            **environment,
        }
        command = [*command_prefix, sys.executable, "-u", "app.py"]
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def wait_for_url(self, seconds: float = 90) -> str:
        """Return the app's address once it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(r"http://127\.0\.0\.1:\d+", self.out.read_text()):
                return found[0]
            time.sleep(0.1)
        raise AssertionError(
            f"no server after {seconds:g} s: {self.out.read_text()} {self.err.read_text()[-3000:]}"
        )

    def read_health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.wait_for_url()}/health", timeout=30) as answer:
            return json.loads(answer.read())

    def read_log(self) -> list[Mapping[str, Any]]:
        """Return the lines of JSON in its log."""
        return [json.loads(line) for line in self.err.read_text().splitlines() if line.startswith("{")]

    def wait_for_exit(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)

    def stop(self) -> None:
        """Kill whatever a test left of it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
