"""Paths in place of a file, a name or a run, in every field of every endpoint.

They are refused, and not a byte of what they point to gets out.
"""

import http.client
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from gradio_client import Client

from core.generate import outputs
from core.train import runs
from tabs.server.page_files import FILES_FOLDER
from tests.dataset.parts import PNG, write_zip
from tests.trust.raw import ENDPOINTS, RawClient, find_naming_fields, list_leftovers
from tests.trust.visitor import Visitor

SECRET = f"canary-{secrets.token_hex(8)}"
TOOL_FIELDS = {"hires": "upscaler", "detail": "detector", "expand": "expander"}


@pytest.fixture(scope="module")
def hostile_paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Yield paths to request, among them a file of another visitor's run with a secret in it."""
    other = runs.RUNS / secrets.token_hex(16)
    (other / "loras").mkdir(parents=True)
    for name in ("run.json", "events.jsonl", "loras/soft.safetensors", "process.log"):
        (other / name).write_text(SECRET)
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_text(SECRET)
    yield [
        "/etc/passwd",
        "../app.py",
        str(other / "run.json"),
        f"file://{outside}",
        "\\\\server\\x",
        "a/../../b",
    ]
    for file in sorted(other.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    other.rmdir()


def assert_silent(said: str, where: object) -> None:
    """Assert that an answer holds nothing of the files that the hostile paths point to."""
    for secret in (
        SECRET,
        Path("/etc/passwd").read_text().splitlines()[0],
        "One door to the GPU first, then the models",
    ):
        assert secret not in said, f"{where} gave {secret!r} away"


def list_shapes(field: str, path: str) -> list[Any]:
    """Return the path in each form in which a client can send it."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return [
        file,
        [{"path": path}],
        [{"lora": path}],
        [{"run": path}],
        *([{TOOL_FIELDS[field]: path}] if field in TOOL_FIELDS else []),
    ]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_case_11_no_field_opens_a_path(
    client: Client, raw: RawClient, hostile_paths: list[str], tmp_path: Path, endpoint: str
) -> None:
    fields = find_naming_fields(client, endpoint)
    assert fields, "nothing is tried"
    beside = (
        {"dataset": raw.upload("good.zip", write_zip(tmp_path, {"a.png": PNG}).read_bytes())}
        if "dataset" in fields
        else {}
    )
    # Each path as it is; in files and tables one of each, since those reach the same checks.
    asked = [
        (field, said)
        for field, kind in fields.items()
        for said in (
            *hostile_paths,
            *list_shapes(field, hostile_paths[2])[: 1 if kind == "Textbox" else None],
        )
    ]
    before = list_leftovers()
    for field, said in asked:
        answer = raw.call_endpoint(endpoint, **{**beside, field: said})
        assert_silent(answer, (endpoint, field, said))
        assert answer.startswith("refused: "), f"{endpoint} took {said!r} as {field}: {answer:.300}"
    assert list_leftovers() == before


ROUTES = (
    "gradio_api/file=",
    "file=",
    "gradio_api/file/",
    "assets/",
    "static/",
    "svelte/",
    "gradio_api/proxy=",
    "gradio_api/stream/",
    "theme.css/../",
)


def test_case_11_no_route_serves_a_path(studio: str, hostile_paths: list[str]) -> None:
    """Each path is sent as it is and percent-encoded, by a client that normalises nothing."""
    at = urlsplit(studio)
    root = Path(__file__).resolve().parent.parent.parent
    more = [
        f"{FILES_FOLDER}/x/../../../../../../../etc/passwd",
        str(root / "app.py"),
        "/proc/self/environ",
        *(str(runs.RUNS / Path(hostile_paths[2]).parent.name / "events.jsonl"),),
    ]
    for path in (*hostile_paths, *more):
        for route in ROUTES:
            for said in (
                quote(path, safe="/:"),
                quote(path, safe=""),
                quote(path, safe="").replace("%2F", "%252F"),
            ):
                connection = http.client.HTTPConnection(at.hostname or "", at.port)
                connection.request("GET", f"/{route}{said}")
                answer = connection.getresponse()
                assert_silent(answer.read().decode(errors="replace"), (route, said))
                assert 400 <= answer.status < 500, f"{route}{said}: {answer.status}"
                connection.close()


def test_case_11_an_uploads_name_is_no_path(raw: RawClient) -> None:
    for name in (
        "../../../../../tmp/evil.png",
        "/tmp/evil.png",
        "..\\..\\evil.png",
        "evil.png/../../evil.png",
    ):
        file = Path(raw.upload(name, SECRET.encode())["path"])
        assert file.is_relative_to(FILES_FOLDER)
        assert file.read_text() == SECRET
    assert not (Path("/tmp") / "evil.png").exists()
    assert not (FILES_FOLDER / "evil.png").exists()


def test_case_11_the_pages_own_functions_open_no_path(
    client: Client, raw: RawClient, hostile_paths: list[str]
) -> None:
    """Anyone who reads the page's source can call these functions.

    Those that need no place in the queue answer at once.
    """
    config: Any = client.config
    components = {each["id"]: each for each in config["components"]}
    tried = 0
    for function in config["dependencies"]:
        kinds = [components[number]["type"] for number in function["inputs"]]
        if function["queue"] is not False or function["api_visibility"] == "public" or "state" in kinds:
            continue
        for place, kind in enumerate(kinds):
            if kind not in ("file", "dropdown", "textbox"):
                continue
            for path in (hostile_paths[0], hostile_paths[2], hostile_paths[5]):
                data = [components[number]["props"].get("value") for number in function["inputs"]]
                data[place] = {"path": path, "meta": {"_type": "gradio.FileData"}} if kind == "file" else path
                answer = raw.post(
                    "run/predict", {"data": data, "fn_index": function["id"], "session_hash": "hostile"}
                )
                assert_silent(answer.text, (function["api_name"], place))
                assert kind != "file" or answer.status_code == 400, (
                    f"{function['api_name']} took {path}: {answer.text:.300}"
                )
                tried += 1
    assert tried > 50


def test_case_11_the_history_takes_no_path(studio: str, client: Client) -> None:
    """What the server knows of a session is not the client's to say: nothing is read or deleted by it."""
    kept = outputs.find_outputs()
    assert kept
    file = kept.folder / f"{SECRET}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(PNG)
    config: Any = client.config
    kinds = {each["id"]: each["type"] for each in config["components"]}
    names = ("_delete_picture", "_choose_picture", "load_settings")
    jobs = [each for each in config["dependencies"] if each["api_name"].startswith(names)]
    assert {name for name in names for job in jobs if job["api_name"].startswith(name)} == set(names)
    for job in jobs:
        for forged in (str(file), [str(file)]):
            visitor = Visitor(studio)
            data = [
                forged if kinds[each] == "state" else "nano" if kinds[each] == "dropdown" else None
                for each in job["inputs"]
            ]
            event = {"index": 0, "value": str(file), "selected": True}
            body = {"data": data, "fn_index": job["id"], "session_hash": visitor.session, "event_data": event}
            visitor.post("gradio_api/queue/join", body)
            visitor.wait_for_result()
            assert_silent(visitor.stream_bytes.decode(), job["api_name"])
    assert file.read_bytes() == PNG
    file.unlink()
