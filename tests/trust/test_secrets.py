"""The owner's tokens, in a real app of its own: never used for a visitor, never seen anywhere, whatever goes wrong."""

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

from core.nano.lessons import airbrushed
from tests.publish.hub import Hub, Repo, hub
from tests.publish.test_card import EXAMPLE
from tests.train.parts import SMALL
from tests.trust.visitor import Visitor

ROOT = Path(__file__).parent.parent.parent
SET, SAVED, VISITORS = ("hf_" + letter * 34 for letter in "QWZ")
"""Tokens: in the environment, of the machine's login, of a visitor who is logged in."""
PRIVATE = ("ann/private", "ann/private:soft.safetensors", "ann/gated", "ann/gone")


@dataclass
class App:
    """A process of its own, the Hub that it asks, and the folder in which it writes everything."""

    url: str
    process: subprocess.Popen[bytes]
    server: Hub
    folder: Path

    def said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("owner")
    (folder / "hf").mkdir()
    (folder / "hf" / "token").write_text(SAVED)
    with hub(dict.fromkeys((SET, SAVED, VISITORS), "ann")) as server, (folder / "log").open("wb") as log:
        for name in ("private", "gated", "precious"):
            server.repos[f"ann/{name}"] = Repo(name == "private", "ann")
            server.repos[f"ann/{name}"].add("by hand", {"soft.safetensors": EXAMPLE.read_bytes(), "README.md": b"# mine"})
        server.fail("/ann/gated", "403 gated", times=999)
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GRADIO_", "SPACE"))}
        mine |= {"HF_TOKEN": SET, "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        mine |= {"SWEETSPOT_RUNS": str(folder / "runs"), "SWEETSPOT_CELLS": str(folder / "cells"), "GRADIO_TEMP_DIR": str(folder / "files")}
        mine |= {"NO_PROXY": "127.0.0.1", "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=mine, stdout=log, stderr=log)
        made = App("", process, server, folder)
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", made.said())):
                assert process.poll() is None, made.said()
                time.sleep(0.1)
            made.url = f"{found[0]}/"
            yield made
        finally:
            process.terminate()
            process.wait(timeout=30)


def answer(visitor: Visitor, job: str, **asked: Any) -> str:
    """What comes back, an error included."""
    try:
        visitor.join(job, **asked)
        return str(visitor.ended())
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_case_13_a_visitor_gets_nothing_by_the_owners_token(app: App) -> None:
    visitor = Visitor(app.url)
    for name in PRIVATE:
        asked: list[tuple[str, dict[str, Any]]] = [
            ("inspect_lora", {"lora": name}),
            ("edit_lora", {"lora": name}),
            ("generate", {"prompt": "1girl", "loras": [{"lora": name}]}),
            ("sweep", {"lora": name}),
            ("transfer", {"loras": [name], "models": ["nano"]}),
            ("publish", {"lora": name, "repo": "ann/private", "dry_run": True}),
        ]
        for job, values in asked:
            assert f"lora: {name.partition(':')[0]} is gated, private or gone on the Hub." in answer(visitor, job, **values), (job, name)
    told = answer(visitor, "publish", lora="nano-airbrush", repo="ann/private", dry_run=True)
    assert "'commit': None" in told, "a private repository was looked at"
    assert "login: nobody is logged in" in answer(visitor, "publish", lora="nano-airbrush", repo="ann/private")
    told = answer(visitor, "generate", prompt="a cat", preset="sdxl-base", steps=1)
    assert "is gated, private or gone" in told, told
    assert len(app.server.asked) > 20
    assert not [one for one in app.server.asked if "authorization" in one.headers], "a token went along"


def failures(folder: Path) -> list[Callable[[Visitor, Hub], object]]:
    """Ways to go wrong, each against the real app."""
    torn, text = folder / "torn.safetensors", folder / "text.png"
    torn.write_bytes(EXAMPLE.read_bytes()[:5000])
    text.write_text("no picture")

    def uploaded(visitor: Visitor, file: Path) -> dict[str, Any]:
        with file.open("rb") as opened:
            (path,) = httpx.post(f"{visitor.url}gradio_api/upload", files={"files": opened}).json()
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def asks(job: str, **values: Any) -> Callable[[Visitor, Hub], object]:
        def ask(visitor: Visitor, _: Hub) -> object:
            return answer(visitor, job, **{name: uploaded(visitor, value) if isinstance(value, Path) else value for name, value in values.items()})

        return ask

    def faulty(asked: str, kind: Any) -> Callable[[Visitor, Hub], object]:
        def publish(visitor: Visitor, server: Hub) -> object:
            server.fail(asked, kind)
            found = answer(visitor, "publish", lora="nano-airbrush", repo="ann/soft", use_login=True)
            server.faults[:] = [each for each in server.faults if each[0] == "/ann/gated"]
            return found

        return publish

    def posts(path: str, body: dict[str, Any]) -> Callable[[Visitor, Hub], object]:
        return lambda visitor, _: httpx.post(f"{visitor.url}{path}", json=body).text

    def gets(path: str) -> Callable[[Visitor, Hub], object]:
        return lambda visitor, _: httpx.get(f"{visitor.url}{path}").text

    own = {"more": {"oauth_token": VISITORS}}
    return [
        *(asks("publish", lora="nano-airbrush", repo=repo, use_login=True, **own) for repo in ("../x", "bob/x", "ann/precious", "x" * 300, "ann/gated", "")),
        *(asks("publish", lora=name, repo="ann/x", use_login=True, **own) for name in (*PRIVATE, torn, "none")),
        asks("publish", run="0" * 32, repo="ann/x", use_login=True, **own),
        asks("publish", lora="nano-airbrush", repo="ann/x", description="x" * 10**6, **own),
        *(faulty(where, kind) for where in ("GET /api/whoami", "GET /api/models/ann/soft", "POST /api/repos/create") for kind in ("401", "404", "500", "cut")),
        *(faulty("POST .*/commit/", kind) for kind in ("401", "403 gated", "404", "409")),
        *(asks("inspect_lora", lora=name) for name in (*PRIVATE, torn, text, "hf.co.evil/x", {"path": "/etc/passwd"}, 7)),
        asks("generate", prompt="1girl", lora_file=torn),
        asks("generate", prompt="1girl <lora:none:1>"),
        asks("generate", prompt="a cat", preset="sdxl-base", steps=1),
        asks("generate", prompt="a cat", preset="kohaku-xl-delta", steps=1),
        asks("generate", prompt="1girl", steps=1, hires={"upscaler": "DAT x2"}),
        asks("generate", prompt="1girl", width=1001),
        asks("generate", prompt="1girl", cfg="nan"),
        asks("expand_prompt", prompt="1girl", ban="(a+)+"),
        asks("sweep", lora="ann/private", seeds="1, 2"),
        asks("sweep", lora=torn, seeds="1, 2"),
        asks("transfer", loras=["ann/gated"], models=["nano"]),
        asks("transfer", loras=["nano-airbrush"], models=["none"]),
        asks("caption", dataset=text),
        asks("train_start", dataset=text, recipe="none"),
        asks("train_status", run="../hf"),
        asks("read_picture", picture=text),
        posts("gradio_api/queue/join", {"data": [1], "fn_index": 9999, "session_hash": "x"}),
        posts("gradio_api/queue/join", {"data": "x", "fn_index": 14, "session_hash": "x"}),
        posts("gradio_api/run/publish", {"data": [None] * 14}),
        posts("gradio_api/call/none", {"data": []}),
        *(gets(f"gradio_api/file={folder.parent}/hf/token") for _ in range(2)),
        gets("gradio_api/file=/proc/self/environ"),
        gets("gradio_api/file=../hf/token"),
    ]


def trained(app: App, visitor: Visitor) -> str:
    """A run that has begun and goes wrong; its process was told no token."""
    pictures = []
    for i, (picture, _) in enumerate(airbrushed(2)):
        picture.save(app.folder / f"{i}.png")
        with (app.folder / f"{i}.png").open("rb") as opened:
            (path,) = httpx.post(f"{visitor.url}gradio_api/upload", files={"files": opened}).json()
        pictures.append({"path": path, "meta": {"_type": "gradio.FileData"}})
    settings = {"steps": 6, "batch": 1, "rate": 10.0, "clip": 0, "preview_every": 0, "save_every": 1, **SMALL}
    visitor.join("train_start", dataset=pictures, recipe="nano-quick", trigger="soft", overrides=settings)
    name = visitor.ended()["output"]["data"][0]["run"]
    told = []
    while not told:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if name.encode() in (process / "cmdline").read_bytes():
                    told.append((process / "environ").read_bytes())
    assert all(SET.encode() not in each for each in told), "a token is in the environment of a process that trains"
    return name


def test_case_14_no_token_is_seen_whatever_goes_wrong(app: App, tmp_path: Path) -> None:
    """Fifty failures at random: nothing that a visitor gets, that is logged, or that is written holds a token."""
    visitor, chance = Visitor(app.url), random.Random(14)
    run = trained(app, visitor)
    ways = failures(app.folder / "files")
    told = [str(way(visitor, app.server)) for way in chance.sample(ways, 50)]
    assert answer(visitor, "publish", lora="nano-airbrush", repo="ann/soft", use_login=True).count("'success': True"), "one that goes well"
    while re.search("'state': '(waiting|running)'", status := answer(visitor, "train_status", run=run)):
        time.sleep(0.2)
    told += [status, visitor.raw.decode(), app.said()]
    told += [visitor.get(path).decode() for path in ("config", "gradio_api/info", "gradio_api/openapi.json", "")]
    written = [file for file in app.folder.rglob("*") if file.is_file() and file != app.folder / "hf" / "token"]
    assert [file for file in written if file.name == "events.jsonl"]
    assert [file for file in written if file.name == "README.md"], "a card was made"
    there = [data for repo in app.server.repos.values() for commit in repo.commits for data in commit.files.values()]
    everything = [*(text.encode() for text in told), *(file.read_bytes() for file in written), *there]
    for token in (SET, SAVED, VISITORS):
        assert not [data[:300] for data in everything if token[:20].encode() in data], "a token was seen"
    used = {one.headers["authorization"] for one in app.server.asked if "authorization" in one.headers}
    assert used == {f"Bearer {SET}"}, "the login was used where it was asked for, and only that one"
    assert app.process.poll() is None
