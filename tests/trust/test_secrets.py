"""The owner's tokens in a real app.

They are never used for a visitor and never seen anywhere, whatever goes wrong.
"""

import os
import random
import re
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.nano.lessons import make_airbrush_set
from tests.hub.server import serve_hub
from tests.hub.server_state import Hub, Repo
from tests.publish.test_card import EXAMPLE
from tests.train.parts import SMALL_SIZES
from tests.trust.visitor import Visitor

ROOT = Path(__file__).parent.parent.parent
ENV_TOKEN, SAVED_TOKEN, VISITOR_TOKEN = ("hf_" + letter * 34 for letter in "QWZ")
"""Tokens in the environment, of the machine's login and of a visitor who is logged in."""
PRIVATE_REPOS = ("ann/private", "ann/private:soft.safetensors", "ann/gated", "ann/gone")


@dataclass
class App:
    """The app in its own process, the Hub that it uses, and the folder that holds all its files."""

    url: str
    process: subprocess.Popen[bytes]
    server: Hub
    folder: Path

    def read_log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("owner")
    (folder / "hf").mkdir()
    (folder / "hf" / "token").write_text(SAVED_TOKEN)
    with (
        serve_hub(dict.fromkeys((ENV_TOKEN, SAVED_TOKEN, VISITOR_TOKEN), "ann")) as server,
        (folder / "log").open("wb") as log,
    ):
        for name in ("private", "gated", "precious"):
            server.repos[f"ann/{name}"] = Repo(name == "private", "ann")
            server.repos[f"ann/{name}"].add_commit(
                "by hand", {"soft.safetensors": EXAMPLE.read_bytes(), "README.md": b"# mine"}
            )
        server.fail("/ann/gated", "403 gated", times=999)
        mine = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "GRADIO_", "SPACE"))
        }
        mine |= {
            "HF_TOKEN": ENV_TOKEN,
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": server.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        mine |= {
            "SWEETSPOT_RUNS": str(folder / "runs"),
            "SWEETSPOT_CELLS": str(folder / "cells"),
            "GRADIO_TEMP_DIR": str(folder / "files"),
        }
        mine |= {
            "NO_PROXY": "127.0.0.1",
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "PYTHONUNBUFFERED": "1",
        }
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=mine, stdout=log, stderr=log)
        made = App("", process, server, folder)
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", made.read_log())):
                assert process.poll() is None, made.read_log()
                time.sleep(0.1)
            made.url = f"{found[0]}/"
            yield made
        finally:
            process.terminate()
            process.wait(timeout=30)


def call_job(visitor: Visitor, job: str, **values: Any) -> str:
    """Return what the call answers, errors included."""
    try:
        visitor.join(job, **values)
        return str(visitor.wait_for_result())
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_case_13_a_visitor_gets_nothing_by_the_owners_token(app: App) -> None:
    visitor = Visitor(app.url)
    for name in PRIVATE_REPOS:
        asked: list[tuple[str, dict[str, Any]]] = [
            ("inspect_lora", {"lora": name}),
            ("edit_lora", {"lora": name}),
            ("generate", {"prompt": "1girl", "loras": [{"lora": name}]}),
            ("sweep", {"lora": name}),
            ("transfer", {"loras": [name], "models": ["nano"]}),
            ("publish", {"lora": name, "repo": "ann/private", "dry_run": True}),
        ]
        for job, values in asked:
            repo = name.partition(":")[0]
            why = "gated: accept its terms" if repo == "ann/gated" else "private or does not exist"
            assert f"lora: {repo} is {why}" in call_job(visitor, job, **values), (job, name)
    told = call_job(visitor, "publish", lora="nano-airbrush", repo="ann/private", dry_run=True)
    assert "'commit': None" in told, "a private repository was looked at"
    assert "login: nobody is logged in" in call_job(
        visitor, "publish", lora="nano-airbrush", repo="ann/private"
    )
    told = call_job(visitor, "generate", prompt="a cat", preset="sdxl-base", steps=1)
    assert "is private or does not exist" in told, told
    assert len(app.server.requests) > 20
    assert not [one for one in app.server.requests if "authorization" in one.headers], "a token went along"


def upload_file(visitor: Visitor, file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        (path,) = httpx.post(f"{visitor.url}gradio_api/upload", files={"files": opened}).json()
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


HubCall = Callable[[Visitor, Hub], object]
"""A call that a visitor makes while the Hub runs; returns what the visitor gets."""


def make_call(job: str, **values: Any) -> HubCall:
    """Make a call of an endpoint; files among the values are uploaded first."""

    def call(visitor: Visitor, _: Hub) -> object:
        uploaded = {
            name: upload_file(visitor, value) if isinstance(value, Path) else value
            for name, value in values.items()
        }
        return call_job(visitor, job, **uploaded)

    return call


def make_faulty_publish(asked: str, kind: Any) -> HubCall:
    """Make a call that publishes while the Hub answers the request `asked` with a fault."""

    def publish(visitor: Visitor, server: Hub) -> object:
        server.fail(asked, kind)
        found = call_job(visitor, "publish", lora="nano-airbrush", repo="ann/soft", use_login=True)
        server.faults[:] = [each for each in server.faults if each[0] == "/ann/gated"]
        return found

    return publish


def make_post(path: str, body: dict[str, Any]) -> HubCall:
    return lambda visitor, _: httpx.post(f"{visitor.url}{path}", json=body).text


def make_get(path: str) -> HubCall:
    return lambda visitor, _: httpx.get(f"{visitor.url}{path}").text


def list_failures(folder: Path) -> list[HubCall]:
    """Return calls that fail, each to be made against the real app."""
    torn, text = folder / "torn.safetensors", folder / "text.png"
    torn.write_bytes(EXAMPLE.read_bytes()[:5000])
    text.write_text("no picture")
    own = {"more": {"oauth_token": VISITOR_TOKEN}}
    return [
        *(
            make_call("publish", lora="nano-airbrush", repo=repo, use_login=True, **own)
            for repo in ("../x", "bob/x", "ann/precious", "x" * 300, "ann/gated", "")
        ),
        *(
            make_call("publish", lora=name, repo="ann/x", use_login=True, **own)
            for name in (*PRIVATE_REPOS, torn, "none")
        ),
        make_call("publish", run="0" * 32, repo="ann/x", use_login=True, **own),
        make_call("publish", lora="nano-airbrush", repo="ann/x", description="x" * 10**6, **own),
        *(
            make_faulty_publish(where, kind)
            for where in ("GET /api/whoami", "GET /api/models/ann/soft", "POST /api/repos/create")
            for kind in ("401", "404", "500", "cut")
        ),
        *(make_faulty_publish("POST .*/commit/", kind) for kind in ("401", "403 gated", "404", "409")),
        *(
            make_call("inspect_lora", lora=name)
            for name in (*PRIVATE_REPOS, torn, text, "hf.co.evil/x", {"path": "/etc/passwd"}, 7)
        ),
        make_call("generate", prompt="1girl", lora_file=torn),
        make_call("generate", prompt="1girl <lora:none:1>"),
        make_call("generate", prompt="a cat", preset="sdxl-base", steps=1),
        make_call("generate", prompt="a cat", preset="kohaku-xl-delta", steps=1),
        make_call("generate", prompt="1girl", steps=1, hires={"upscaler": "DAT x2"}),
        make_call("generate", prompt="1girl", width=1001),
        make_call("generate", prompt="1girl", cfg="nan"),
        make_call("expand_prompt", prompt="1girl", ban="(a+)+"),
        make_call("sweep", lora="ann/private", seeds="1, 2"),
        make_call("sweep", lora=torn, seeds="1, 2"),
        make_call("transfer", loras=["ann/gated"], models=["nano"]),
        make_call("transfer", loras=["nano-airbrush"], models=["none"]),
        make_call("caption", dataset=text),
        make_call("train_start", dataset=text, recipe="none"),
        make_call("train_status", run="../hf"),
        make_call("read_picture", picture=text),
        make_post("gradio_api/queue/join", {"data": [1], "fn_index": 9999, "session_hash": "x"}),
        make_post("gradio_api/queue/join", {"data": "x", "fn_index": 14, "session_hash": "x"}),
        make_post("gradio_api/run/publish", {"data": [None] * 14}),
        make_post("gradio_api/call/none", {"data": []}),
        *(make_get(f"gradio_api/file={folder.parent}/hf/token") for _ in range(2)),
        make_get("gradio_api/file=/proc/self/environ"),
        make_get("gradio_api/file=../hf/token"),
    ]


def start_failing_run(app: App, visitor: Visitor) -> str:
    """Start a run that will fail, and return its name.

    Asserts that its process has no token in its environment.
    """
    pictures = []
    for i, (picture, _) in enumerate(make_airbrush_set(2)):
        picture.save(app.folder / f"{i}.png")
        pictures.append(upload_file(visitor, app.folder / f"{i}.png"))
    settings = {
        "steps": 6,
        "batch": 1,
        "rate": 10.0,
        "clip": 0,
        "preview_every": 0,
        "save_every": 1,
        **SMALL_SIZES,
    }
    visitor.join("train_start", dataset=pictures, recipe="nano-quick", trigger="soft", overrides=settings)
    name = visitor.wait_for_result()["output"]["data"][0]["run"]
    told = []
    while not told:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if name.encode() in (process / "cmdline").read_bytes():
                    told.append((process / "environ").read_bytes())
    assert all(ENV_TOKEN.encode() not in each for each in told), (
        "a token is in the environment of a process that trains"
    )
    return name


def test_case_14_no_token_is_seen_whatever_goes_wrong(app: App, tmp_path: Path) -> None:
    """After fifty random failures no token is in what a visitor gets, what is logged or written."""
    visitor, chance = Visitor(app.url), random.Random(14)
    run = start_failing_run(app, visitor)
    ways = list_failures(app.folder / "files")
    told = [str(way(visitor, app.server)) for way in chance.sample(ways, 50)]
    assert call_job(visitor, "publish", lora="nano-airbrush", repo="ann/soft", use_login=True).count(
        "'success': True"
    ), "one that goes well"
    while re.search("'state': '(waiting|running)'", status := call_job(visitor, "train_status", run=run)):
        time.sleep(0.2)
    told += [status, visitor.stream_bytes.decode(), app.read_log()]
    told += [
        visitor.get(path).decode() for path in ("config", "gradio_api/info", "gradio_api/openapi.json", "")
    ]
    written = [
        file for file in app.folder.rglob("*") if file.is_file() and file != app.folder / "hf" / "token"
    ]
    assert [file for file in written if file.name == "events.jsonl"]
    assert [file for file in written if file.name == "README.md"], "a card was made"
    there = [
        data
        for repo in app.server.repos.values()
        for commit in repo.commits
        for data in commit.files.values()
    ]
    everything = [*(text.encode() for text in told), *(file.read_bytes() for file in written), *there]
    for token in (ENV_TOKEN, SAVED_TOKEN, VISITOR_TOKEN):
        assert not [data[:300] for data in everything if token[:20].encode() in data], "a token was seen"
    used = {one.headers["authorization"] for one in app.server.requests if "authorization" in one.headers}
    assert used == {f"Bearer {ENV_TOKEN}"}, "the login was used where it was asked for, and only that one"
    assert app.process.poll() is None
