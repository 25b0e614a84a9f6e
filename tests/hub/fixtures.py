"""A Hub on this machine for the real client, online, without waits between attempts.

The client knows no token but those that a test passes to it.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session, constants, file_download, hf_api
from huggingface_hub.utils import _http

from core.hub import client as hub_client
from tests.hub.server import serve_hub
from tests.hub.server_jobs import ROUTES, JobService
from tests.hub.server_state import Hub


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Ann's and Bob's Hub, the client's default Hub while it runs."""
    yard = JobService(tmp_path / "yard")
    with serve_hub({"hf_ann": "ann", "hf_bob": "bob"}, ROUTES, yard) as server:
        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        here = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_OFFLINE": False,
            # The client asks no server whether to use Xet: where hf_xet is installed it uploads a
            # path or bytes by nothing else.
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,  # it would ask for a list of agents first
        }
        for constant, value in here.items():
            monkeypatch.setattr(constants, constant, value)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        for module in (_http, file_download, hub_client):
            monkeypatch.setattr(
                module, "time", SimpleNamespace(sleep=lambda _seconds: None, monotonic=time.monotonic)
            )
        close_session()
        yield server
        close_session()
        yard.stop_jobs()
