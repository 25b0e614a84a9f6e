"""Many visitors at once, and long days: nobody gets another one's, the door says when it is full, memory and files stay bounded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import cells
from core.train import runs
from tests.bench.load import BOUND, load, soak, swept
from tests.server import Server
from tests.trust.crowd import FULL, SMALL


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The app as a process of its own, its folders swept as a hosted Space's are."""
    app = Server(tmp_path / "server")
    monkeypatch.setattr(cells, "FOLDER", app.folder / "cells")
    monkeypatch.setattr(runs, "RUNS", app.folder / "runs")
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    yield app
    app.end()


def held(server: Server, found: dict[str, Any]) -> None:
    """Everybody has had their own, nothing broke, memory and files are bounded."""
    assert not found["errors"]
    assert not found["cross_talk"]
    assert found["held"] == found["jobs"], found["refused"]
    assert found["memory"]["growth"] < BOUND, found["memory"]
    assert server.process.poll() is None
    assert not [line for line in server.journal() if line.get("outcome") == "failed"]
    server.end()
    assert found["lying"]["files"] > found["jobs"]
    assert swept(server.folder)["files"] <= 1, "more than the lock of the runs' turn stays when nobody uses it"


def test_case_27_many_at_once_each_get_their_own(server: Server) -> None:
    found = load(server, clients=4, jobs=2, slow=3, size=SMALL)
    full = [said for said in found["crowd"] if said != "taken"]
    assert len(full) == 1, full
    assert FULL in full[0]
    assert "broke" not in full[0]
    held(server, found)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_case_27_five_hundred_jobs_leave_memory_and_files_as_they_were(server: Server) -> None:
    held(server, soak(server, jobs=500, size=SMALL))
