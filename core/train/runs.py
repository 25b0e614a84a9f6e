"""Runs on this machine: create, start, watch, stop, resume and fork them.

One run trains at a time; the others wait for their turn. A process of its own trains a run, and
nothing of the page holds it: a closed tab or a restarted app loses nothing.
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

from core.dataset import dataset as datasets
from core.dataset.dataset import Dataset
from core.dataset.tagging import check_trigger
from core.models import bases
from core.models.lora_library import slugify
from core.models.preset_match import make_preview_prompts
from core.schema import limits
from core.schema.errors import UserError
from core.system import disk, paths, shutdown
from core.train import access
from core.train.trainer import run_record
from core.train.trainer.batches import make_buckets, prepend_trigger, split_held_out
from core.train.trainer.run_end import explain_missing_end
from core.train.trainer.run_folder import RunFolder
from core.train.trainer.run_record import Run
from core.train.trainer.settings import change_settings, fit_to_machine, override_settings, resolve_settings

RUNS = paths.RUNS
SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "OAUTH_CLIENT_SECRET")
"""Environment variables that a training process does not need and does not get."""
TURN_SECONDS = 0.5
"""Seconds between two checks whether it is a run's turn."""
PACE_STEPS = 20
"""Steps from which the pace is taken."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The status of a run; `/train_status` answers with it."""

    state: str
    """`waiting`, `running`, `stopping`, `stopped`, `done` or `failed`."""
    step: int
    steps: int
    loss: float | None
    """Loss of the last step."""
    seconds_left: float | None
    previews: tuple[str, ...]
    checkpoints: tuple[str, ...]
    """LoRAs that were saved on the way."""
    lora: str | None
    """The LoRA of the last step."""
    error: str | None
    """Why the run failed; `None` in any other state."""
    notes: tuple[str, ...]
    """What the run went on without, such as a preview."""


def check_order(recipe: str, model: str, trigger: Any, overrides: Any) -> None:
    """Check what is asked for before its images are imported, which may take minutes.

    Raises `UserError` for what `plan_run` would refuse whatever the images are. Which settings go
    together is checked later, as the dataset may bring settings of its own.
    """
    check_capacity()
    settings = resolve_settings(recipe, bases.find_model(model))
    check_trigger(trigger)
    if overrides is not None:
        change_settings(settings, overrides)


def plan_run(
    dataset: Dataset,
    recipe: str,
    model: str = "nano",
    *,
    trigger: str | None = "",
    overrides: Mapping[str, Any] | None = None,
    name: str = "",
) -> tuple[Run, list[str]]:
    """Plan the run that is asked for; returns it with warnings to read before starting it.

    Nothing is written. The dataset's own settings override the recipe, and `overrides` override
    both. Raises `UserError` for anything that is not allowed.
    """
    found = bases.find_model(model)
    made = resolve_settings(recipe, found, dict(dataset.settings))
    made, notes = fit_to_machine(made if overrides is None else override_settings(made, overrides))
    trigger = check_trigger(trigger)
    sizes = make_buckets(made)
    for sample in dataset.samples:
        sizes.fit(sample.width, sample.height)
    learnt, _ = split_held_out(dataset.samples, made)
    if not [sample for sample in learnt if not sample.regularisation]:
        raise UserError("dataset", "it contains no image to train on.")
    if not any(prepend_trigger(sample, trigger) for sample in learnt if not sample.regularisation):
        raise UserError(
            "trigger", "it is empty and no image has a caption; write a trigger word, or captions."
        )
    run = Run(
        name=slugify(name or trigger.split(",")[0].strip() or recipe)[:60],
        recipe=recipe,
        model=found.name,
        trigger=trigger,
        settings=made,
        prompts=make_preview_prompts(found.name, trigger),
        fingerprint=dataset.fingerprint(),
        began=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return run, notes + collect_warnings(run, dataset)


def create_run(
    run: Run, dataset: Dataset, path: Path | None = None, *, account: str | None = None
) -> RunFolder:
    """Create the folder of a planned run, with its pictures, bound to the `account`.

    Raises `UserError` if the folder has a run already, no run can begin now, or the disk has no
    room.
    """
    if path is None:
        check_capacity()
        disk.check_free_disk(RUNS, (dataset.folder / sample.file for sample in dataset.samples))
    folder = RunFolder(path or RUNS / secrets.token_hex(16))
    if folder.run_file.exists():
        raise UserError("run", f"{folder.name} already exists; resume it, or choose another folder.")
    with folder.populate():
        folder.dataset.mkdir(exist_ok=True)
        for sample in dataset.samples:
            shutil.copyfile(dataset.folder / sample.file, folder.dataset / sample.file)
        datasets.save_dataset(replace(dataset, folder=folder.dataset))
        access.bind_account(folder, account)  # before anybody can find the run
        run_record.write_run(run, folder)
    return folder


def fork_run(
    folder: RunFolder, step: int, overrides: Mapping[str, Any], *, account: str | None = None
) -> tuple[RunFolder, Run]:
    """Create a run that continues from where another stood after `step`, with other settings.

    The new run is bound to the `account`. Raises `UserError` if the step was not saved, a setting
    does not allow it, no run can begin now, or the disk has no room.
    """
    check_capacity()
    parent = run_record.read_run(folder)
    if (state := folder.load_state(step)) is None:
        kept = ", ".join(str(int(file.stem)) for file in sorted(folder.states.glob("*.safetensors")))
        raise UserError("step", f"{step} was not saved. The saved steps are {kept or 'none yet'}.")
    made, _ = fit_to_machine(override_settings(parent.settings, overrides))
    if made.steps <= step:
        raise UserError(
            "steps", f"{made.steps} are not beyond step {step}, from which the branch continues. Use more."
        )
    shape = ("kind", "rank", "ranks", "targets", "text_encoders", "optimizer")
    if changed := [name for name in shape if getattr(made, name) != getattr(parent.settings, name)]:
        raise UserError(
            changed[0],
            f"{getattr(made, changed[0])!r} would be a different LoRA; a branch keeps {', '.join(shape)}.",
        )
    # Latents do not come back from a Job.
    copied = [each for each in (folder.dataset, folder.latents) if each.exists()]
    disk.check_free_disk(
        RUNS,
        [folder.states / f"{step:06d}.safetensors", *(file for each in copied for file in each.rglob("*"))],
    )
    child = RunFolder(RUNS / secrets.token_hex(16))
    run = replace(
        parent,
        settings=made,
        parent=f"{parent.name}@{step}",
        began=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with child.populate():
        for each in copied:
            shutil.copytree(each, child.path / each.name)
        _, tensors, told = state
        child.save_state(step, tensors, told, keep=True)
        child.append_events(
            [
                line
                for line in folder.read_events()
                if line["step"] <= step and line["kind"] in ("loss", "validation")
            ]
        )
        access.bind_account(child, account)  # before anybody can find the run
        run_record.write_run(run, child)
    return child, run


def find_run(name: Any, account: str | None) -> RunFolder:
    """Return the run of that name, if a visitor with this account may access it.

    Only a name of the form that runs are given becomes a path. Raises `UserError`, with the same
    sentence for a run that does not exist and one of somebody else.
    """
    if isinstance(name, str) and re.fullmatch(r"[0-9a-f]{32}", name) and (RUNS / name / "run.json").exists():
        folder = RunFolder(RUNS / name)
        if access.can_access(folder, account):
            return folder
    raise UserError("run", f"{str(name)[:40]!r} does not exist.")


def list_runs(account: str | None) -> list[RunFolder]:
    """Return the runs that are bound to the account, the newest first."""
    return [folder for folder in list_all_runs() if access.is_owner(folder, account)]


def start_run(folder: RunFolder) -> None:
    """Start or resume the run in a process of its own, which waits while another run trains.

    Raises `UserError` if no run can begin now, or if this one is done or being trained already.
    """
    check_capacity()
    check_unfinished(folder)
    with folder.lock() as lock, folder.log_file.open("ab") as log:  # the process inherits the lock
        folder.clear_stop()
        folder.join_queue()
        folder.mark_started()
        command = [sys.executable, "-m", "core.train", "--resume", str(folder.path), "--owner", str(lock)]
        # The page computes, too: two thread teams on the same cores slow both down fourfold.
        threads = max(1, (os.cpu_count() or 1) // 2)
        told = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
        beside = {"OMP_NUM_THREADS": str(threads), **told}
        try:
            subprocess.Popen(
                command,
                cwd=paths.CODE,
                env=beside,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock],
            )
        except OSError as error:
            folder.mark_ended()
            raise UserError(
                "run",
                f"its process cannot be started ({error.strerror}); try again after closing other programs.",
            ) from error


def check_capacity() -> None:
    """Raise `UserError` if no run can begin now.

    The app is shutting down, the disk is full, or as many runs are queued as may be.
    """
    shutdown.check_shutdown()
    disk.check_free_disk(RUNS)
    if sum(other.is_queued() and other.is_locked() for other in list_all_runs()) >= limits.RUNS_WAITING:
        raise UserError(
            "run", f"{limits.RUNS_WAITING} are queued, which is the limit; try again when one has ended."
        )


def check_unfinished(folder: RunFolder) -> None:
    """Raise `UserError` for a run that is done, or is being trained."""
    if folder.is_locked():
        raise UserError("run", f"{folder.name} is being trained already.")
    if (found := read_status(folder)).state == "done":
        raise UserError(
            "run",
            f"{folder.name} is done, {found.step} of {found.steps} steps; branch from it to train further.",
        )


@contextmanager
def wait_for_turn(folder: RunFolder, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Wait until no other run trains and none has waited longer; yield whether to go on.

    Yields `False` if the run is asked to stop meanwhile. `on_wait` is called once if the run has to
    wait.
    """
    RUNS.mkdir(parents=True, exist_ok=True)
    if not folder.is_queued():
        folder.join_queue()
    told = False
    with (RUNS / "turn").open("w") as lock:
        while not folder.is_stop_requested():
            if not any(
                other.is_queued_before(folder) for other in list_all_runs() if other.path != folder.path
            ):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
            if not told:
                on_wait()
                told = True
            time.sleep(TURN_SECONDS)
        folder.leave_queue()
        yield not folder.is_stop_requested()


def list_all_runs() -> list[RunFolder]:
    """Return all runs of this machine, the newest first."""
    return [
        RunFolder(file.parent)
        for file in sorted(RUNS.glob("*/run.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    ]


def is_any_training() -> bool:
    """Whether the process of a run works on this machine, or waits for its turn."""
    return any(folder.is_locked() for folder in list_all_runs())


def read_status(folder: RunFolder) -> RunStatus:
    """Return the run's status, read from its folder."""
    # Read before the events: a process that ends in between has written all of them.
    alive = folder.is_locked() or folder.is_remote()
    run, lines = run_record.read_run(folder), folder.read_events()
    losses = [line for line in lines if line["kind"] == "loss"]
    step, last = losses[-1]["step"] if losses else 0, run_record.find_final_lora(folder)
    error = None
    if alive:
        state = "stopping" if folder.is_stop_requested() else "waiting" if folder.is_queued() else "running"
    elif last and step == run.settings.steps:
        state = "done"
    else:
        error = folder.read_failure() or explain_missing_end(folder)
        state = "failed" if error else "stopped"
    saved = [line["file"] for line in lines if line["kind"] == "saved"]
    return RunStatus(
        state=state,
        step=step,
        steps=run.settings.steps,
        loss=losses[-1]["loss"] if losses else None,
        seconds_left=_estimate_seconds_left(losses, run.settings.steps) if state == "running" else None,
        previews=tuple(line["file"] for line in lines if line["kind"] == "preview"),
        checkpoints=tuple(name for name in saved if last is None or name != last.name),
        lora=last.name if last else None,
        error=error,
        notes=tuple(line["text"] for line in lines if line["kind"] == "note"),
    )


def _estimate_seconds_left(losses: list[dict[str, Any]], steps: int) -> float | None:
    """Return the seconds left at the pace of the last steps, without the pauses of previews."""
    recent = losses[-PACE_STEPS:]
    gaps = sorted(b["t"] - a["t"] for a, b in pairwise(recent))
    return round(gaps[len(gaps) // 2] * (steps - losses[-1]["step"]), 1) if gaps else None


def collect_warnings(run: Run, dataset: Dataset) -> list[str]:
    """Return warnings about settings that are allowed but make little sense, with their numbers."""
    made, usual = run.settings, resolve_settings(run.recipe, bases.find_model(run.model))
    own = [sample for sample in dataset.samples if not sample.regularisation]
    seen = made.steps * made.total_batch_size / max(1, len(own))
    said = []
    if made.alpha > made.rank:
        said.append(
            f"alpha: {made.alpha:g} is more than the rank, {made.rank}: "
            "the LoRA is stronger than usual at 1; half of the rank is typical."
        )
    if made.held_out > (most := len(own) // 3):
        said.append(
            f"held_out: {made.held_out} images are asked for, but at most a third is held out; here {most}."
        )
    if seen > 250 and not made.ranks:
        said.append(
            f"steps: {made.steps} steps of {made.total_batch_size} on {len(own)} images "
            f"show each {seen:.0f} times; 40 to 200 is typical."
        )
    if made.optimizer == "Prodigy" and not 0.1 <= made.learning_rate <= 2:
        said.append(
            f"learning_rate: {made.learning_rate:g} is not what Prodigy expects; "
            "it finds the learning rate itself. Use 1."
        )
    elif (
        made.optimizer == usual.optimizer
        and not usual.learning_rate / 10 < made.learning_rate < usual.learning_rate * 10
    ):
        said.append(
            f"learning_rate: {made.learning_rate:g} is {made.learning_rate / usual.learning_rate:.3g} times "
            f"the recipe's {usual.learning_rate:g}."
        )
    if made.text_encoders and made.effective_text_encoder_lr != made.text_encoder_lr:
        said.append(
            f"text_encoder_lr: Prodigy has one learning rate for everything; {made.text_encoder_lr:g} is "
            "ignored, "
            f"the text encoders use learning_rate, {made.learning_rate:g}."
        )
    if made.lr_warmup_steps >= made.steps:
        said.append(
            f"lr_warmup_steps: {made.lr_warmup_steps} steps are all of the {made.steps}: "
            "the learning rate never reaches its value."
        )
    if uncaptioned := [sample for sample in own if not sample.caption]:
        said.append(
            f"captions: {len(uncaptioned)} of {len(own)} images have no caption: "
            "the trigger word will stand for everything in them."
        )
    return said
