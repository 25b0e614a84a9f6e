"""Stop pressed at every place that a job has: nothing half is left, no LoRA stays on, and the next job works."""

import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from gradio_client import Client, handle_file
from huggingface_hub import constants
from PIL import Image

from core import cells, gpu
from core.events import Event
from tabs.files import FILES
from tests.model import fingerprint, is_free, unet_calls
from tests.publish.conftest import hub_server  # noqa: F401  (a fixture)
from tests.publish.hub import Hub
from tests.publish.test_card import EXAMPLE
from tests.trust.visitor import Visitor

WORN = "1girl, blue hair, portrait, white background <lora:nano-airbrush:2>"


def whole(before: set[Path]) -> set[Path]:
    """The files that have come since; none is half, every picture opens to its last pixel."""
    since = {file for file in FILES.rglob("*") if file.is_file()} - before
    assert not [file for file in since if file.name.endswith(".tmp")], since
    for file in since:
        if file.suffix == ".png":
            with Image.open(file) as picture:
                picture.load()
    return since


@pytest.fixture
def nothing_stays(client: Client):
    """Whatever a test stops: the model is what it was, files are whole, the next job works."""
    before, files = fingerprint(), {file for file in FILES.rglob("*") if file.is_file()}
    yield
    is_free()
    assert fingerprint() == before, "a LoRA stayed on the model"
    whole(files)
    (_,), report = client.predict(prompt="1girl", seed=5, steps=1, width=64, height=64, api_name="/generate")
    assert report["seeds"] == [5]


STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "expand": ("Adding tags", {"expand": True}),
    "denoise": ("Step 2 of 4", {}),
    "upscaler": ("Step 4 of 4", {"hires": True, "Times": 1.25}),
    "hires": ("Hires: step 1 of", {"hires": True, "Times": 1.25}),
    "detailer": ("Details: step 1 of", {"detail": True}),
    "save": ("Step 4 of 4", {}),
}
"""Where it is stopped: what the page says then, and what is switched on."""


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize("stage", STAGES)
def test_case_23_stop_in_every_stage(studio: str, stage: str) -> None:
    said, on = STAGES[stage]
    visitor = Visitor(studio)
    is_free()  # of jobs that a test before left
    with unet_calls() as calls:
        event = visitor.join("_make", prompt=WORN, Steps=4, seed=7, **on)
        visitor.until(said)
        made = len(calls)
        visitor.cancel("_make", event)  # answers once the job has ended
        is_free()
        after = len(calls)
    assert after - made <= 2, "steps went on after Stop"
    assert "picture in" not in visitor.raw.decode(), "it was finished, not stopped"
    if stage == "expand":
        assert after == 0
    visitor.hang_up()


@pytest.mark.usefixtures("nothing_stays")
def test_case_23_stop_in_the_queue(studio: str) -> None:
    """Who waits and stops is never begun; who is before them is not disturbed."""
    first, second = Visitor(studio), Visitor(studio)
    first.join("generate", prompt=WORN, steps=12, width=192, height=192, seed=1)
    first.until("process_generating")
    event = second.join("generate", prompt="1girl", steps=150, seed=2)
    second.until("estimation")
    second.cancel("generate", event)
    done = first.ended()
    assert done["output"]["data"][1]["seeds"] == [1]
    assert '"process_starts"' not in second.raw.decode()
    second.hang_up()


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize("job", ["generate", "sweep"])
def test_case_23_stop_before_the_first_step(studio: str, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    """While the model is loaded, say: Gradio has no generator yet that it could close."""
    begun, load, made = multiprocessing.Event(), multiprocessing.Event(), gpu.generate  # a worker hears of these, too

    def slowly(*asked: Any, **more: Any) -> Iterator[Event]:
        begun.set()
        load.wait()
        with closing(made(*asked, **more)) as events:
            for each in events:
                yield each
                time.sleep(0.05)  # no large model's step is shorter; one of nano's is over before a worker hears of anything

    monkeypatch.setattr(gpu, "generate", slowly)
    visitor = Visitor(studio)
    with unet_calls() as calls:
        event = visitor.join(job, **{"generate": {"prompt": WORN, "seed": 8}, "sweep": {"lora": "nano-airbrush", "seeds": "71-74"}}[job])
        begun.wait()
        threading.Timer(0.2, load.set).start()
        visitor.cancel(job, event)
        is_free()
    assert len(calls) <= 2
    visitor.hang_up()


@pytest.mark.usefixtures("nothing_stays")
def test_case_23_gradio_client_cancels_a_script(client: Client) -> None:
    with unet_calls() as calls:
        job = client.submit(prompt=WORN, steps=150, seed=3, api_name="/generate")
        while len(calls) < 3:
            time.sleep(0.01)
        assert job.cancel()
        time.sleep(0.05)
        is_free()
        assert len(calls) < 75


@pytest.mark.usefixtures("nothing_stays")
def test_case_23_an_upload_that_breaks_off_leaves_no_file(studio: str, client: Client) -> None:
    before, address = set(FILES.rglob("*")), urlparse(studio)
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="half.safetensors"\r\n\r\n' + EXAMPLE.read_bytes()
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {2 * len(body)}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + body)
    again = client.predict(lora=handle_file(EXAMPLE), api_name="/inspect_lora")  # the server has heard of the end by now
    assert again["rank"] == 4
    assert not [file for file in set(FILES.rglob("*")) - before if file.name.startswith("half")]


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize("how", ["cancel", "hang up"])
@pytest.mark.parametrize(("at", "commits"), [("PUT /lfs/", 1), ("POST /api/models/ann/left/commit/", 2)], ids=["upload", "commit"])
def test_case_23_a_publication_that_is_left_is_whole_or_not_there(studio: str, hub_server: Hub, how: str, at: str, commits: int) -> None:  # noqa: F811
    """Whoever stops is answered while the Hub holds what was sent: of an upload nothing gets into the repository, and a commit that has begun is whole."""
    Path(constants.HF_TOKEN_PATH).write_text("hf_ann")
    hub_server.fail(at, "held")
    FILES.mkdir(exist_ok=True)
    before, visitor = set(FILES.iterdir()), Visitor(studio)
    event = visitor.join("publish", lora="nano-airbrush", repo="ann/left", use_login=True)
    visitor.until("process_starts")
    while not any(f"{one.method} {one.path}".startswith(at) for one in hub_server.asked):
        time.sleep(0.005)
    visitor.cancel("publish", event) if how == "cancel" else visitor.hang_up()
    while set(FILES.iterdir()) != before:  # until the job has cleaned up behind itself
        time.sleep(0.005)
    hub_server.go.set()
    while any(thread.name.startswith("aside") for thread in threading.enumerate()):
        time.sleep(0.005)
    assert len(hub_server.commits("ann/left")) == commits
    visitor.hang_up()
    again = Visitor(studio)
    again.join("publish", lora="nano-airbrush", repo="ann/left", use_login=True)
    assert again.ended()["success"]
    files = hub_server.files("ann/left")
    assert {"README.md", "nano-airbrush.safetensors"} <= files.keys()
    assert [set(commit.files) for commit in hub_server.commits("ann/left")] == [{".gitattributes"}, set(files)]


@pytest.mark.usefixtures("nothing_stays")
def test_case_23_stopping_a_sweep_keeps_whole_cells_only(studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "FOLDER", tmp_path)
    visitor = Visitor(studio)
    event = visitor.join("sweep", lora="nano-airbrush", prompts="1girl", seeds="61-64", strengths="0, 1, 2")
    for _ in visitor.messages():
        if len(list(tmp_path.rglob("*.npz"))) >= 2:
            break
    visitor.cancel("sweep", event)
    is_free()
    kept = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert kept
    assert not [name for name in kept if name.endswith(".tmp")]
    for file in tmp_path.rglob("*.png"):
        with Image.open(file) as picture:
            picture.load()
    visitor.hang_up()
