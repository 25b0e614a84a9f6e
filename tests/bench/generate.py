"""How long a picture takes: `python tests/bench/generate.py`.

Seconds from `python app.py` to a page that answers; seconds for one 128x128 picture at 25 steps and
CFG 5 through the API and for a batch of 8; and the ratio to a plain `StableDiffusionXLPipeline` call
in the same process, alternating, median of 7, with the noise floor (the spread of the same call).
"""

import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
ROUNDS = 7


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def served() -> dict[str, float]:
    """The app as a process of its own: start, one picture, eight pictures."""
    from gradio_client import Client

    port = free_port()
    begin = time.perf_counter()
    app = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env={**os.environ, "GRADIO_SERVER_PORT": str(port)}, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)
        found = {"start_seconds": time.perf_counter() - begin}
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        for name, count in (("one_picture_seconds", 1), ("eight_pictures_seconds", 8)):
            took = []
            for seed in range(ROUNDS):
                begin = time.perf_counter()
                client.predict(prompt="1girl, blue hair, smile", seed=seed, count=count, api_name="/generate")
                took.append(time.perf_counter() - begin)
            found[name] = statistics.median(took[1:])
        return found
    finally:
        app.terminate()
        app.wait()


def beside_diffusers() -> dict[str, float]:
    """Our loop and diffusers' pipeline, alternating."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    from core import models, paths, samplers
    from core.events import Picture
    from core.generate import generate
    from core.types import Cell, Request

    def cells(count: int) -> list[Cell]:
        return [
            Cell(
                label="",
                request=Request(
                    model="nano",
                    prompt="1girl, blue hair, smile",
                    negative="low quality",
                    width=128,
                    height=128,
                    steps=25,
                    cfg=5.0,
                    sampler="Euler a",
                    seed=seed,
                ),
            )
            for seed in range(count)
        ]

    theirs = StableDiffusionXLPipeline.from_pretrained(paths.locate(models.find("nano").source))
    theirs.scheduler = samplers.make("Euler a", theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)

    def ours(count: int) -> None:
        assert sum(isinstance(event, Picture) for event in generate(cells(count))) == count

    def plain(count: int) -> None:
        for seed in range(count):
            theirs("1girl, blue hair, smile", negative_prompt="low quality", width=128, height=128, num_inference_steps=25, guidance_scale=5.0,
                   generator=torch.Generator().manual_seed(seed))  # fmt: skip

    found = {}
    for name, count in (("one", 1), ("eight", 8)):
        pace = alternating({"ours": lambda n=count: ours(n), "plain": lambda n=count: plain(n), "ours again": lambda n=count: ours(n)})
        found |= {f"{name}_ours": pace["ours"], f"{name}_plain_loop": pace["plain"], f"{name}_ratio": pace["plain"] / pace["ours"]}
        found[f"{name}_noise"] = abs(pace["ours again"] / pace["ours"] - 1)
    return found


def alternating(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            took[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values[1:]) for name, values in took.items()}


def main() -> None:
    report = {"date": date.today().isoformat(), "device": f"CPU, {os.cpu_count()} cores, {platform.machine()}"}
    report |= {name: round(value, 3) for name, value in (served() | beside_diffusers()).items()}
    for name, value in report.items():
        print(f"{name}: {value}")
    results = ROOT / "tests" / "bench" / "results"
    results.mkdir(exist_ok=True)
    (results / "generate.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
