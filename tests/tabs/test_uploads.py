"""An upload is kept as long as the page says, over a restart and counted from its last use."""

import os
import signal
import time
from pathlib import Path

import httpx
from gradio_client import Client, handle_file
from PIL import Image

from core.prompts.infotext import create_infotext
from core.prompts.png_metadata import save_png
from core.runtime import cleanup
from core.schema import limits
from core.schema.types import Request
from tabs.server.page_files import FILES_FOLDER
from tests.server import Server

REQUEST = Request(
    model="nano",
    prompt="1girl",
    negative="",
    width=128,
    height=128,
    steps=4,
    cfg=5,
    sampler="Euler a",
    seed=7,
)


def save_picture(file: Path) -> Path:
    save_png(Image.new("RGB", (8, 8)), file, create_infotext(REQUEST))
    return file


def test_an_upload_is_there_after_a_restart(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    try:
        client = Client(server.wait_for_url(), verbose=False)
        assert (
            client.predict(
                picture=handle_file(save_picture(tmp_path / "mine.png")), api_name="/read_picture"
            )["seed"]
            == 7
        )
        (upload,) = (tmp_path / "server" / "files").rglob("mine.png")
        then = time.time() - limits.DAY
        for each in (upload, upload.parent):
            os.utime(each, (then, then))
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_exit() == 0
    finally:
        server.stop()
    assert upload.exists(), "the restart took it"
    again = Server(tmp_path / "server")
    try:
        url = again.wait_for_url()
        said = {"path": str(upload), "meta": {"_type": "gradio.FileData"}}
        # by plain HTTP: gradio_client would upload the file again
        first = httpx.post(f"{url}/gradio_api/call/read_picture", json={"data": [said]}).json()
        answer = httpx.get(f"{url}/gradio_api/call/read_picture/{first['event_id']}", timeout=60).text
        assert '"seed": 7' in answer, "an open page's file is not taken"
    finally:
        again.stop()
    assert time.time() - upload.parent.stat().st_mtime < limits.HOUR, "it was used now"
    assert upload.stat().st_mtime == then, "and is not another file for that"


def test_no_other_clock_takes_files(client: Client, tmp_path: Path) -> None:
    """The cleanup keeps to what the page says, and Gradio deletes nothing by rules of its own."""
    client.predict(picture=handle_file(save_picture(tmp_path / "used.png")), api_name="/read_picture")
    (upload,) = FILES_FOLDER.rglob("used.png")
    hosted, home = limits.UNUSED_AGES["files"]
    said = dict(limits.list_limits())["Unused files are deleted"]
    assert (
        said == f"after {hosted // limits.DAY} day on a hosted Space, after {home // limits.DAY} days at home"
    )
    for age, there in ((home - limits.HOUR, True), (home + limits.HOUR, False)):
        then = time.time() - age
        for each in (upload, upload.parent):
            os.utime(each, (then, then))
        cleanup.remove_expired(FILES_FOLDER)
        assert upload.exists() == there
