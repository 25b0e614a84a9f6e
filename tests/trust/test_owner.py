"""A Space with two accounts and a visitor without one.

A run is there for the account that began it, and for nobody else who knows its name.
"""

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

from core.nano.lessons import make_airbrush_set
from core.train import access, runs
from core.train.trainer.run_folder import RunFolder, write_text
from tabs.server.page_files import FILES_FOLDER
from tests.train.parts import SMALL_SIZES, make_dataset, prepare_run
from tests.trust.visitor import Visitor

TABS = Path(__file__).parent.parent.parent / "tabs"
UNKNOWN_RUN = "0" * 32
OTHER_ACCOUNTS: list[str | None] = ["bob", None]
"""Accounts, or `None` for no login, that use the name of Ann's run."""


class FakeSessions:
    """Middleware that makes a login from the header `X-Account`.

    It puts into `scope["session"]` what Starlette's sessions read from a signed cookie.
    tests/publish has the real sessions.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            name = dict(scope["headers"]).get(b"x-account", b"").decode()
            about = {
                "sub": f"id of {name}",
                "name": name,
                "preferred_username": name,
                "profile": name,
                "picture": "",
            }
            told = {
                "access_token": f"hf_{name}",
                "scope": "openid profile",
                "expires_at": time.time() + 600,
                "userinfo": about,
            }
            scope["session"] = {"oauth_info": told} if name else {}
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def space() -> Iterator[str]:
    """Launch the app as on a Space and yield its address."""
    import app

    with pytest.MonkeyPatch.context() as here:
        here.setenv("SPACE_ID", "ann/studio")
        with here.context() as built:
            # so that the page has every way to a run, also the slices of ZeroGPU
            built.setenv("SPACES_ZERO_GPU", "1")
            page = app.build_page()
        middleware = {"middleware": [Middleware(FakeSessions)]}
        _, url, _ = page.launch(
            prevent_thread_lock=True,
            quiet=True,
            server_name="127.0.0.1",
            app_kwargs=middleware,
            **app.LAUNCH_OPTIONS,
        )
        yield url
        page.close()


@cache
def open_visitor(space: str, name: str | None) -> Visitor:
    """Return a visitor who is logged in as `name`, or not logged in if it is `None`."""
    return Visitor(space, {"X-Account": name} if name else None)


def call_job(visitor: Visitor, job: str, name: str, /, **values: Any) -> str:
    """Return all that a call answers, errors included, with the run's name replaced by RUN."""
    try:
        visitor.join(job, **values)
        output = visitor.wait_for_result()["output"]
        said = json.dumps([output.get("data"), output.get("error")])
    except urllib.error.HTTPError as error:
        said = error.read().decode()
    return said.replace(name, "RUN")


@pytest.fixture(scope="module")
def ann_run(space: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return Ann's run, begun by `/train_start` and trained by its process.

    It is then marked as a Job's, so that no call begins work on it.
    """
    visitor, picture = open_visitor(space, "ann"), tmp_path_factory.mktemp("ann") / "0.png"
    make_airbrush_set(1)[0][0].save(picture)
    with picture.open("rb") as opened:
        (path,) = httpx.post(f"{space}gradio_api/upload", files={"files": opened}).json()
    brought = {"path": path, "meta": {"_type": "gradio.FileData"}}
    settings = {"steps": 1, "batch": 1, "preview_every": 0, **SMALL_SIZES}
    visitor.join("train_start", dataset=brought, recipe="nano-quick", trigger="soft", overrides=settings)
    folder = RunFolder(runs.RUNS / visitor.wait_for_result()["output"]["data"][0]["run"])
    while runs.read_status(folder).state in ("waiting", "running"):
        time.sleep(0.1)
    assert runs.read_status(folder).state == "done", folder.log_file.read_text()
    write_text(
        folder.job_file,
        json.dumps(
            {"id": "1", "namespace": "ann", "flavor": "l4x1", "timeout": 900, "bucket": "ann/sweetspot-runs"}
        ),
    )
    folder.mark_remote()
    return folder


def list_ways(page: Visitor, run: str) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return every way to ask for a run, each a list of calls.

    The last call asks for it; those before fill the choices that the page offers.
    """
    mine = page.get_component_name(page.jobs["_restore_runs"]["inputs"][0])
    choices = next(
        name
        for name, one in page.jobs.items()
        if [page.get_component_name(i) for i in one["inputs"]] == [mine, "publish-run"]
    )
    publish: dict[str, Any] = {"publish-run": run, "repo": "../x"}
    single: dict[str, dict[str, Any]] = {
        name: {"run": run} for name in ("train_status", "train_stop", "train_resume")
    }
    single["publish"] = {"run": run, "repo": "../x", "dry_run": True}
    single["transfer"] = {"loras": [{"run": run}], "models": ["nano"], "strengths": "x"}
    single |= {
        name: {"runs": run}
        for name in ("_stop_run", "_resume_run", "show_run", "_poll_job", "_stop_job", "_train_slice")
    }
    single |= {"_fork_run": {"runs": run, "Step": 7}, "_restore_runs": {mine: run}}
    return {
        **{name: [(name, values)] for name, values in single.items()},
        "open_in_sweep": [
            ("show_run", {"runs": run}),
            ("open_in_sweep", {"runs": run, "checkpoints": "soft.safetensors"}),
        ],
        "_run_study": [
            ("update_run_choices", {mine: run}),
            ("_run_study", {"transfer-runs": [run], "transfer-strengths": "x"}),
        ],
        **{
            name: [(choices, {mine: run}), (name, publish)]
            for name in ("_preview_publication", "_publish_lora")
        },
    }


def ask_for_run(space: str, name: str | None, run: str, way: str) -> list[str]:
    visitor = open_visitor(space, name)
    return [call_job(visitor, job, run, **values) for job, values in list_ways(visitor, run)[way]]


WAYS = [
    *(
        "train_status",
        "train_stop",
        "train_resume",
        "publish",
        "transfer",
        "_stop_run",
        "_resume_run",
        "show_run",
        "_poll_job",
        "_stop_job",
        "_train_slice",
        "_fork_run",
    ),
    *("_restore_runs", "open_in_sweep", "_run_study", "_preview_publication", "_publish_lora"),
]


@pytest.mark.parametrize("way", WAYS)
def test_case_16_a_run_is_there_for_its_own_account_alone(
    space: str, ann_run: RunFolder, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "_train_slice":
        monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    nothing = ask_for_run(space, None, UNKNOWN_RUN, way)
    for name in OTHER_ACCOUNTS:
        assert ask_for_run(space, name, ann_run.name, way) == nothing, (
            f"{name} is told another thing than of a run that never was"
        )
    own = ask_for_run(space, "ann", ann_run.name, way)
    assert "does not exist" not in str(own)
    assert [mine != none for mine, none in zip(own, nothing, strict=True)] == [True] * len(own)


def test_case_16_her_runs_are_there_in_any_browser_and_in_nobody_elses(
    space: str, ann_run: RunFolder
) -> None:
    assert "RUN" in call_job(open_visitor(space, "ann"), "_restore_runs", ann_run.name)
    for name in OTHER_ACCOUNTS:
        assert "RUN" not in call_job(open_visitor(space, name), "_restore_runs", ann_run.name)


def test_case_16_the_name_does_not_lead_to_its_files(space: str, ann_run: RunFolder) -> None:
    """A page's files of a run have another name, which only its own account learns."""
    told = call_job(open_visitor(space, "ann"), "train_status", ann_run.name, run=ann_run.name)
    assert access.get_public_id(ann_run) in told
    assert "RUN" not in told
    file = next(ann_run.loras.iterdir()).name
    assert (
        httpx.get(f"{space}gradio_api/file={FILES_FOLDER / access.get_public_id(ann_run) / file}").status_code
        == 200
    )
    assert httpx.get(f"{space}gradio_api/file={FILES_FOLDER / ann_run.name / file}").status_code in (403, 404)


def test_case_16_without_an_account_the_name_is_the_key(space: str, tmp_path: Path) -> None:
    folder, _ = prepare_run(make_dataset(tmp_path / "data"), runs.RUNS / ("b" * 31 + "7"))
    for name in ("ann", *OTHER_ACCOUNTS):
        assert "stopped" in call_job(open_visitor(space, name), "train_status", folder.name, run=folder.name)
        assert "RUN" not in call_job(open_visitor(space, name), "_restore_runs", folder.name), (
            "it is on no list"
        )


def test_case_16_at_home_all_runs_are_the_users(ann_run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID")
    assert runs.find_run(ann_run.name, None).path == ann_run.path


def test_case_16_what_lies_in_the_run_names_nobody(ann_run: RunFolder) -> None:
    said = (ann_run.path / "account").read_text()
    assert json.loads(said).keys() == {"account", "shown"}
    assert "id of ann" not in said
    assert not [file for file in ann_run.path.rglob("*") if file.is_file() and b"hf_ann" in file.read_bytes()]


def test_the_tabs_have_no_other_way_to_a_run() -> None:
    """The tabs find runs by name only through `tabs.server.visitor`.

    Whatever creates a run says for which account.
    """
    seen = set()
    for file in TABS.rglob("*.py"):
        place = file.relative_to(TABS).as_posix()
        for node in ast.walk(ast.parse(file.read_text())):
            where = f"{place} line {getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("runs.find_run", "runs.list_runs"):
                assert place == "server/visitor.py", where
                seen.add(node.attr)
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "runs.list_all_runs":
                assert place in ("server/health.py", "server/visitor.py"), (
                    f"{where}: it lists everybody's runs"
                )
                seen.add(node.attr)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("runs.create_run", "runs.fork_run"):
                assert "account" in [each.arg for each in node.keywords], f"{where}: for whom?"
                seen.add(ast.unparse(node.func))
    assert seen == {"find_run", "list_runs", "list_all_runs", "runs.create_run", "runs.fork_run"}
