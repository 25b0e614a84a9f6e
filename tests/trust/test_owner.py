"""A Space with two accounts and somebody without one: a run is there for the account that began it, and for nobody else who has its name."""

import ast
import json
import time
import urllib.error
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.middleware import Middleware

from core.nano.lessons import airbrushed
from core.train import owner, runs
from core.train.folder import Folder, write_text
from tabs.files import FILES
from tests.train.parts import SMALL, dataset, prepared
from tests.trust.visitor import Visitor

TABS = Path(__file__).parent.parent.parent / "tabs"
NOWHERE = "0" * 32
WHO: list[str | None] = ["bob", None]
"""Who comes with the name of Ann's run."""


class Sessions:
    """Puts what a login leaves in a signed cookie where Starlette's sessions put it, from a header; tests/publish has the real ones."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            name = dict(scope["headers"]).get(b"x-account", b"").decode()
            about = {"sub": f"id of {name}", "name": name, "preferred_username": name, "profile": name, "picture": ""}
            told = {"access_token": f"hf_{name}", "scope": "openid profile", "expires_at": time.time() + 600, "userinfo": about}
            scope["session"] = {"oauth_info": told} if name else {}
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def space() -> Iterator[str]:
    """The address of the app as a Space has it."""
    import app

    with pytest.MonkeyPatch.context() as here:
        here.setenv("SPACE_ID", "ann/studio")
        with here.context() as built:
            built.setenv("SPACES_ZERO_GPU", "1")  # its page has every way, the slices of a lent GPU among them
            page = app.build()
        middleware = {"middleware": [Middleware(Sessions)]}
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", app_kwargs=middleware, **app.LAUNCH)
        yield url
        page.close()


@cache
def come(space: str, name: str | None) -> Visitor:
    """Somebody's browser, logged in or not."""
    return Visitor(space, {"X-Account": name} if name else None)


def answer(visitor: Visitor, job: str, name: str, /, **asked: Any) -> str:
    """All that a call comes back with, an error included; a run's own name as RUN."""
    try:
        visitor.join(job, **asked)
        output = visitor.ended()["output"]
        said = json.dumps([output.get("data"), output.get("error")])
    except urllib.error.HTTPError as error:
        said = error.read().decode()
    return said.replace(name, "RUN")


@pytest.fixture(scope="module")
def ann(space: str, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Ann's run, begun by `/train_start` and trained by its process; then a Job has it, so that nothing that is asked of it begins work."""
    visitor, picture = come(space, "ann"), tmp_path_factory.mktemp("ann") / "0.png"
    airbrushed(1)[0][0].save(picture)
    with picture.open("rb") as opened:
        (path,) = httpx.post(f"{space}gradio_api/upload", files={"files": opened}).json()
    brought = {"path": path, "meta": {"_type": "gradio.FileData"}}
    settings = {"steps": 1, "batch": 1, "preview_every": 0, **SMALL}
    visitor.join("train_start", dataset=brought, recipe="nano-quick", trigger="soft", overrides=settings)
    folder = Folder(runs.RUNS / visitor.ended()["output"]["data"][0]["run"])
    while runs.status(folder).state in ("waiting", "running"):
        time.sleep(0.1)
    assert runs.status(folder).state == "done", folder.log.read_text()
    write_text(folder.job, json.dumps({"id": "1", "namespace": "ann", "flavor": "l4x1", "timeout": 900, "bucket": "ann/sweetspot-runs"}))
    folder.go_away()
    return folder


def ways(page: Visitor, run: str) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Every way to ask for a run: a call, after those that fill the choices which a page has for it."""
    mine = page.named(page.jobs["_attached"]["inputs"][0])
    choices = next(name for name, one in page.jobs.items() if [page.named(i) for i in one["inputs"]] == [mine, "publish-run"])
    publish: dict[str, Any] = {"publish-run": run, "repo": "../x"}
    single: dict[str, dict[str, Any]] = {name: {"run": run} for name in ("train_status", "train_stop", "train_resume")}
    single["publish"] = {"run": run, "repo": "../x", "dry_run": True}
    single["transfer"] = {"loras": [{"run": run}], "models": ["nano"], "strengths": "x"}
    single |= {name: {"runs": run} for name in ("_stopped", "_resumed", "watched", "_looked", "_ended", "_lent")}
    single |= {"_forked": {"runs": run, "Step": 7}, "_attached": {mine: run}}
    return {
        **{name: [(name, values)] for name, values in single.items()},
        "into_sweep": [("watched", {"runs": run}), ("into_sweep", {"runs": run, "checkpoints": "soft.safetensors"})],
        "_study": [("known", {mine: run}), ("_study", {"transfer-runs": [run], "transfer-strengths": "x"})],
        **{name: [(choices, {mine: run}), (name, publish)] for name in ("_previewed", "_published")},
    }


def asked(space: str, name: str | None, run: str, way: str) -> list[str]:
    visitor = come(space, name)
    return [answer(visitor, job, run, **values) for job, values in ways(visitor, run)[way]]


WAYS = [
    *("train_status", "train_stop", "train_resume", "publish", "transfer", "_stopped", "_resumed", "watched", "_looked", "_ended", "_lent", "_forked"),
    *("_attached", "into_sweep", "_study", "_previewed", "_published"),
]


@pytest.mark.parametrize("way", WAYS)
def test_case_16_a_run_is_there_for_its_own_account_alone(space: str, ann: Folder, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "_lent":
        monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    nothing = asked(space, None, NOWHERE, way)
    for name in WHO:
        assert asked(space, name, ann.name, way) == nothing, f"{name} is told another thing than of a run that never was"
    own = asked(space, "ann", ann.name, way)
    assert "is not there" not in str(own)
    assert [mine != none for mine, none in zip(own, nothing, strict=True)] == [True] * len(own)


def test_case_16_her_runs_are_there_in_any_browser_and_in_nobody_elses(space: str, ann: Folder) -> None:
    assert "RUN" in answer(come(space, "ann"), "_attached", ann.name)
    for name in WHO:
        assert "RUN" not in answer(come(space, name), "_attached", ann.name)


def test_case_16_the_name_does_not_lead_to_its_files(space: str, ann: Folder) -> None:
    """What a page shows of it lies under another name, which only its own account is told."""
    told = answer(come(space, "ann"), "train_status", ann.name, run=ann.name)
    assert owner.shown(ann) in told
    assert "RUN" not in told
    file = next(ann.loras.iterdir()).name
    assert httpx.get(f"{space}gradio_api/file={FILES / owner.shown(ann) / file}").status_code == 200
    assert httpx.get(f"{space}gradio_api/file={FILES / ann.name / file}").status_code in (403, 404)


def test_case_16_without_an_account_the_name_is_the_key(space: str, tmp_path: Path) -> None:
    folder, _ = prepared(dataset(tmp_path / "data"), runs.RUNS / ("b" * 31 + "7"))
    for name in ("ann", *WHO):
        assert "stopped" in answer(come(space, name), "train_status", folder.name, run=folder.name)
        assert "RUN" not in answer(come(space, name), "_attached", folder.name), "it is on no list"


def test_case_16_at_home_all_runs_are_the_users(ann: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID")
    assert runs.found(ann.name, None).path == ann.path


def test_case_16_what_lies_in_the_run_names_nobody(ann: Folder) -> None:
    said = (ann.path / "account").read_text()
    assert json.loads(said).keys() == {"account", "shown"}
    assert "id of ann" not in said
    assert not [file for file in ann.path.rglob("*") if file.is_file() and b"hf_ann" in file.read_bytes()]


def test_the_tabs_have_no_other_way_to_a_run() -> None:
    """By a run's name only through `tabs.caller`; what sets one up says for whom."""
    for file in TABS.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("runs.found", "runs.of"):
                assert file.name == "caller.py", f"{file.name} line {node.lineno}: {ast.unparse(node)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "runs.listed":
                assert file.name == "health.py", f"{file.name} line {node.lineno}: it lists everybody's runs"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("runs.prepared", "runs.forked"):
                assert "account" in [each.arg for each in node.keywords], f"{file.name} line {node.lineno}: for whom?"
