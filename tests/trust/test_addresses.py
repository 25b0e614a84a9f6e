"""Addresses in place of a model, a LoRA or a picture lead nowhere.

Nobody is called, and no name is looked up; only the Hub is, by owner/name.
"""

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

from tests.dataset.parts import PNG, write_zip
from tests.hub.server_state import Hub
from tests.trust.raw import ENDPOINTS, RawClient, find_naming_fields, list_leftovers

CONNECTIONS: list[tuple[Any, ...]] | None = None
"""Machines that this process calls or looks up; `None` while nothing is recorded."""


def _record_connection(event: str, arguments: tuple[Any, ...]) -> None:
    if CONNECTIONS is not None and event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        place = arguments[1] if event == "socket.connect" else arguments[:2]
        if isinstance(place, tuple):  # anything else is a local socket of this machine
            CONNECTIONS.append(
                tuple(part.decode() if isinstance(part, bytes) else part for part in place[:2])
            )


sys.addaudithook(_record_connection)


@contextmanager
def record_connections() -> Iterator[list[tuple[Any, ...]]]:
    global CONNECTIONS
    CONNECTIONS = []
    try:
        yield CONNECTIONS
    finally:
        CONNECTIONS = None


class CanaryHandler(BaseHTTPRequestHandler):
    """Records each request and redirects it to this server."""

    requested_paths: list[str]

    def do_GET(self) -> None:
        self.requested_paths.append(self.path)
        self.send_response(302)
        self.send_header("Location", f"http://{self.headers['Host']}/again")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture(scope="module")
def canary() -> Iterator[tuple[int, list[str]]]:
    """Listen on a port of this machine; yield the port and the paths that were requested."""
    CanaryHandler.requested_paths = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), CanaryHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, CanaryHandler.requested_paths
    server.shutdown()
    server.server_close()


def make_addresses(port: int) -> list[str]:
    return [
        "http://169.254.169.254/latest/meta-data/",
        f"http://localhost:{port}/x.safetensors",
        f"http://127.0.0.1:{port}/redirect.png",
        "https://hf.co.evil.com/a/b.safetensors",
        "https://huggingface.co/a/b/resolve/main/c.safetensors",
        f"//127.0.0.1:{port}/x",
        f"hf.co@127.0.0.1:{port}/x",
    ]


def make_file_value(address: str) -> dict[str, Any]:
    return {"path": address, "meta": {"_type": "gradio.FileData"}}


def test_case_12_the_canary_would_sing(canary: tuple[int, list[str]]) -> None:
    port, came = canary
    with record_connections() as called, socket.create_connection(("localhost", port)) as caller:
        caller.sendall(b"GET /sings HTTP/1.0\r\n\r\n")
        assert b"302" in caller.recv(100)
    assert came.pop() == "/sings"
    assert ("localhost", port) in called


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_case_12_no_field_calls_anybody(
    client: Client,
    raw: RawClient,
    hub_server: Hub,
    canary: tuple[int, list[str]],
    tmp_path: Any,
    endpoint: str,
) -> None:
    port, came = canary
    fields = find_naming_fields(client, endpoint)
    upload = raw.upload("good.zip", write_zip(tmp_path, {"a.png": PNG}).read_bytes())
    beside = {"dataset": upload} if "dataset" in fields else {}
    own = {urlsplit(client.src).port, urlsplit(hub_server.url).port}
    here = make_addresses(port)
    inside = [
        make_file_value(here[2]),
        [make_file_value(here[4])],
        [{"lora": here[1]}],
        [{"lora": make_file_value(here[3])}],
        {"url": here[1], "meta": {"_type": "gradio.FileData"}},
    ]
    before = list_leftovers()
    with record_connections() as called:
        for field, kind in fields.items():
            for said in here[:3:2] if kind == "Textbox" else [*here, *inside]:
                answer = raw.call_endpoint(endpoint, **{**beside, field: said})
                assert answer.startswith("refused: "), f"{endpoint} took {said!r} as {field}: {answer:.300}"
        assert list_leftovers() == before
        # an upload that also names an address, which must not be requested in its place
        for field in fields:
            raw.call_endpoint(endpoint, **{**beside, field: {**upload, "url": here[1]}})
    assert not came
    assert not [one for one in called if one[1] not in own], "somebody was called, or looked up"
    assert not [one.path for one in hub_server.requests if not one.path.startswith("/api/models/")]


@pytest.mark.parametrize(
    "name", ["hf.co.evil.com/x", "169.254.169.254/latest", "localhost/x", "127.0.0.1/x:y.safetensors"]
)
def test_case_12_what_looks_like_an_id_is_one(
    raw: RawClient, hub_server: Hub, canary: tuple[int, list[str]], name: str
) -> None:
    """The Hub gets the request, and nobody else."""
    with record_connections() as called:
        said = raw.call_endpoint("/inspect_lora", lora=name)
    assert said == f"refused: lora: {name.partition(':')[0]} is private or does not exist on Hugging Face."
    assert {one.path for one in hub_server.requests} == {f"/api/models/{name.partition(':')[0]}"}
    assert {one[0] for one in called} == {"127.0.0.1"}


def test_case_12_no_route_fetches_an_address(
    raw: RawClient, client: Client, canary: tuple[int, list[str]]
) -> None:
    port, came = canary
    with record_connections() as called:
        for address in make_addresses(port)[:6]:
            for route in ("file=", "proxy=", "file/"):
                for method in ("GET", "HEAD"):
                    answer = raw.http.request(method, f"{route}{address}", follow_redirects=False)
                    assert 400 <= answer.status_code < 500, f"{route}{address}: {answer.status_code}"
                    assert "location" not in answer.headers
    assert not came
    assert {one[1] for one in called} <= {urlsplit(client.src).port}
