"""A Space with its login: the real app, Gradio's own OAuth and the tests' Hub as provider.

Whoever logs in is themselves there, and nobody else.
"""

import importlib.util
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from core.train import access
from tests.hub.server import serve_hub
from tests.hub.server_login import CLIENT_ID, CLIENT_SECRET, ROUTES, LoginService, describe_account
from tests.hub.server_state import INITIAL_FILES, Hub, Repo
from tests.server import ROOT, Server
from tests.train.parts import make_dataset, prepare_run
from tests.trust.visitor import Visitor

HOST = "studio.example"
CARD = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---")[1])
REQUESTED_SCOPES = ["openid", "profile", *CARD["hf_oauth_scopes"]]
"""The OAuth scopes that a Space with this README asks its visitors for."""
MISSING_PACKAGES = [name for name in ("authlib", "itsdangerous") if importlib.util.find_spec(name) is None]


@dataclass
class Space:
    """The running app, and the Hub where its visitors log in."""

    server: Server
    hub: Hub
    desk: LoginService

    @property
    def url(self) -> str:
        return f"{self.server.wait_for_url()}/"


class SpaceTransport(httpx.BaseTransport):
    """The proxy before a Space: sends `https://` of its host to the app's port.

    Every other address stays as it is.
    """

    def __init__(self, space: Space):
        self.space, self.plain = space, httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == HOST:
            app = httpx.URL(self.space.url)
            at = request.url.copy_with(scheme="http", host=app.host, port=app.port)
            headers = {**request.headers, "X-Forwarded-Proto": "https"}
            request = httpx.Request(request.method, at, headers=headers, stream=request.stream)
        return self.plain.handle_request(request)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    desk = LoginService()
    with serve_hub({}, ROUTES, desk) as there:
        there.repos["ann/private"] = Repo(True, "ann")
        there.repos["ann/private"].add_commit("initial commit", INITIAL_FILES)
        told = {
            "SYSTEM": "spaces",
            "SPACE_ID": "ann/studio",
            "SPACE_HOST": HOST,
            "OPENID_PROVIDER_URL": there.url,
            "OAUTH_SCOPES": " ".join(REQUESTED_SCOPES),
        }
        told |= {
            "OAUTH_CLIENT_ID": CLIENT_ID,
            "OAUTH_CLIENT_SECRET": CLIENT_SECRET,
            "HF_ENDPOINT": there.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        told |= {
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SSR_MODE": "False",
        }
        server = Server(tmp_path_factory.mktemp("space"), **told)
        try:
            yield Space(server, there, desk)
        finally:
            server.stop()


def login(space: Space, account: str) -> Visitor:
    """Press the login button as a browser does and return the visitor with the session cookie.

    The way leads from the app to the Hub, back with a code, and on to the page with a cookie.
    """
    if MISSING_PACKAGES:
        message = (
            f"no {' and no '.join(MISSING_PACKAGES)} on this machine: pip install -r requirements-dev.txt"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    space.desk.account = account
    with httpx.Client(transport=SpaceTransport(space), follow_redirects=True, timeout=60) as browser:
        page = browser.get(f"https://{HOST}/login/huggingface")
        assert (page.status_code, page.url) == (200, f"https://{HOST}/"), [
            each.headers.get("location") for each in page.history
        ]
        (cookie,) = [each for each in browser.cookies.jar if each.name == "session"]
    assert cookie.secure
    assert cookie.has_nonstandard_attr("httponly")
    return Visitor(space.url, {"Cookie": f"session={cookie.value}"})


def publish_dry(visitor: Visitor, repo: str) -> str:
    visitor.join("publish", lora="nano-airbrush", repo=repo, dry_run=True)
    return str(visitor.wait_for_result()["output"])


def press_publish(visitor: Visitor) -> str:
    """Press Publish and return what the tab says."""
    chosen: dict[str, Any] = {"LoRA library": "nano-airbrush", "repo": "ann/soft"}
    visitor.join("_publish_lora", **chosen)
    return str(visitor.wait_for_result()["output"]["data"])


def test_who_is_not_logged_in_sends_nothing(space: Space) -> None:
    visitor = Visitor(space.url)
    assert "login: log in first." in press_publish(visitor)
    space.hub.requests.clear()
    assert "'commit': None" in publish_dry(visitor, "ann/private"), "what is private is not there"
    assert space.hub.requests
    assert not [each for each in space.hub.requests if "authorization" in each.headers]


def test_who_logs_in_is_asked_for_no_more_than_the_readme_says(space: Space) -> None:
    login(space, "ann")
    asked = space.desk.authorizations[-1]
    assert asked["scope"] == "openid profile contribute-repos"
    assert asked["redirect_uri"].startswith(f"https://{HOST}/login/callback")


def test_everybodys_own_token_is_used_and_no_others(space: Space) -> None:
    ann, bob, nobody = login(space, "ann"), login(space, "bob"), Visitor(space.url)
    commit = space.hub.repos["ann/private"].commits[-1].oid
    for visitor, account in ((ann, "ann"), (bob, "bob"), (nobody, None), (ann, "ann")):
        space.hub.requests.clear()
        found = publish_dry(visitor, "ann/private")
        assert (commit in found) == (account == "ann")
        tokens = {each.headers.get("authorization") for each in space.hub.requests}
        assert tokens == {f"Bearer {space.desk.tokens[account]}" if account else None}
    assert "login: log in first." in press_publish(nobody)
    assert "ann/soft" not in space.hub.repos
    assert "Published" in press_publish(ann)
    assert space.hub.repos["ann/soft"].owner == "ann"
    forged = Visitor(space.url, {"Cookie": ann.headers["Cookie"][:-3] + "xxx"})
    assert "login: log in first." in press_publish(forged)
    # Whatever was requested, no token was shown, logged or written.
    told = b"".join(
        each.stream_bytes + each.get("config") + each.get("") for each in (ann, bob, nobody, forged)
    )
    kept = b"".join(file.read_bytes() for file in space.server.folder.rglob("*") if file.is_file())
    for token in (*space.desk.tokens.values(), CLIENT_SECRET):
        assert token.encode() not in told
        assert token.encode() not in kept, "in a log or a file"


def test_a_run_is_known_to_the_account_that_logged_in(space: Space, tmp_path: Path) -> None:
    """The cookie of a real login identifies it; tests/trust/test_owner.py tests who gets what."""
    name = secrets.token_hex(16)
    folder, _ = prepare_run(make_dataset(tmp_path / "data"), tmp_path / name)
    access.bind_account(folder, describe_account(space.hub.url, "ann")["sub"])
    shutil.copytree(folder.path, Path(space.server.folder) / "runs" / name)

    def read_status(visitor: Visitor) -> str:
        visitor.join("train_status", run=name)
        return str(visitor.wait_for_result()["output"])

    assert "does not exist" in read_status(Visitor(space.url))
    assert "'state': 'stopped'" in read_status(login(space, "ann"))
    assert "does not exist" in read_status(login(space, "bob"))
