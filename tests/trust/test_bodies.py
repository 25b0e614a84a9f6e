"""Request bodies are bounded, whichever way they come: bytes, values, fields.

Whatever no endpoint takes is answered by one sentence, and none of it is in the log.
"""

import itertools
import json
import re
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

import app
from core.schema import limits
from core.system import call_log
from core.transfer.report import CELL_FIELDS
from tests.trust.raw import ENDPOINTS, RawClient, list_leftovers

MEGABYTE = b"a" * 2**20
MEGABYTE_COUNT = 64
LORA_SIZE = 230 * 10**6
"""Size in bytes of a LoRA of rank 32 with both text encoders."""


def read_peak_memory() -> int:
    """Return this process' peak memory in bytes since `clear_refs` was last written."""
    return (
        int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]
        * 1024
    )


@pytest.fixture
def memory_bound() -> Iterator[None]:
    """Assert that the test costs less memory than a quarter of what it sends.

    The server runs in this process.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = read_peak_memory()
    yield
    assert read_peak_memory() - before < MEGABYTE_COUNT * 2**20 / 4


def make_long_body(begin: bytes, end: bytes) -> dict[str, Any]:
    """Return the arguments of a request with a long body that declares its length."""
    return {
        "content": itertools.chain([begin], itertools.repeat(MEGABYTE, MEGABYTE_COUNT), [end]),
        "headers": {
            "Content-Type": "application/json",
            "Content-Length": str(len(begin) + MEGABYTE_COUNT * 2**20 + len(end)),
        },
    }


@pytest.fixture(scope="module", autouse=True)
def jobs_end(studio: str, raw: RawClient) -> Iterator[None]:
    """Wait until the jobs of these tests have ended, before another file's tests count theirs."""
    yield
    end = time.monotonic() + 120
    while call_log.count_open_calls() or raw.http.get(f"{studio}health").json()["queue"]["waiting"]:
        assert time.monotonic() < end, "a job that a test began goes on"
        time.sleep(0.1)


POST_ROUTES = (
    "queue/join",
    "call/generate",
    "call/v2/generate",
    "run/train_status",
    "api/train_status",
    "cancel",
    "reset",
    "component_server",
    "stream/x",
    "vibe-code",
)


@pytest.mark.parametrize("length", [True, False], ids=["said", "unsaid"])
@pytest.mark.parametrize("path", POST_ROUTES)
def test_a_long_body_is_not_kept(raw: RawClient, memory_bound: None, path: str, length: bool) -> None:
    long = make_long_body(b'{"data": ["', b'"]}')
    if not length:
        del long["headers"]["Content-Length"]
    answer = raw.http.post(path, **long)
    assert answer.status_code == 413
    assert answer.json()["detail"] == answer.json()["error"] == "body: it is too long; the limit is 4 MB."


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_no_method_has_a_longer_one(raw: RawClient, memory_bound: None, method: str) -> None:
    assert raw.http.request(method, "queue/join", **make_long_body(b'["', b'"]')).status_code == 413


@pytest.mark.parametrize(
    "path", ["run/upload", "api/upload", "call/upload", "call/v2/upload", "stream/upload", "queue/join"]
)
def test_a_form_is_taken_at_the_uploads_address_alone(raw: RawClient, memory_bound: None, path: str) -> None:
    """A call of an endpoint named `upload` would keep gigabytes of the form in memory."""
    form = make_long_body(
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n', b"\r\n--x--\r\n"
    )
    form["headers"]["Content-Type"] = "multipart/form-data; boundary=x"
    answer = raw.http.post(path, **form)
    assert (answer.status_code, answer.text) == (
        403,
        "form: files can only be uploaded to /gradio_api/upload.",
    )


@pytest.mark.parametrize(
    "head", [b'name="files"', b'name="x"; filename="a.png"'], ids=["text", "another's name"]
)
@pytest.mark.parametrize("progress", ["", "?upload_id=x"])
def test_an_upload_has_no_fields_but_its_files(
    raw: RawClient, memory_bound: None, head: bytes, progress: str
) -> None:
    before = list_leftovers()
    field = make_long_body(b"--x\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n", b"\r\n--x--\r\n")
    field["headers"]["Content-Type"] = "multipart/form-data; boundary=x"
    answer = raw.http.post(f"upload{progress}", **field)
    assert (answer.status_code, answer.text) == (
        400,
        "form: an upload may only contain files, each in a part called files.",
    )
    assert list_leftovers() == before


def test_an_upload_that_says_it_is_endless_is_not_begun(raw: RawClient) -> None:
    connection = HTTPConnection(raw.http.base_url.netloc.decode())
    connection.putrequest("POST", f"{raw.http.base_url.path}upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(10**11))
    connection.endheaders(b"--x")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (413, b"upload: it is too large; the limit at once is 8 GB.")
    connection.close()


def test_the_loras_that_people_have_come_in(raw: RawClient, memory_bound: None) -> None:
    begins = b'--x\r\nContent-Disposition: form-data; name="files"; filename="rank 32.safetensors"\r\n\r\n'
    told = {"Content-Type": "multipart/form-data; boundary=x"}
    parts = itertools.repeat(bytes(2**20), LORA_SIZE // 2**20)
    (path,) = (
        raw.http.post("upload", content=itertools.chain([begins], parts, [b"\r\n--x--\r\n"]), headers=told)
        .raise_for_status()
        .json()
    )
    assert Path(path).stat().st_size == LORA_SIZE // 2**20 * 2**20
    Path(path).unlink()


def test_case_04_an_upload_beyond_the_limit_leaves_nothing() -> None:
    with gr.Blocks(analytics_enabled=False) as page:
        gr.File()
    _, url, _ = page.launch(
        prevent_thread_lock=True,
        quiet=True,
        server_name="127.0.0.1",
        app_kwargs=app.make_app_kwargs(page),
        max_file_size=2**20,
    )
    before = list_leftovers()
    answer = RawClient(url).http.post("upload", files={"files": ("big.safetensors", bytes(2**20 + 1))})
    page.close(verbose=False)
    assert (answer.status_code, "File size exceeded maximum allowed size" in answer.text) == (413, True)
    assert list_leftovers() == before


def test_the_largest_requests_that_people_send_come_in(raw: RawClient) -> None:
    """Two thousand pictures with captions, and a report of all pictures that a study may have."""
    file = {
        "path": f"/tmp/gradio/{'0' * 64}/picture 0001.png",
        "url": f"http://127.0.0.1:7860/gradio_api/file=/tmp/gradio/{'0' * 64}/picture 0001.png",
    }
    file |= {
        "orig_name": "picture 0001.png",
        "size": 1_000_000,
        "mime_type": "image/png",
        "is_stream": False,
        "meta": {"_type": "gradio.FileData"},
    }
    dataset = raw.call_endpoint(
        "/train_start", dataset=[file] * 2 * limits.DATASET_PICTURES, recipe="nano-quick"
    )
    assert dataset == "refused: dataset: this value is not valid."
    cell = {**dict.fromkeys(CELL_FIELDS, 0.1234), "model": "a base model", "lora": "a LoRA"}
    picture = {
        "model": "a base model",
        "lora": "a LoRA",
        "strength": 1.25,
        "prompt": "1girl, smile, " * 5,
        "seed": 1,
        "picture": "0001-1-1.25.png",
    }
    report = {
        "cells": [cell] * limits.TRANSFER_CELLS,
        "pictures": [picture] * limits.TRANSFER_CELLS,
    }
    assert "body: " not in raw.call_endpoint("/publish", transfer=report)


BAD_BODIES = {
    "values": (
        b"[" + b"0," * limits.BODY_VALUES + b"0]",
        "body: it contains too many values; the limit is 200,000.",
    ),
    "depth": (
        b"[" * 50_000 + b"]" * 50_000,
        "body: it is nested too deeply; the limit is 32 nested lists and tables.",
    ),
    "digits": (b'{"data": [' + b"9" * 6000 + b"]}", "body: it contains a number with too many digits."),
    "no JSON": (b"WORDS\n{", "body: it is not JSON: Expecting value at character 0."),
    "Latin": ('{"data": ["é"]}'.encode("latin-1"), "body: it is not JSON in UTF-8."),
    "UTF-16": ('{"data": []}'.encode("utf-16"), "body: it is not JSON in UTF-8."),
    "a string of brackets": (
        json.dumps({"data": ["[{" * 50_000 + '\\"' + ","]}).encode(),
        "endpoint: 'nothing' is unknown; the endpoints are caption,",
    ),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_body_of_no_shape_is_one_sentence(raw: RawClient, name: str) -> None:
    body, says = BAD_BODIES[name]
    answer = raw.http.post("call/nothing", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["detail"].startswith(says)


BAD_FIELDS = [
    (
        "call/WORDS%0A%1b[31m",
        {"data": []},
        404,
        r"endpoint: 'WORDS\n\x1b[31m' is unknown; the endpoints are caption, ",
    ),
    ("call/v2/WORDS%0A", {"data": []}, 404, r"endpoint: 'WORDS\n' is unknown; the endpoints are caption, "),
    ("run/WORDS%0A", {"data": []}, 404, r"endpoint: 'WORDS\n' is unknown; the endpoints are caption, "),
    (
        "call/v2/generate",
        {"prompt": "1girl", "WORDS\n": 1},
        400,
        r"generate: 'WORDS\n' is not a field; the fields are prompt, preset, ",
    ),
    ("call/v2/generate", {"preset": "nano"}, 400, "prompt: it is missing."),
    ("call/generate", {"data": ["WORDS\n"]}, 400, "data: use 21 values (prompt, preset, "),
    ("call/generate", {"WORDS\n": 1}, 400, "data: it is missing."),
    ("call/generate", {"data": "WORDS\n"}, 400, "data: input should be a valid list."),
    ("call/generate", ["WORDS\n"], 400, "body: input should be a valid dictionary"),
    (
        "call/generate",
        {"data": [], "session_hash": ["WORDS\n"]},
        400,
        "data: use 21 values (prompt, preset, ",
    ),
    ("queue/join", {"data": [], "session_hash": "a"}, 400, "fn_index: it is missing."),
    (
        "queue/join",
        {"data": [], "session_hash": "a", "fn_index": "WORDS\n"},
        404,
        r"fn_index: 'WORDS\n' is unknown.",
    ),
    (
        "queue/join",
        {"data": [], "session_hash": "a", "fn_index": 10**6},
        404,
        "fn_index: 1000000 is unknown.",
    ),
    (
        "component_server",
        {"data": 1, "component_id": 10**9, "session_hash": "a", "fn_name": "WORDS\n"},
        404,
        "component_id: 1000000000 is unknown.",
    ),
    (
        "cancel",
        {"session_hash": "\ud800WORDS\n", "fn_index": float("nan")},
        400,
        "fn_index: input should be a finite number.",
    ),
    ("run/train_status", {"data": ["WORDS\n\ud800"]}, 400, r"run: "),
    ("run/train_status", {"data": ["\x1b[31mWORDS\n" * 1000]}, 400, r"run: "),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    BAD_FIELDS,
    ids=[f"{path} {body!r:.40}" for path, body, _, _ in BAD_FIELDS],
)
def test_what_no_endpoint_takes_is_named(
    raw: RawClient, capfd: pytest.CaptureFixture[str], path: str, body: Any, status: int, says: str
) -> None:
    capfd.readouterr()
    answer = raw.post(path, body)
    told = answer.json()
    assert (answer.status_code, (told.get("detail") or told["error"])[: len(says)]) == (status, says)
    logged = "".join(capfd.readouterr())
    assert "WORDS" not in logged
    assert [json.loads(line)["outcome"] for line in logged.splitlines()] == ["refused"], (
        "a line of the journal, and nothing else"
    )


WRONG_VALUES: tuple[Any, ...] = (
    {"path": "WORDS\n"},
    ["WORDS\n"],
    [{"WORDS\n": {}}],
    "WORDS\n\ud800",
    1e308,
    {"lora": {"path": 5}},
)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_value_of_a_wrong_kind_breaks_anything(
    raw: RawClient, capfd: pytest.CaptureFixture[str], endpoint: str
) -> None:
    """Each wrong value is tried in each field alone and in all fields at once."""
    takes = ENDPOINTS[endpoint]["takes"]
    for wrong in WRONG_VALUES:
        for asked in (*({field: wrong} for field in takes), dict.fromkeys(takes, wrong)):
            if asked.keys() == {"prompt"} or (endpoint, *asked) == ("/generate", "seed"):
                continue  # these take any text, and would generate pictures
            answer = raw.submit(endpoint, **asked)
            assert answer.status_code < 500, (asked, answer.text)
            assert "Something went wrong" not in answer.text, asked
    logged = "".join(capfd.readouterr())
    assert "Traceback" not in logged
    assert "WORDS" not in logged
    assert '"error"' not in logged, "what nobody foresaw"


MALFORMED: tuple[bytes, ...] = (
    *(
        b"",
        b"null",
        b"[]",
        b"{}",
        b"WORDS\n{",
        b'"WORDS\\n"',
        b"[" * 900 + b"]" * 900,
        b"9" * 6000,
        '{"data": ["é WORDS"]}'.encode("latin-1"),
    ),
    b'{"WORDS\\nx": 1}',
    b'{"data": {"a": 1}, "fn_index": "WORDS\\n", "session_hash": 5, "trigger_id": []}',
    b'{"data": [], "fn_index": 99999, "session_hash": "WORDS\\n", "event_id": "WORDS\\n", '
    b'"fn_name": "__class__", "component_id": 99999}',
    b'{"data": ["\\ud800 WORDS\\n"], "session_hash": "\\ud800", "fn_index": 0, '
    b'"batched": true, "simple_format": true, "trigger_id": 9}',
    b'{"data": [NaN, Infinity, 1e999], "data": [NaN], "session_hash": "x", "fn_index": NaN, '
    b'"prompt": "\\ud800", "code": NaN, "event_id": NaN}',
)
ENDLESS_ROUTES = ("heartbeat", "dev/reload", "queue/data", "upload_progress")


def test_no_route_breaks_whatever_is_sent_to_it(
    studio: str, raw: RawClient, capfd: pytest.CaptureFixture[str]
) -> None:
    paths: dict[str, dict[str, Any]] = raw.http.get(f"{studio}openapi.json").json()["paths"]
    assert len(paths) > 70
    filled = {
        re.sub(r"\{\w+\}", other, path): takes
        for path, takes in paths.items()
        for other in ("WORDS%0A%1b", "train_status")
        if path[-1] != "/"
    }
    capfd.readouterr()
    for path, takes in filled.items():
        for method in ("GET", "HEAD", "PUT", "DELETE", "POST"):
            if method == "GET" and any(name in path for name in ENDLESS_ROUTES):
                continue
            for body in MALFORMED if method == "POST" and "post" in takes else MALFORMED[-1:]:
                answer = raw.http.request(
                    method, f"{studio}{path[1:]}", content=body, headers={"Content-Type": "application/json"}
                )
                assert answer.status_code < 500, (method, path, body, answer.text)
    logged = "".join(capfd.readouterr())
    assert "Traceback" not in logged
    assert "WORDS" not in logged
    assert not [line for line in logged.splitlines() if not line.startswith("{")]


@pytest.mark.parametrize("host", ["x:y:z", "[evil", "a:99999999"])
def test_a_host_that_is_none_is_one_sentence(studio: str, raw: RawClient, host: str) -> None:
    answer = raw.http.get(f"{studio}config", headers={"X-Forwarded-Host": host})
    assert answer.status_code in (200, 400)
    assert answer.is_success or answer.json()["detail"].startswith("address: ")


def test_a_stream_of_nothing_says_so(raw: RawClient, capfd: pytest.CaptureFixture[str]) -> None:
    for path in (
        "queue/data?session_hash=WORDS%0A",
        "call/generate/WORDS%0A",
        "upload_progress?upload_id=WORDS%0A",
    ):
        assert "not found" in raw.http.get(path).text.lower()
    logged = "".join(capfd.readouterr())
    assert "Traceback" not in logged
    assert "WORDS" not in logged
