"""Paths where a file, a name or a run is asked for, in every field of every endpoint: refused, and never a byte of what they point to."""

import http.client
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from gradio_client import Client

from core.train import runs
from tabs.files import FILES
from tests.data.parts import PNG, zipped
from tests.trust.raw import ENDPOINTS, Raw, left_behind

WORDS = {"prompt", "prompts", "negative", "trigger", "title", "description", "drop", "ban", "license"}
"""Fields that hold a person's own words, which name nothing. Any other, also one that is new, is tried."""
SECRET = f"canary-{secrets.token_hex(8)}"
TOOLS = {"hires": "upscaler", "detail": "detector", "expand": "expander"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What is asked for; among it what another visitor's run has, with a secret in it."""
    other = runs.RUNS / secrets.token_hex(16)
    (other / "loras").mkdir(parents=True)
    for name in ("run.json", "events.jsonl", "loras/soft.safetensors", "process.log"):
        (other / name).write_text(SECRET)
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_text(SECRET)
    yield ["/etc/passwd", "../app.py", str(other / "run.json"), f"file://{outside}", "\\\\server\\x", "a/../../b"]
    for file in sorted(other.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    other.rmdir()


def assert_silent(said: str, where: object) -> None:
    """Not a byte of any of them."""
    for secret in (SECRET, Path("/etc/passwd").read_text().splitlines()[0], "One door to the GPU first, then the models"):
        assert secret not in said, f"{where} gave {secret!r} away"


def shapes(field: str, path: str) -> list[Any]:
    """The path as clients may say it."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return [file, [{"path": path}], [{"lora": path}], [{"run": path}], *([{TOOLS[field]: path}] if field in TOOLS else [])]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_case_11_no_field_opens_a_path(client: Client, raw: Raw, hostile: list[str], tmp_path: Path, endpoint: str) -> None:
    api: Any = client.view_api(return_format="dict", print_info=False)
    kinds = {each["parameter_name"]: each["component"] for each in api["named_endpoints"][endpoint]["parameters"]}
    fields = {field: kinds[field] for field in ENDPOINTS[endpoint]["takes"] if field not in WORDS and kinds[field] not in ("Number", "Checkbox")}
    assert fields, "nothing is tried"
    beside = {"dataset": raw.upload("good.zip", zipped(tmp_path, {"a.png": PNG}).read_bytes())} if "dataset" in fields else {}
    # Each path as it is; as a file and in tables one of each, since those lead to the same doors.
    asked = [(field, said) for field, kind in fields.items() for said in (*hostile, *shapes(field, hostile[2])[: 1 if kind == "Textbox" else None])]
    before = left_behind()
    for field, said in asked:
        answer = raw.answer(endpoint, **{**beside, field: said})
        assert_silent(answer, (endpoint, field, said))
        assert answer.startswith("refused: "), f"{endpoint} took {said!r} as {field}: {answer:.300}"
    assert left_behind() == before


ROUTES = ("gradio_api/file=", "file=", "gradio_api/file/", "assets/", "static/", "svelte/", "gradio_api/proxy=", "gradio_api/stream/", "theme.css/../")


def test_case_11_no_route_serves_a_path(studio: str, hostile: list[str]) -> None:
    """As it stands and percent-encoded, by a client that normalises nothing."""
    at = urlsplit(studio)
    root = Path(__file__).resolve().parent.parent.parent
    more = [
        f"{FILES}/x/../../../../../../../etc/passwd",
        str(root / "app.py"),
        "/proc/self/environ",
        *(str(runs.RUNS / Path(hostile[2]).parent.name / "events.jsonl"),),
    ]
    for path in (*hostile, *more):
        for route in ROUTES:
            for said in (quote(path, safe="/:"), quote(path, safe=""), quote(path, safe="").replace("%2F", "%252F")):
                connection = http.client.HTTPConnection(at.hostname or "", at.port)
                connection.request("GET", f"/{route}{said}")
                answer = connection.getresponse()
                assert_silent(answer.read().decode(errors="replace"), (route, said))
                assert 400 <= answer.status < 500, f"{route}{said}: {answer.status}"
                connection.close()


def test_case_11_an_uploads_name_is_no_path(raw: Raw) -> None:
    for name in ("../../../../../tmp/evil.png", "/tmp/evil.png", "..\\..\\evil.png", "evil.png/../../evil.png"):
        file = Path(raw.upload(name, SECRET.encode())["path"])
        assert file.is_relative_to(FILES)
        assert file.read_text() == SECRET
    assert not (Path("/tmp") / "evil.png").exists()
    assert not (FILES / "evil.png").exists()


def test_case_11_the_pages_own_functions_open_no_path(client: Client, raw: Raw, hostile: list[str]) -> None:
    """Whoever looks at the page's source can call these; those that need no place in the queue answer at once."""
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
            for path in (hostile[0], hostile[2], hostile[5]):
                data = [components[number]["props"].get("value") for number in function["inputs"]]
                data[place] = {"path": path, "meta": {"_type": "gradio.FileData"}} if kind == "file" else path
                answer = raw.post("run/predict", {"data": data, "fn_index": function["id"], "session_hash": "hostile"})
                assert_silent(answer.text, (function["api_name"], place))
                assert kind != "file" or answer.status_code == 400, f"{function['api_name']} took {path}: {answer.text:.300}"
                tried += 1
    assert tried > 50
