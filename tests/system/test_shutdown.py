"""A restart by a real signal, while a run trains and a picture is made, ends within bounds.

All is saved, and the status is 0.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from core.system.shutdown import RESTART_MESSAGE
from core.train import runs
from tests.server import ROOT, Server
from tests.train.parts import make_dataset, prepare_run, read_losses


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.05)


def test_sigterm_while_it_trains_and_makes_pictures(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    server = Server(tmp_path / "server")
    try:
        name = "ab" * 16
        folder, _ = prepare_run(data, server.folder / "runs" / name, steps=100_000)
        client = Client(server.wait_for_url(), verbose=False)
        client.predict(run=name, api_name="/train_resume")
        wait_until(lambda: read_losses(folder), "the first step of the run")
        job = client.submit(prompt="1girl", steps=150, count=16, api_name="/generate")
        wait_until(lambda: list((server.folder / "files").glob("?" * 32)), "the folder of the pictures")
        time.sleep(1)  # so that the run is in its steps
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(AppError) as told:
            job.result(timeout=60)
        assert str(told.value) == RESTART_MESSAGE
        assert server.wait_for_exit() == 0
    finally:
        server.stop()
    lines = server.read_log()
    made = next(line for line in lines if line["kind"] == "generate")
    assert made["outcome"] == "failed"
    assert 0 < made["steps"] < 150 * 16, "it did not end within a step"
    assert lines[-1]["kind"] == "closed"
    assert "training" not in lines[-1], "the run had not ended"
    assert not folder.is_locked()
    assert runs.read_status(folder).state == "stopped"
    state = folder.load_state()
    assert state is not None
    assert state[0] == read_losses(folder)[-1][0], "steps that were made are not in the state"
    torn = [file for file in server.folder.rglob("*") if file.name.startswith(".") and file.suffix == ".tmp"]
    assert not torn


def test_a_run_from_a_terminal_ends_after_its_step(tmp_path: Path) -> None:
    """`tests/train/test_runs.py` proves after every kill that it continues exactly from there."""
    folder, _ = prepare_run(make_dataset(tmp_path / "data"), tmp_path / "run", steps=100_000)
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "core.train", "--resume", folder.path], cwd=ROOT, stdout=said, stderr=said
        )
    wait_until(lambda: read_losses(folder), "the first step")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, (tmp_path / "said").read_text()
    assert "Traceback" not in (tmp_path / "said").read_text()
    state = folder.load_state()
    assert state is not None
    assert state[0] == read_losses(folder)[-1][0] < 100_000
    assert runs.read_status(folder).state == "stopped"
