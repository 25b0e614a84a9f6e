"""What a person uploaded is there as long as the page says: over a restart, and from its last use on."""

import os
import signal
import time
from pathlib import Path

import httpx
from gradio_client import Client, handle_file
from PIL import Image

from core import limits, sweeper
from core.infotext import infotext
from core.record import save_png
from core.types import Request
from tabs.files import FILES
from tests.server import Server

ASKED = Request(model="nano", prompt="1girl", negative="", width=128, height=128, steps=4, cfg=5, sampler="Euler a", seed=7)


def picture(file: Path) -> Path:
    save_png(Image.new("RGB", (8, 8)), file, infotext(ASKED))
    return file


def test_an_upload_is_there_after_a_restart(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    try:
        client = Client(server.url(), verbose=False)
        assert client.predict(picture=handle_file(picture(tmp_path / "mine.png")), api_name="/read_picture")["seed"] == 7
        (upload,) = (tmp_path / "server" / "files").rglob("mine.png")
        then = time.time() - limits.DAY
        for each in (upload, upload.parent):
            os.utime(each, (then, then))
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0
    finally:
        server.end()
    assert upload.exists(), "the restart took it"
    again = Server(tmp_path / "server")
    try:
        url = again.url()
        said = {"path": str(upload), "meta": {"_type": "gradio.FileData"}}
        first = httpx.post(f"{url}/gradio_api/call/read_picture", json={"data": [said]}).json()  # a client would bring the file anew
        answer = httpx.get(f"{url}/gradio_api/call/read_picture/{first['event_id']}", timeout=60).text
        assert '"seed": 7' in answer, "an open page's file is not taken"
    finally:
        again.end()
    assert time.time() - upload.parent.stat().st_mtime < limits.HOUR, "it was used now"
    assert upload.stat().st_mtime == then, "and is not another file for that"


def test_no_other_clock_takes_files(client: Client, tmp_path: Path) -> None:
    """What the page says is what the sweeper does, and Gradio does nothing of its own."""
    client.predict(picture=handle_file(picture(tmp_path / "used.png")), api_name="/read_picture")
    (upload,) = FILES.rglob("used.png")
    hosted, home = limits.AGES["files"]
    said = dict(limits.rows())["Unused files go"]
    assert said == f"after {hosted // limits.DAY} day on a hosted Space, after {home // limits.DAY} days at home"
    for age, there in ((home - limits.HOUR, True), (home + limits.HOUR, False)):
        then = time.time() - age
        for each in (upload, upload.parent):
            os.utime(each, (then, then))
        sweeper.sweep(FILES)
        assert upload.exists() == there
