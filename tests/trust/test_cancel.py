"""Stop pressed at every stage of a job.

No half-written file is left, no LoRA stays applied, and the next job works.
"""

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

from core.generate import pipeline
from core.runtime import gpu
from core.schema.events import Event
from core.sweep import cell_cache
from tabs.server.page_files import FILES_FOLDER
from tests.hub.server_state import Hub
from tests.model import count_unet_calls, fingerprint, wait_until_free
from tests.publish.test_card import EXAMPLE
from tests.trust.visitor import Visitor

LORA_PROMPT = "1girl, blue hair, portrait, white background <lora:nano-airbrush:2>"


def assert_whole_files(before: set[Path]) -> set[Path]:
    """Return the files that have come since `before`, all of them whole.

    None is a temporary file, and every picture opens to its last pixel.
    """
    since = {file for file in FILES_FOLDER.rglob("*") if file.is_file()} - before
    assert not [file for file in since if file.name.endswith(".tmp")], since
    for file in since:
        if file.suffix == ".png":
            with Image.open(file) as picture:
                picture.load()
    return since


@pytest.fixture
def nothing_stays(client: Client):
    """Assert after a test that the model is unchanged, files are whole and the next job works."""
    before, files = fingerprint(), {file for file in FILES_FOLDER.rglob("*") if file.is_file()}
    yield
    wait_until_free()
    assert fingerprint() == before, "a LoRA stayed on the model"
    assert_whole_files(files)
    (_,), report = client.predict(prompt="1girl", seed=5, steps=1, width=64, height=64, api_name="/generate")
    assert report["seeds"] == [5]


STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "expand": ("Adding tags", {"expand": True}),
    "denoise": ("Step 2 of 4", {}),
    "upscaler": ("Step 4 of 4", {"hires": True, "Upscale by": 1.25}),
    "hires": ("Hires: step 1 of", {"hires": True, "Upscale by": 1.25}),
    "detailer": ("Details: step 1 of", {"detail": True}),
    "save": ("Step 4 of 4", {}),
}
"""Stage where the job is stopped -> what the page says then, and what is switched on."""


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize("stage", STAGES)
def test_case_23_stop_in_every_stage(studio: str, stage: str) -> None:
    said, on = STAGES[stage]
    visitor = Visitor(studio)
    wait_until_free()  # jobs of an earlier test may still run
    with count_unet_calls() as calls:
        event = visitor.join("_generate_pictures", prompt=LORA_PROMPT, Steps=4, seed=7, **on)
        visitor.wait_for_text(said)
        made = len(calls)
        visitor.cancel("_generate_pictures", event)  # answers once the job has ended
        wait_until_free()
        after = len(calls)
    assert after - made <= 2, "steps went on after Stop"
    assert "image in" not in visitor.stream_bytes.decode(), "it was finished, not stopped"
    if stage == "expand":
        assert after == 0
    visitor.hang_up()


@pytest.mark.usefixtures("nothing_stays")
def test_case_23_stop_in_the_queue(studio: str) -> None:
    """A job stopped in the queue never begins, and the job before it is not disturbed."""
    first, second = Visitor(studio), Visitor(studio)
    first.join("generate", prompt=LORA_PROMPT, steps=12, width=192, height=192, seed=1)
    first.wait_for_text("process_generating")
    event = second.join("generate", prompt="1girl", steps=150, seed=2)
    second.wait_for_text("estimation")
    second.cancel("generate", event)
    done = first.wait_for_result()
    assert done["output"]["data"][1]["seeds"] == [1]
    assert '"process_starts"' not in second.stream_bytes.decode()
    second.hang_up()


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize("job", ["generate", "sweep"])
def test_case_23_stop_before_the_first_step(studio: str, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    """Stop works while the model is loaded, when Gradio has no generator yet to close."""
    # events of multiprocessing, so that a worker process sees them, too
    begun, load, made = (multiprocessing.Event(), multiprocessing.Event(), pipeline.generate)

    def generate_slowly(*asked: Any, **more: Any) -> Iterator[Event]:
        begun.set()
        load.wait()
        with closing(made(*asked, **more)) as events:
            for each in events:
                yield each
                # no large model's step is shorter; nano's ends before a worker notices
                time.sleep(0.05)

    monkeypatch.setattr(gpu, "generate", generate_slowly)
    visitor = Visitor(studio)
    with count_unet_calls() as calls:
        event = visitor.join(
            job,
            **{
                "generate": {"prompt": LORA_PROMPT, "seed": 8},
                "sweep": {"lora": "nano-airbrush", "seeds": "71-74"},
            }[job],
        )
        begun.wait()
        threading.Timer(0.2, load.set).start()
        visitor.cancel(job, event)
        wait_until_free()
    assert len(calls) <= 2
    visitor.hang_up()


@pytest.mark.usefixtures("nothing_stays")
def test_case_23_gradio_client_cancels_a_script(client: Client) -> None:
    with count_unet_calls() as calls:
        job = client.submit(prompt=LORA_PROMPT, steps=150, seed=3, api_name="/generate")
        while len(calls) < 3:
            time.sleep(0.01)
        assert job.cancel()
        time.sleep(0.05)
        wait_until_free()
        assert len(calls) < 75


@pytest.mark.usefixtures("nothing_stays")
def test_case_23_an_upload_that_breaks_off_leaves_no_file(studio: str, client: Client) -> None:
    before, address = set(FILES_FOLDER.rglob("*")), urlparse(studio)
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="half.safetensors"\r\n\r\n'
        + EXAMPLE.read_bytes()
    )
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {2 * len(body)}\r\n"
    )
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + body)
    # the server has seen the end of the connection by now
    again = client.predict(lora=handle_file(EXAMPLE), api_name="/inspect_lora")
    assert again["rank"] == 4
    assert not [file for file in set(FILES_FOLDER.rglob("*")) - before if file.name.startswith("half")]


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize("how", ["cancel", "hang up"])
@pytest.mark.parametrize(
    ("at", "commits"), [("PUT /lfs/", 1), ("POST /api/models/ann/left/commit/", 2)], ids=["upload", "commit"]
)
def test_case_23_a_publication_that_is_left_is_whole_or_not_there(
    studio: str,
    hub_server: Hub,
    how: str,
    at: str,
    commits: int,
) -> None:
    """Stop is answered while the Hub holds back its answer.

    Nothing of an upload gets into the repository, and a commit that has begun is whole.
    """
    Path(constants.HF_TOKEN_PATH).write_text("hf_ann")
    hub_server.fail(at, "held")
    FILES_FOLDER.mkdir(exist_ok=True)
    before, visitor = set(FILES_FOLDER.iterdir()), Visitor(studio)
    event = visitor.join("publish", lora="nano-airbrush", repo="ann/left", use_login=True)
    visitor.wait_for_text("process_starts")
    while not any(f"{one.method} {one.path}".startswith(at) for one in hub_server.requests):
        time.sleep(0.005)
    visitor.cancel("publish", event) if how == "cancel" else visitor.hang_up()
    while set(FILES_FOLDER.iterdir()) != before:  # until the job has removed its files
        time.sleep(0.005)
    hub_server.release.set()
    while any(thread.name.startswith("aside") for thread in threading.enumerate()):
        time.sleep(0.005)
    assert len(hub_server.list_commits("ann/left")) == commits
    visitor.hang_up()
    again = Visitor(studio)
    again.join("publish", lora="nano-airbrush", repo="ann/left", use_login=True)
    assert again.wait_for_result()["success"]
    files = hub_server.list_files("ann/left")
    assert {"README.md", "nano-airbrush.safetensors"} <= files.keys()
    assert [set(commit.files) for commit in hub_server.list_commits("ann/left")] == [
        {".gitattributes"},
        set(files),
    ]


@pytest.mark.usefixtures("nothing_stays")
def test_case_23_stopping_a_sweep_keeps_whole_cells_only(
    studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_cache, "FOLDER", tmp_path)
    visitor = Visitor(studio)
    event = visitor.join("sweep", lora="nano-airbrush", prompts="1girl", seeds="61-64", strengths="0, 1, 2")
    for _ in visitor.read_messages():
        if len(list(tmp_path.rglob("*.npz"))) >= 2:
            break
    visitor.cancel("sweep", event)
    wait_until_free()
    kept = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert kept
    assert not [name for name in kept if name.endswith(".tmp")]
    for file in tmp_path.rglob("*.png"):
        with Image.open(file) as picture:
            picture.load()
    visitor.hang_up()
