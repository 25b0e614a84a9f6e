"""A restart asked for by a real signal, while a run trains and a picture is made: all ends within bounds, saved, with status 0."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from core.closing import SENTENCE
from core.train import runs
from tests.server import ROOT, Server
from tests.train.parts import dataset, losses, prepared


def until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 90
    while not true():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.05)


def test_sigterm_while_it_trains_and_makes_pictures(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    server = Server(tmp_path / "server")
    try:
        name = "ab" * 16
        folder, _ = prepared(data, server.folder / "runs" / name, steps=100_000)
        client = Client(server.url(), verbose=False)
        client.predict(run=name, api_name="/train_resume")
        until(lambda: losses(folder), "the first step of the run")
        job = client.submit(prompt="1girl", steps=150, count=16, api_name="/generate")
        until(lambda: list((server.folder / "files").glob("?" * 32)), "the folder of the pictures")
        time.sleep(1)  # into its steps
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(AppError) as told:
            job.result(timeout=60)
        assert str(told.value) == SENTENCE
        assert server.ended() == 0
    finally:
        server.end()
    lines = server.journal()
    made = next(line for line in lines if line["kind"] == "generate")
    assert made["outcome"] == "failed"
    assert 0 < made["steps"] < 150 * 16, "it did not end within a step"
    assert lines[-1]["kind"] == "closed"
    assert "training" not in lines[-1], "the run had not ended"
    assert not folder.is_owned()
    assert runs.status(folder).state == "stopped"
    state = folder.state()
    assert state is not None
    assert state[0] == losses(folder)[-1][0], "steps that were made are not in the state"
    torn = [file for file in server.folder.rglob("*") if file.name.startswith(".") and file.suffix == ".tmp"]
    assert not torn


def test_a_run_from_a_terminal_ends_after_its_step(tmp_path: Path) -> None:
    """How it goes on from there, exactly, is what `tests/train/test_runs.py` proves after every kill."""
    folder, _ = prepared(dataset(tmp_path / "data"), tmp_path / "run", steps=100_000)
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, "-m", "core.train", "--resume", folder.path], cwd=ROOT, stdout=said, stderr=said)
    until(lambda: losses(folder), "the first step")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, (tmp_path / "said").read_text()
    assert "Traceback" not in (tmp_path / "said").read_text()
    state = folder.state()
    assert state is not None
    assert state[0] == losses(folder)[-1][0] < 100_000
    assert runs.status(folder).state == "stopped"
