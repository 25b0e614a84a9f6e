"""Many visitors at once, and long days.

Nobody gets another visitor's results, a full queue says so, memory and files stay bounded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.sweep import cell_cache
from core.train import runs
from tests.bench.load import MAX_GROWTH, count_after_cleanup, run_load, run_soak
from tests.server import Server
from tests.trust.crowd import QUEUE_FULL, SMALL_SIZE


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start the app in a process of its own, its folders cleaned up as on a hosted Space."""
    app = Server(tmp_path / "server")
    monkeypatch.setattr(cell_cache, "FOLDER", app.folder / "cells")
    monkeypatch.setattr(runs, "RUNS", app.folder / "runs")
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    yield app
    app.stop()


def assert_healthy(server: Server, report: dict[str, Any]) -> None:
    """Assert that everybody got their own results, nothing broke, memory and files are bounded."""
    assert not report["errors"]
    assert not report["cross_talk"]
    assert report["held"] == report["jobs"], report["refused"]
    assert report["memory"]["growth"] < MAX_GROWTH, report["memory"]
    assert server.process.poll() is None
    assert not [line for line in server.read_log() if line.get("outcome") == "failed"]
    server.stop()
    assert report["lying"]["files"] > report["jobs"]
    assert count_after_cleanup(server.folder)["files"] <= 1, (
        "more than the lock of the runs' turn stays when nobody uses it"
    )


@pytest.mark.soak
def test_case_27_many_at_once_each_get_their_own(server: Server) -> None:
    found = run_load(server, clients=4, jobs=2, slow=3, size=SMALL_SIZE)
    full = [said for said in found["crowd"] if said != "taken"]
    assert len(full) == 1, full
    assert QUEUE_FULL in full[0]
    assert "broke" not in full[0]
    assert_healthy(server, found)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_case_27_five_hundred_jobs_leave_memory_and_files_as_they_were(server: Server) -> None:
    assert_healthy(server, run_soak(server, jobs=500, size=SMALL_SIZE))
