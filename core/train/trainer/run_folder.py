"""A run's folder: what it is made from, its events, its state. Every file is whole at any time.

run.json              the run: settings, model, trigger, fingerprint of its data
dataset/              the pictures and dataset.json
events.jsonl          its events, a line each
state/*.safetensors   all that the next step needs, by the number of steps done
loras/                LoRAs by the number of steps done, and the last
previews/             pictures by steps, prompt and strength
failure               why it could not continue
account               whose it is, on a Space; see core/train/access.py
owner                 locked by the process that trains
process               present from a process' start until it has recorded its end
stop, waiting         present when it is asked to stop, and while it waits for its turn
away                  present while it is trained elsewhere, by the Job in job.json
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

from core.schema.errors import UserError
from core.system.atomic_files import TEMP_PATTERN, remove_on_error, replace_file
from core.system.tensor_files import write_tensors

FAILURE_BYTES = 1000
"""Bytes that are reserved for the sentence that says why a run could not continue."""
LOCK_PATIENCE_SECONDS = 0.5
"""Seconds after which a process that holds a run's lock is assumed to train the run."""


EVENT_FIELDS = {
    "loss": {"loss", "t"},
    "validation": {"loss"},
    "saved": {"file"},
    "preview": {"file"},
    "note": {"text"},
}
"""Kind of an event -> what is read of it, beside its step."""


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.run_file, self.events_file, self.log_file = (
            path / "run.json",
            path / "events.jsonl",
            path / "process.log",
        )
        self.dataset, self.states, self.loras, self.previews = (
            path / name for name in ("dataset", "state", "loras", "previews")
        )
        self.latents = path / "latents"
        self._stop, self._lock_file, self._failure, self._waiting = (
            path / name for name in ("stop", "owner", "failure", "waiting")
        )
        self._process = path / "process"
        self.job_file, self._away = path / "job.json", path / "away"

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    # --- who trains ----------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Hold the run while the context lasts, so that nobody else trains it.

        The lock ends with the process.

        Yields the lock's descriptor, which a process that is started meanwhile can inherit. Raises
        `UserError` if somebody else has the run, here or elsewhere.
        """
        with self._lock_file.open("a+") as lock:
            begin = time.monotonic()
            until = begin + LOCK_PATIENCE_SECONDS
            while True:
                with _lock_mutex:  # nobody in this process checks the lock meanwhile
                    if _try_flock(lock, fcntl.LOCK_EX):
                        break
                if time.monotonic() > min(until, begin + 10 * LOCK_PATIENCE_SECONDS):
                    raise UserError("run", f"{self.name} is being trained already.")
                if _try_flock(lock, fcntl.LOCK_SH):  # only checks of the lock held it
                    fcntl.flock(lock, fcntl.LOCK_UN)
                    until = time.monotonic() + LOCK_PATIENCE_SECONDS
                time.sleep(0.01)
            self._check_local()
            yield lock.fileno()

    @contextmanager
    def populate(self) -> Iterator[None]:
        """Hold the run while it is set up in this folder, so that nobody deletes it meanwhile.

        After an error nothing of a new folder is left. Raises `UserError` for a full disk.
        """
        try:
            with nullcontext() if self.path.exists() else remove_on_error(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                with self.lock():
                    yield
        except (OSError, SafetensorError) as error:
            if "No space left" not in str(error):
                raise
            raise UserError(
                "disk", "it became full while the run was set up. Free up space and try again."
            ) from error

    def is_locked(self) -> bool:
        """Whether a live process trains this run, or waits to. Checks do not see each other."""
        with _lock_mutex, self._lock_file.open("a+") as lock:
            if not _try_flock(lock, fcntl.LOCK_SH):
                return True
            fcntl.flock(lock, fcntl.LOCK_UN)  # a process forked meanwhile also has the file open
        return False

    def mark_remote(self) -> None:
        """Record that the run is trained elsewhere from now on."""
        self._away.touch()

    def is_remote(self) -> bool:
        """Whether the run is trained elsewhere."""
        return self._away.exists()

    def mark_local(self) -> None:
        """Record that the run is no longer trained elsewhere."""
        self._away.unlink(missing_ok=True)

    def _check_local(self) -> None:
        if self.is_remote():
            raise UserError("run", f"{self.name} is being trained by a Job; stop the Job first.")

    def join_queue(self) -> None:
        """Take a place in the queue."""
        self._waiting.touch()

    def is_queued(self) -> bool:
        """Whether the run has a place in the queue."""
        return self._waiting.exists()

    def leave_queue(self) -> None:
        """Give up the run's place in the queue, if it has one."""
        self._waiting.unlink(missing_ok=True)

    def is_queued_before(self, other: "RunFolder") -> bool:
        """Whether this run is before `other` in the queue.

        A run whose process is gone has no place in it.
        """
        try:
            mine, its = (folder._waiting.stat().st_mtime_ns for folder in (self, other))
        except FileNotFoundError:
            return False
        return mine < its and self.is_locked()

    def request_stop(self) -> None:
        """Ask the run to stop.

        Raises `UserError` for a run that is trained elsewhere, where nobody reads this folder.
        """
        self._check_local()
        self._stop.touch()

    def is_stop_requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._stop.exists()

    def clear_stop(self) -> None:
        """Forget how the run ended before, and any request to stop."""
        for told in (self._stop, self._process):
            told.unlink(missing_ok=True)
        if self._failure.exists():
            self._write_failure(b"")

    def mark_started(self) -> None:
        """Record that a process trains the run, or will in a moment."""
        self._process.touch()

    def mark_ended(self) -> None:
        """Record that the run's process ends and has recorded how."""
        self._process.unlink(missing_ok=True)

    def has_missing_end(self) -> bool:
        """Whether the run's process is gone without recording its end, as one that is killed."""
        return self._process.exists() and not self.is_locked()

    def save_failure(self, message: str) -> None:
        """Keep why the run cannot continue.

        The room for it was reserved before, so that even a full disk can be recorded.
        """
        self._failure.touch()
        self._write_failure(message.encode())

    def _write_failure(self, message: bytes) -> None:
        with self._failure.open("r+b") as out:
            out.write(message[:FAILURE_BYTES].ljust(FAILURE_BYTES))

    def read_failure(self) -> str | None:
        """Return why the run could not continue, or `None` if it has continued since."""
        try:
            return self._failure.read_bytes().decode(errors="ignore").strip() or None
        except FileNotFoundError:
            return None

    # --- events --------------------------------------------------------------------------------

    def append_events(self, lines: list[dict[str, Any]]) -> None:
        """Append events; they are on disk when this returns."""
        with self.events_file.open("a", encoding="utf-8") as out:
            out.write("".join(f"{json.dumps(line)}\n" for line in lines))
            out.flush()
            os.fsync(out.fileno())

    def read_peak_memory(self) -> int:
        """Return the peak memory of the run's process in bytes, as last recorded."""
        return next((line["memory"] for line in reversed(self.read_events())), 0)

    def read_events(self) -> list[dict[str, Any]]:
        """Return all complete lines. Raises `UserError` if one of them is damaged."""
        try:
            text = self.events_file.read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        except FileNotFoundError:
            return []
        except (ValueError, RecursionError) as error:
            raise UserError("run", f"{self.name} cannot be read; its events.jsonl is damaged.") from error
        if not all(map(_is_event, lines)):
            raise UserError("run", f"{self.name} cannot be read; its events.jsonl is damaged.")
        return lines

    def rewind_to(self, step: int) -> None:
        """Drop the events of steps after `step`, which run again.

        Also deletes files that a killed process left half-written.
        """
        for torn in self.path.rglob(TEMP_PATTERN):
            torn.unlink()
        self._failure.write_bytes(b" " * FAILURE_BYTES)
        kept = [line for line in self.read_events() if line["step"] <= step]
        write_text(self.events_file, "".join(f"{json.dumps(line)}\n" for line in kept))

    # --- state ---------------------------------------------------------------------------------

    def save_state(
        self, step: int, tensors: Mapping[str, torch.Tensor], extras: Mapping[str, Any], keep: bool
    ) -> None:
        """Write the state after `step`; earlier states are deleted unless they were to be kept."""
        write_tensors(
            self.states / f"{step:06d}.safetensors", tensors, {"told": json.dumps(extras), "keep": str(keep)}
        )
        for file in self.states.glob("*.safetensors"):
            if file.stem != f"{step:06d}" and _read_metadata(file)["keep"] == "False":
                file.unlink()

    def find_last_step(self) -> int:
        """Return the steps done by the last state; 0 before there is one."""
        return max((int(file.stem) for file in self.states.glob("*.safetensors")), default=0)

    def load_state(
        self, step: int | None = None
    ) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return the last state, or that after `step`: its step, tensors and extras.

        `None` if there is none.
        """
        files = sorted(self.states.glob("*.safetensors"))
        file = files[-1] if step is None and files else self.states / f"{step or 0:06d}.safetensors"
        if not file.exists():
            return None
        with safe_open(file, framework="pt") as opened:
            return (
                int(file.stem),
                {key: opened.get_tensor(key) for key in opened.keys()},  # noqa: SIM118
                json.loads(opened.metadata()["told"]),
            )


def _try_flock(lock: IO[str], kind: int) -> bool:
    """Whether the lock is ours now; does not wait for it."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_lock_mutex = threading.Lock()  # held while a lock is checked or taken
os.register_at_fork(
    before=_lock_mutex.acquire, after_in_parent=_lock_mutex.release, after_in_child=_lock_mutex.release
)


def _read_metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def write_text(file: Path, text: str) -> None:
    """Write a file that is whole at any time."""
    with replace_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _is_event(line: Any) -> bool:
    """Whether a line of the events has what readers of its kind take from it."""
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return False
    kind, step = line["kind"], line.get("step")
    return isinstance(step, int) and EVENT_FIELDS.get(kind, frozenset()) <= line.keys()
