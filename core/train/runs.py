"""Runs on this machine: set up, started, watched, stopped, resumed, forked. One trains at a time; the others wait their turn.

A run is trained by a process of its own, which nothing of the page holds: a closed tab or a restarted app loses nothing.
"""

import fcntl
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from core import closing, limits, models, paths, room
from core.data import dataset as datasets
from core.data.dataset import Dataset
from core.shelf import slug
from core.train import owner
from core.train import run as written
from core.train.ending import missing_end
from core.train.folder import Folder
from core.train.lesson import buckets, caption_of, divided
from core.train.preview import prompts
from core.train.run import Run
from core.train.settings import fitted, overridden, settings
from core.types import UserError

RUNS = paths.RUNS
SECRET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "OAUTH_CLIENT_SECRET")
"""What a process that trains has no use for."""
TURN_SECONDS = 0.5
"""Between two looks whether it is a run's turn."""
PACE = 20
"""Steps that the pace is taken from."""
LONGEST_TRIGGER = 200


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a run stands; `/train_status` in `core/`'s words."""

    state: str
    """`waiting`, `running`, `stopping`, `stopped`, `done` or `failed`."""
    step: int
    steps: int
    loss: float | None
    """Of the last step."""
    seconds_left: float | None
    previews: tuple[str, ...]
    checkpoints: tuple[str, ...]
    """LoRAs that were saved on the way."""
    lora: str | None
    """The LoRA of the last step."""
    error: str | None
    """Why it failed; `None` in any other state."""
    notes: tuple[str, ...]
    """What it went on without, such as a preview."""


def settled(
    dataset: Dataset, recipe: str, model: str = "nano", *, trigger: str = "", overrides: Mapping[str, Any] | None = None, name: str = ""
) -> tuple[Run, list[str]]:
    """The run that is asked for, and what a person should know before starting it; nothing is written.

    What the dataset says itself goes before the recipe, `overrides` before both. Raises `UserError` for whatever is not allowed.
    """
    found = models.find(model)
    made = overridden(settings(recipe, found, dict(dataset.settings)), overrides or {})
    made, notes = fitted(made)
    trigger = _trigger(trigger)
    sizes = buckets(made)
    for sample in dataset.samples:
        sizes.fit(sample.width, sample.height)
    learnt, _ = divided(dataset.samples, made)
    if not [sample for sample in learnt if not sample.regularisation]:
        raise UserError("dataset: it holds no picture to train on.")
    if not any(caption_of(sample, trigger) for sample in learnt if not sample.regularisation):
        raise UserError("trigger: it is empty and no picture has a caption; write a trigger word, or captions.")
    run = Run(
        name=slug(name or trigger.split(",")[0].strip() or recipe)[:60],
        recipe=recipe,
        model=found.name,
        trigger=trigger,
        settings=made,
        prompts=prompts(found.name, trigger),
        fingerprint=dataset.fingerprint(),
        began=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return run, notes + advice(run, dataset)


def prepared(run: Run, dataset: Dataset, into: Path | None = None, *, account: str | None = None) -> Folder:
    """A folder for a run that is settled, with its pictures in it, bound to the `account`.

    Raises `UserError` for one that is taken, and where none can begin now or the disk has no room.
    """
    if into is None:
        admitted()
        room.check(RUNS, (dataset.folder / sample.file for sample in dataset.samples))
    folder = Folder(into or RUNS / secrets.token_hex(16))
    if folder.run.exists():
        raise UserError(f"run: {folder.name} is there already; resume it, or choose another folder.")
    with folder.filled():
        folder.dataset.mkdir(exist_ok=True)
        for sample in dataset.samples:
            shutil.copyfile(dataset.folder / sample.file, folder.dataset / sample.file)
        datasets.save(replace(dataset, folder=folder.dataset))
        owner.bind(folder, account)  # before it can be found
        written.write(run, folder)
    return folder


def forked(folder: Folder, step: int, overrides: Mapping[str, Any], *, account: str | None = None) -> tuple[Folder, Run]:
    """A new run, bound to the `account`, that begins where another stood after `step`, with other settings. Raises `UserError`."""
    admitted()
    parent = written.read(folder)
    if (state := folder.state(step)) is None:
        kept = ", ".join(str(int(file.stem)) for file in sorted(folder.states.glob("*.safetensors")))
        raise UserError(f"step: {step} is not kept; it takes {kept or 'none yet'}.")
    made, _ = fitted(overridden(parent.settings, overrides))
    if made.steps <= step:
        raise UserError(f"steps: {made.steps} are not beyond step {step}, from which the fork goes on; it takes more.")
    shape = ("kind", "rank", "ranks", "targets", "text_encoders", "optimizer")
    if changed := [name for name in shape if getattr(made, name) != getattr(parent.settings, name)]:
        raise UserError(f"{changed[0]}: {getattr(made, changed[0])!r} would be another LoRA; a fork keeps {', '.join(shape)}.")
    copied = [each for each in (folder.dataset, folder.latents) if each.exists()]  # latents do not come back from a Job
    room.check(RUNS, [folder.states / f"{step:06d}.safetensors", *(file for each in copied for file in each.rglob("*"))])
    child = Folder(RUNS / secrets.token_hex(16))
    run = replace(parent, settings=made, parent=f"{parent.name}@{step}", began=datetime.now(UTC).isoformat(timespec="seconds"))
    with child.filled():
        for each in copied:
            shutil.copytree(each, child.path / each.name)
        _, tensors, told = state
        child.save_state(step, tensors, told, keep=True)
        child.say([line for line in folder.said() if line["step"] <= step and line["kind"] in ("loss", "validation")])
        owner.bind(child, account)  # before it can be found
        written.write(run, child)
    return child, run


def found(name: Any, account: str | None) -> Folder:
    """The run of that name, if a visitor with this account may know of it. Raises `UserError`, the same for one of somebody else's;
    nothing but a name that was given out becomes a path.
    """
    if isinstance(name, str) and re.fullmatch(r"[0-9a-f]{32}", name) and (RUNS / name / "run.json").exists():
        folder = Folder(RUNS / name)
        if owner.may(folder, account):
            return folder
    raise UserError(f"run: {str(name)[:40]!r} is not there.")


def of(account: str | None) -> list[Folder]:
    """The runs that are bound to the account, the newest first."""
    return [folder for folder in listed() if owner.owns(folder, account)]


def start(folder: Folder) -> None:
    """Train the run, or go on with it, in a process of its own; it waits while another one trains.

    Raises `UserError` where none can begin now, and for a run that is done or being trained already.
    """
    admitted()
    check_unfinished(folder)
    with folder.owned() as lock, folder.log.open("ab") as log:  # the process has the run from its first moment on
        folder.go_on()
        folder.wait()
        folder.begin()
        command = [sys.executable, "-m", "core.train", "--resume", str(folder.path), "--owner", str(lock)]
        threads = max(1, (os.cpu_count() or 1) // 2)  # the page computes, too: two teams on the same cores slow both down fourfold
        told = {name: value for name, value in os.environ.items() if name not in SECRET}
        beside = {"OMP_NUM_THREADS": str(threads), **told}
        try:
            subprocess.Popen(command, cwd=paths.CODE, env=beside, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=[lock])
        except OSError as error:
            folder.end()
            raise UserError(f"run: its process cannot be started ({error.strerror}); press again when other programs have ended.") from error


def admitted() -> None:
    """Raise `UserError` where no run can begin now: the studio closes, the disk is full, as many wait as may."""
    closing.check()
    room.check(RUNS)
    if sum(other.waits() and other.is_owned() for other in listed()) >= limits.RUNS_WAITING:
        raise UserError(f"run: {limits.RUNS_WAITING} wait for their turn, and no more may; press again when one has ended.")


def check_unfinished(folder: Folder) -> None:
    """Raise `UserError` for a run that is done, with which there is nothing to go on, or at work."""
    if folder.is_owned():
        raise UserError(f"run: {folder.name} is being trained already.")
    if (found := status(folder)).state == "done":
        raise UserError(f"run: {folder.name} is done, {found.step} of {found.steps} steps; fork it to train further.")


@contextmanager
def turn(folder: Folder, waits: Callable[[], None]) -> Iterator[bool]:
    """Wait until no other run trains and none has waited longer; gives whether to go on, or `False` when asked to stop meanwhile.

    `waits` is called once where it is not its turn at once.
    """
    RUNS.mkdir(parents=True, exist_ok=True)
    if not folder.waits():
        folder.wait()
    told = False
    with (RUNS / "turn").open("w") as lock:
        while not folder.asked_to_stop():
            if not any(other.waits_longer_than(folder) for other in listed() if other.path != folder.path):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
            if not told:
                waits()
                told = True
            time.sleep(TURN_SECONDS)
        folder.wait_no_more()
        yield not folder.asked_to_stop()


def listed() -> list[Folder]:
    """All runs of this machine, the newest first."""
    return [Folder(file.parent) for file in sorted(RUNS.glob("*/run.json"), key=lambda file: file.stat().st_mtime, reverse=True)]


def status(folder: Folder) -> Status:
    """How the run stands, from what lies in its folder."""
    alive = folder.is_owned() or folder.is_away()  # before its events: a process that ends meanwhile has said all of them
    run, lines = written.read(folder), folder.said()
    losses = [line for line in lines if line["kind"] == "loss"]
    step, last = losses[-1]["step"] if losses else 0, written.last(folder)
    error = None
    if alive:
        state = "stopping" if folder.asked_to_stop() else "waiting" if folder.waits() else "running"
    elif last and step == run.settings.steps:
        state = "done"
    else:
        error = folder.failure() or missing_end(folder)
        state = "failed" if error else "stopped"
    saved = [line["file"] for line in lines if line["kind"] == "saved"]
    return Status(
        state=state,
        step=step,
        steps=run.settings.steps,
        loss=losses[-1]["loss"] if losses else None,
        seconds_left=_seconds_left(losses, run.settings.steps) if state == "running" else None,
        previews=tuple(line["file"] for line in lines if line["kind"] == "preview"),
        checkpoints=tuple(name for name in saved if last is None or name != last.name),
        lora=last.name if last else None,
        error=error,
        notes=tuple(line["text"] for line in lines if line["kind"] == "note"),
    )


def _seconds_left(losses: list[dict[str, Any]], steps: int) -> float | None:
    """From the pace of the last steps, without the pauses of previews."""
    recent = losses[-PACE:]
    gaps = sorted(b["t"] - a["t"] for a, b in pairwise(recent))
    return round(gaps[len(gaps) // 2] * (steps - losses[-1]["step"]), 1) if gaps else None


def advice(run: Run, dataset: Dataset) -> list[str]:
    """What is allowed and makes little sense, with its number."""
    made, usual = run.settings, settings(run.recipe, models.find(run.model))
    own = [sample for sample in dataset.samples if not sample.regularisation]
    seen = made.steps * made.pictures_a_step / max(1, len(own))
    said = []
    if made.alpha > made.rank:
        said.append(f"alpha: {made.alpha:g} is more than the rank, {made.rank}: the LoRA is stronger than 1 at 1; half of the rank is usual.")
    if seen > 250 and not made.ranks:
        said.append(f"steps: {made.steps} steps of {made.pictures_a_step} on {len(own)} pictures show each {seen:.0f} times; 40 to 200 are usual.")
    if made.optimizer == "Prodigy" and not 0.1 <= made.rate <= 2:
        said.append(f"rate: {made.rate:g} is not what Prodigy expects; it finds the rate itself and takes 1.")
    elif made.optimizer == usual.optimizer and not usual.rate / 10 < made.rate < usual.rate * 10:
        said.append(f"rate: {made.rate:g} is {made.rate / usual.rate:.3g} times the recipe's {usual.rate:g}.")
    if made.text_encoders and made.own_text_rate != made.text_rate:
        said.append(f"text_rate: Prodigy has one rate for all that it trains; {made.text_rate:g} is not used, the text encoders take rate, {made.rate:g}.")
    if made.warmup >= made.steps:
        said.append(f"warmup: {made.warmup} steps are all of the {made.steps}: the rate never arrives.")
    if uncaptioned := [sample for sample in own if not sample.caption]:
        said.append(f"captions: {len(uncaptioned)} of {len(own)} pictures have none; the trigger stands for all that they show.")
    return said


def _trigger(said: Any) -> str:
    text = "" if said is None else said
    if not isinstance(text, str) or len(text) > LONGEST_TRIGGER or not text.isprintable():
        raise UserError(f"trigger: {str(text)[:40]!r} is not allowed; it takes one line of up to {LONGEST_TRIGGER} characters.")
    return text.strip()
