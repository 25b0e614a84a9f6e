"""How long a picture takes: `python tests/bench/generate.py`.

Seconds from `python app.py` to a page that answers; seconds for one 128x128 picture at 25 steps and
CFG 5 through the API and for a batch of 8; and the ratio to a plain `StableDiffusionXLPipeline`
call in the same process, alternating, median of 7, with the noise floor (the spread of the same
call).
"""

import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.bench.report import save_report  # noqa: E402

ROUNDS = 7
PROMPT, NEGATIVE, SAMPLER = "1girl, blue hair, smile", "low quality", "Euler a"
SIDE, STEPS, CFG = 128, 25, 5.0
"""What both draw: a square picture of `SIDE` pixels."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def time_server() -> dict[str, float]:
    """Run the app in a process of its own and time its start, one picture and eight pictures."""
    from gradio_client import Client

    port = free_port()
    begin = time.perf_counter()
    app = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env={**os.environ, "GRADIO_SERVER_PORT": str(port)},
        stdout=subprocess.DEVNULL,
    )
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
                client.predict(prompt=PROMPT, seed=seed, count=count, api_name="/generate")
                took.append(time.perf_counter() - begin)
            found[name] = statistics.median(took[1:])
        return found
    finally:
        app.terminate()
        app.wait()


def compare_with_diffusers() -> dict[str, float]:
    """Time our loop and diffusers' pipeline, alternating."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    from core.generate.pipeline import generate
    from core.models import bases
    from core.schema.events import Picture
    from core.schema.types import Cell, Request
    from core.system import paths
    from tests.euler_ancestral import make_euler_ancestral

    theirs = StableDiffusionXLPipeline.from_pretrained(paths.locate(bases.find_model("nano").source))
    theirs.scheduler = make_euler_ancestral(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)

    first = Request(
        model="nano", prompt=PROMPT, negative=NEGATIVE, width=SIDE, height=SIDE,
        steps=STEPS, cfg=CFG, sampler=SAMPLER, seed=0,
    )  # fmt: skip

    def run_ours(count: int) -> None:
        cells = [Cell(label="", request=replace(first, seed=seed)) for seed in range(count)]
        assert sum(isinstance(event, Picture) for event in generate(cells)) == count

    def run_diffusers(count: int) -> None:
        for seed in range(count):
            theirs(
                PROMPT,
                negative_prompt=NEGATIVE,
                width=SIDE,
                height=SIDE,
                num_inference_steps=STEPS,
                guidance_scale=CFG,
                generator=torch.Generator().manual_seed(seed),
            )

    found = {}
    for name, count in (("one", 1), ("eight", 8)):
        pace = time_alternately(
            {
                "ours": lambda n=count: run_ours(n),
                "plain": lambda n=count: run_diffusers(n),
                "ours again": lambda n=count: run_ours(n),
            }
        )
        found |= {
            f"{name}_ours": pace["ours"],
            f"{name}_plain_loop": pace["plain"],
            f"{name}_ratio": pace["plain"] / pace["ours"],
        }
        found[f"{name}_noise"] = abs(pace["ours again"] / pace["ours"] - 1)
    return found


def time_alternately(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            took[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values[1:]) for name, values in took.items()}


def main() -> None:
    measured = time_server() | compare_with_diffusers()
    save_report("generate", {name: round(value, 3) for name, value in measured.items()})


if __name__ == "__main__":
    main()
