"""Print the sha256 of pictures, a sweep, a training and a card, made through the API.

Run `python tests/bench/fingerprint.py [CHECKOUT]`. It knows nothing of the code but its endpoints,
so it can compare two states of the code: run it on both on one machine. Whatever was only moved or
renamed gives the same lines.
"""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gradio_client import Client, handle_file

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.hub.server import serve_hub  # noqa: E402

VARYING_FIELDS = re.compile(r'"(seconds|seconds_left|folder|url|run|picture|lora)": [^,}\n]*')
"""The parts of a report that differ from run to run, or that are a path."""


@contextmanager
def start_studio(checkout: Path, folder: Path, hub: str) -> Iterator[Client]:
    """Yield a client of the app of `checkout`; its files are in `folder`, its Hub is `hub`."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    names = {
        "SWEETSPOT_RUNS": "runs",
        "SWEETSPOT_CELLS": "cells",
        "GRADIO_TEMP_DIR": "files",
        "HF_HOME": "hub",
    }
    places = {variable: str(folder / name) for variable, name in names.items()}
    own = {"GRADIO_SERVER_PORT": port, "HF_ENDPOINT": hub, "HF_TOKEN": "hf_ann", "OMP_NUM_THREADS": "1"}
    log = (folder / "log").open("w")
    app = subprocess.Popen(
        [sys.executable, "app.py"], cwd=checkout, env={**os.environ, **places, **own}, stdout=log, stderr=log
    )
    try:
        end = time.monotonic() + 180
        while time.monotonic() < end and "Running on local URL" not in (folder / "log").read_text():
            time.sleep(0.2)
        yield Client(f"http://127.0.0.1:{port}", verbose=False, download_files=str(folder / "client"))
    finally:
        app.terminate()
        app.wait()
        log.close()


def digest(*parts: bytes | str) -> str:
    """Return the first half of the sha256 of some bytes and texts."""
    whole = b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(whole).hexdigest()[:32]


def digest_report(report: Any) -> str:
    """Return the digest of a report without `VARYING_FIELDS`."""
    return digest(VARYING_FIELDS.sub("", json.dumps(report, sort_keys=True)))


def draw_pictures(folder: Path) -> Path:
    """Write a zip of six captioned pictures without using any of the code."""
    from PIL import Image

    archive = folder / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for i in range(6):
            picture = Image.linear_gradient("L").rotate(60 * i).resize((128, 128))
            colours = Image.merge(
                "RGB",
                (picture, Image.new("L", (128, 128), 40 * i), picture.transpose(Image.Transpose.ROTATE_90)),
            )
            colours.save(folder / f"{i}.png")
            zipped.write(folder / f"{i}.png", f"{i}.png")
            zipped.writestr(f"{i}.txt", "abstract, gradient")
    return archive


def compute_digests(studio: Client, folder: Path) -> dict[str, str]:
    """Return name -> digest of what the endpoints give."""
    found = {}
    prompt = "1girl, (blue hair:1.2), [smile|open mouth], white background <lora:nano-airbrush:1.5>"
    stages = {"hires": True, "detail": {"detector": "nano face"}, "grain": True}
    kinds: dict[str, dict[str, Any]] = {"picture": {}, "picture with stages": stages}
    for name, more in kinds.items():
        files, report = studio.predict(
            prompt=prompt, preset="nano", seed=7, count=2, **more, api_name="/generate"
        )
        found[name] = digest(*(Path(file).read_bytes() for file in files))
        found[f"{name}: report"] = digest_report(report)
    reading = studio.predict(picture=handle_file(files[0]), api_name="/read_picture")
    found["settings read back"] = digest_report(reading)
    asked: dict[str, Any] = {
        "lora": "nano-airbrush",
        "strengths": "0, 1-3 (+1)",
        "seeds": "1, 2",
        "prompts": "1girl, smile\nnight, city",
    }
    sheet, _, archive, report = studio.predict(**asked, api_name="/sweep")
    with zipfile.ZipFile(archive) as zipped:
        pictures = sorted(name for name in zipped.namelist() if name.endswith(".png"))
        found["sweep: cells"] = digest(*(zipped.read(name) for name in pictures))
    found["sweep: sheet"] = digest(Path(sheet).read_bytes())
    found["sweep: report"] = digest_report(report)
    data = handle_file(draw_pictures(folder))
    settings = {"steps": 12, "preview_every": 6, "save_every": 6}
    start = studio.predict(
        dataset=data, recipe="nano-quick", trigger="mystyle", overrides=settings, api_name="/train_start"
    )
    while (state := studio.predict(run=start["run"], api_name="/train_status"))["state"] not in (
        "done",
        "failed",
        "stopped",
    ):
        time.sleep(0.5)
    found["training: LoRA"] = digest(Path(state["lora"]).read_bytes() if state["lora"] else str(state))
    found["training: previews"] = digest(*(Path(file).read_bytes() for file in state["previews"]))
    inspection = studio.predict(lora="nano-airbrush", api_name="/inspect_lora")
    found["LoRA file"] = digest_report(inspection)
    card = studio.predict(
        lora="nano-airbrush",
        repo="ann/airbrush",
        title="Airbrush",
        license="mit",
        dry_run=True,
        api_name="/publish",
    )
    found["card"] = digest_report(card)
    return found


def main() -> None:
    checkout = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    with (
        TemporaryDirectory() as work,
        serve_hub({"hf_ann": "ann"}) as server,
        start_studio(checkout, Path(work), server.url) as studio,
    ):
        for name, value in compute_digests(studio, Path(work)).items():
            print(f"{value}  {name}", flush=True)


if __name__ == "__main__":
    main()
