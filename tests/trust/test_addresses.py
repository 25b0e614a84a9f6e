"""Addresses where a model, a LoRA or a picture is asked for: nobody is called, not even a name is looked up; only the Hub, by owner/name."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from gradio_client import Client

from tests.data.parts import PNG, zipped
from tests.publish.conftest import hub_server as hub_server  # a fixture
from tests.publish.hub import Hub
from tests.trust.raw import ENDPOINTS, Raw, left_behind
from tests.trust.test_paths import WORDS

CALLS: list[tuple[Any, ...]] | None = None
"""Machines that this process calls or looks up; `None` while nobody listens."""


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if CALLS is not None and event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        place = arguments[1] if event == "socket.connect" else arguments[:2]
        if isinstance(place, tuple):  # anything else is a socket of this machine's own
            CALLS.append(tuple(part.decode() if isinstance(part, bytes) else part for part in place[:2]))


sys.addaudithook(_listen)


@contextmanager
def calls() -> Iterator[list[tuple[Any, ...]]]:
    global CALLS
    CALLS = []
    try:
        yield CALLS
    finally:
        CALLS = None


class Canary(BaseHTTPRequestHandler):
    """Who comes to it is sent on to itself."""

    came: list[str]

    def do_GET(self) -> None:
        self.came.append(self.path)
        self.send_response(302)
        self.send_header("Location", f"http://{self.headers['Host']}/again")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture(scope="module")
def canary() -> Iterator[tuple[int, list[str]]]:
    """A listening port of this machine, and what came to it."""
    Canary.came = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Canary)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, Canary.came
    server.shutdown()
    server.server_close()


def addresses(port: int) -> list[str]:
    return [
        "http://169.254.169.254/latest/meta-data/", f"http://localhost:{port}/x.safetensors", f"http://127.0.0.1:{port}/redirect.png",
        "https://hf.co.evil.com/a/b.safetensors", "https://huggingface.co/a/b/resolve/main/c.safetensors", f"//127.0.0.1:{port}/x", f"hf.co@127.0.0.1:{port}/x",
    ]  # fmt: skip


def file(address: str) -> dict[str, Any]:
    return {"path": address, "meta": {"_type": "gradio.FileData"}}


def test_case_12_the_canary_would_sing(canary: tuple[int, list[str]]) -> None:
    port, came = canary
    with calls() as called, socket.create_connection(("localhost", port)) as caller:
        caller.sendall(b"GET /sings HTTP/1.0\r\n\r\n")
        assert b"302" in caller.recv(100)
    assert came.pop() == "/sings"
    assert ("localhost", port) in called


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_case_12_no_field_calls_anybody(client: Client, raw: Raw, hub_server: Hub, canary: tuple[int, list[str]], tmp_path: Any, endpoint: str) -> None:
    port, came = canary
    api: Any = client.view_api(return_format="dict", print_info=False)
    kinds = {each["parameter_name"]: each["component"] for each in api["named_endpoints"][endpoint]["parameters"]}
    fields = {field: kinds[field] for field in ENDPOINTS[endpoint]["takes"] if field not in WORDS and kinds[field] not in ("Number", "Checkbox")}
    upload = raw.upload("good.zip", zipped(tmp_path, {"a.png": PNG}).read_bytes())
    beside = {"dataset": upload} if "dataset" in fields else {}
    own = {urlsplit(client.src).port, urlsplit(hub_server.url).port}
    here = addresses(port)
    inside = [file(here[2]), [file(here[4])], [{"lora": here[1]}], [{"lora": file(here[3])}], {"url": here[1], "meta": {"_type": "gradio.FileData"}}]
    before = left_behind()
    with calls() as called:
        for field, kind in fields.items():
            for said in here[:3:2] if kind == "Textbox" else [*here, *inside]:
                answer = raw.answer(endpoint, **{**beside, field: said})
                assert answer.startswith("refused: "), f"{endpoint} took {said!r} as {field}: {answer:.300}"
        assert left_behind() == before
        for field in fields:  # an upload that also names an address, which is not to be asked in its place
            raw.answer(endpoint, **{**beside, field: {**upload, "url": here[1]}})
    assert not came
    assert not [one for one in called if one[1] not in own], "somebody was called, or looked up"
    assert not [one.path for one in hub_server.asked if not one.path.startswith("/api/models/")]


@pytest.mark.parametrize("name", ["hf.co.evil.com/x", "169.254.169.254/latest", "localhost/x", "127.0.0.1/x:y.safetensors"])
def test_case_12_what_looks_like_an_id_is_one(raw: Raw, hub_server: Hub, canary: tuple[int, list[str]], name: str) -> None:
    """The Hub is asked for it, and nobody else."""
    with calls() as called:
        said = raw.answer("/inspect_lora", lora=name)
    assert said == f"refused: lora: {name.partition(':')[0]} is gated, private or gone on the Hub."
    assert {one.path for one in hub_server.asked} == {f"/api/models/{name.partition(':')[0]}"}
    assert {one[0] for one in called} == {"127.0.0.1"}


def test_case_12_no_route_fetches_an_address(raw: Raw, client: Client, canary: tuple[int, list[str]]) -> None:
    port, came = canary
    with calls() as called:
        for address in addresses(port)[:6]:
            for route in ("file=", "proxy=", "file/"):
                for method in ("GET", "HEAD"):
                    answer = raw.http.request(method, f"{route}{address}", follow_redirects=False)
                    assert 400 <= answer.status_code < 500, f"{route}{address}: {answer.status_code}"
                    assert "location" not in answer.headers
    assert not came
    assert {one[1] for one in called} <= {urlsplit(client.src).port}
