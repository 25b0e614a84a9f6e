"""A run's folder: what it is made from, what it said, where it stands. Every file is whole at any time.

run.json          the run: settings, model, trigger, fingerprint of its data
dataset/          the pictures and dataset.json
events.jsonl      what it said, a line each
state/*.safetensors   all that the next step needs, by the number of steps done
loras/            LoRAs by the number of steps done, and the last
previews/         pictures by steps, prompt and strength
failure           why it could not go on
account           whose it is, on a Space; see owner.py
owner             locked by the process that trains
process           there from a process' start until it has said how it ended
stop, waiting     there when it is asked to stop, and while it waits for its turn
away              there while it is trained elsewhere, by the Job that job.json tells of
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open

from core.atomic import TORN, filling, replacing
from core.tensorfile import write_tensors
from core.types import UserError

FAILURE = 1000
"""Bytes of the sentence that says why a run could not go on."""
PATIENCE = 0.5
"""Seconds after which whoever has a run is taken to train it."""


class Folder:
    """One run on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.run, self.events, self.log = path / "run.json", path / "events.jsonl", path / "process.log"
        self.dataset, self.states, self.loras, self.previews = (path / name for name in ("dataset", "state", "loras", "previews"))
        self.latents = path / "latents"
        self._stop, self._owner, self._failure, self._waiting = (path / name for name in ("stop", "owner", "failure", "waiting"))
        self._process = path / "process"
        self.job, self._away = path / "job.json", path / "away"

    @property
    def name(self) -> str:
        return self.path.name

    # --- who trains ----------------------------------------------------------------------------

    @contextmanager
    def owned(self) -> Iterator[int]:
        """While it lasts, nobody else trains this run; the system lets go when a process dies.

        Gives the lock's descriptor, which a process that is started meanwhile can take over. Raises `UserError` if
        somebody else has the run, here or elsewhere.
        """
        with self._owner.open("a+") as lock:
            begin = time.monotonic()
            until = begin + PATIENCE
            while True:
                with _turn:  # nobody of this process looks meanwhile
                    if _had(lock, fcntl.LOCK_EX):
                        break
                if time.monotonic() > min(until, begin + 10 * PATIENCE):
                    raise UserError(f"run: {self.name} is being trained already.")
                if _had(lock, fcntl.LOCK_SH):  # nobody has it but those who look
                    fcntl.flock(lock, fcntl.LOCK_UN)
                    until = time.monotonic() + PATIENCE
                time.sleep(0.01)
            self._refuse_away()
            yield lock.fileno()

    @contextmanager
    def filled(self) -> Iterator[None]:
        """While a run is set up in it, which nobody sweeps away meanwhile. After an error nothing of a new folder is left; a full disk is a `UserError`."""
        try:
            with nullcontext() if self.path.exists() else filling(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                with self.owned():
                    yield
        except (OSError, SafetensorError) as error:
            if "No space left" not in str(error):
                raise
            raise UserError("disk: it became full while the run was set up; make room and try again.") from error

    def is_owned(self) -> bool:
        """Whether a process that is alive trains this run, or waits to. Those who look do not see each other."""
        with _turn, self._owner.open("a+") as lock:
            if not _had(lock, fcntl.LOCK_SH):
                return True
            fcntl.flock(lock, fcntl.LOCK_UN)  # a process that was forked meanwhile has the file open, too
        return False

    def go_away(self) -> None:
        """From now on it is trained elsewhere."""
        self._away.touch()

    def is_away(self) -> bool:
        return self._away.exists()

    def come_back(self) -> None:
        self._away.unlink(missing_ok=True)

    def _refuse_away(self) -> None:
        if self.is_away():
            raise UserError(f"run: {self.name} is being trained by a Job; stop the Job first.")

    def wait(self) -> None:
        """Take a place in the queue."""
        self._waiting.touch()

    def waits(self) -> bool:
        return self._waiting.exists()

    def wait_no_more(self) -> None:
        self._waiting.unlink(missing_ok=True)

    def waits_longer_than(self, other: "Folder") -> bool:
        """Whether this run is before `other` in the queue; a run whose process is gone has no place in it."""
        try:
            mine, its = (folder._waiting.stat().st_mtime_ns for folder in (self, other))
        except FileNotFoundError:
            return False
        return mine < its and self.is_owned()

    def ask_to_stop(self) -> None:
        """Raises `UserError` for a run that is trained elsewhere, where nobody looks here."""
        self._refuse_away()
        self._stop.touch()

    def asked_to_stop(self) -> bool:
        return self._stop.exists()

    def go_on(self) -> None:
        """From now on nothing counts of how it ended before."""
        for told in (self._stop, self._process):
            told.unlink(missing_ok=True)
        if self._failure.exists():
            self._write_failure(b"")

    def begin(self) -> None:
        """A process trains it, or will in a moment."""
        self._process.touch()

    def end(self) -> None:
        """Its process ends and has said how."""
        self._process.unlink(missing_ok=True)

    def lacks_end(self) -> bool:
        """Whether its process is gone without having said how it ended, as one that is killed."""
        return self._process.exists() and not self.is_owned()

    def failed(self, message: str) -> None:
        """Keep why it cannot go on; the room for it was taken before, so that a full disk can be told."""
        self._failure.touch()
        self._write_failure(message.encode())

    def _write_failure(self, message: bytes) -> None:
        with self._failure.open("r+b") as out:
            out.write(message[:FAILURE].ljust(FAILURE))

    def failure(self) -> str | None:
        """Why it could not go on; `None` if nothing happened since it last went on."""
        try:
            return self._failure.read_bytes().decode(errors="ignore").strip() or None
        except FileNotFoundError:
            return None

    # --- what it said --------------------------------------------------------------------------

    def say(self, lines: list[dict[str, Any]]) -> None:
        """Add lines, on disk when this returns."""
        with self.events.open("a", encoding="utf-8") as out:
            out.write("".join(f"{json.dumps(line)}\n" for line in lines))
            out.flush()
            os.fsync(out.fileno())

    def memory(self) -> int:
        """Bytes that its process has had at most, as it last said."""
        return next((line["memory"] for line in reversed(self.said())), 0)

    def said(self) -> list[dict[str, Any]]:
        """All whole lines."""
        try:
            text = self.events.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def clear(self, step: int) -> None:
        """Drop what was said of steps after `step`, which are gone through again, and what a killed process left half-written."""
        for torn in self.path.rglob(TORN):
            torn.unlink()
        self._failure.write_bytes(b" " * FAILURE)
        kept = [line for line in self.said() if line["step"] <= step]
        write_text(self.events, "".join(f"{json.dumps(line)}\n" for line in kept))

    # --- where it stands -----------------------------------------------------------------------

    def save_state(self, step: int, tensors: Mapping[str, torch.Tensor], told: Mapping[str, Any], keep: bool) -> None:
        """Write the state after `step`; the one before goes unless it was to be kept."""
        write_tensors(self.states / f"{step:06d}.safetensors", tensors, {"told": json.dumps(told), "keep": str(keep)})
        for file in self.states.glob("*.safetensors"):
            if file.stem != f"{step:06d}" and _metadata(file)["keep"] == "False":
                file.unlink()

    def last(self) -> int:
        """Steps done by the last state; 0 before there is one."""
        return max((int(file.stem) for file in self.states.glob("*.safetensors")), default=0)

    def state(self, step: int | None = None) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        """The last state, or that after `step`: its step, tensors, and the rest; `None` before there is one."""
        files = sorted(self.states.glob("*.safetensors"))
        file = files[-1] if step is None and files else self.states / f"{step or 0:06d}.safetensors"
        if not file.exists():
            return None
        with safe_open(file, framework="pt") as opened:
            return int(file.stem), {key: opened.get_tensor(key) for key in opened.keys()}, json.loads(opened.metadata()["told"])  # noqa: SIM118  (no dict)


def _had(lock: IO[str], kind: int) -> bool:
    """Whether the lock is ours now; nobody is waited for."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_turn = threading.Lock()  # of a look, or of an attempt to have a run
os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def write_text(file: Path, text: str) -> None:
    """Write a file that is whole at any time."""
    with replacing(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
