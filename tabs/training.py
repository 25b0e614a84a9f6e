"""The named endpoints of a training: caption, start, look, stop, resume."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from core import gpu
from core.data.dataset import Dataset
from core.data.intake import written
from core.data.tagging import counts
from core.device import on_zero_gpu
from core.events import Failed
from core.train import owner, runs
from core.train.folder import Folder
from core.train.lesson import buckets
from core.types import UserError
from tabs import caller, pictures
from tabs.files import new_folder, placed, uploaded
from tabs.widgets import sentences

File = str | dict | list


def caption(dataset: File, threshold: float = 0.35, trigger: str = "", drop: str = "", model: str = "nano") -> tuple[str, list[dict[str, Any]]]:
    """Caption pictures, or a zip of them, by the model's tagger. `drop` are tags or patterns that are left out, one a line.

    Pictures that come with a caption keep it: bring those that are to get another one without theirs.
    Returns a zip of pictures and captions, and how often each tag stands in them.
    """
    with sentences(), _dataset(dataset) as brought:
        found = pictures.captioned(brought, model, threshold=threshold, trigger=trigger or "", drop=(drop or "").splitlines())
        rows = [{"tag": tag, "count": count} for tag, count in counts(found).items()]
        return str(written(found, new_folder() / "captioned.zip")), rows


def train_start(
    dataset: File, recipe: str, model: str = "nano", trigger: str = "", regularisation: File | None = None, overrides: dict | None = None
) -> dict[str, Any]:
    """Train a LoRA from pictures, or a zip of them, by a recipe. `overrides` are settings that are not to be the recipe's.

    Returns the run's name, by which it is asked for, its steps, pictures and buckets, and what makes little sense.
    """
    with sentences(), _dataset(dataset, regularisation) as found:
        run, warnings = runs.settled(found, recipe, model or "nano", trigger=trigger, overrides=overrides)
        folder = runs.prepared(run, found, account=caller.account())
        _go(folder)
    sizes = buckets(run.settings)
    fits = [sizes.fit(sample.width, sample.height).bucket for sample in found.samples]
    return {
        "run": folder.name,
        "steps": run.settings.steps,
        "images": len(found.samples),
        "buckets": {f"{width}x{height}": fits.count((width, height)) for width, height in sorted(set(fits))},
        "warnings": [*(f"{each.name}: {each.reason}" for each in found.skipped), *found.notes, *warnings],
    }


def train_status(run: str) -> dict[str, Any]:
    """How a run stands: state, step, loss, seconds left; previews, checkpoints and the LoRA as files; why it failed, or what it went on without."""
    with sentences():
        return _status(caller.found(run))


def train_stop(run: str) -> dict[str, Any]:
    """Stop a run after the step under way; `/train_resume` goes on."""
    with sentences():
        folder = caller.found(run)
        folder.ask_to_stop()
        return _status(folder)


def train_resume(run: str) -> dict[str, Any]:
    """Go on with a run that was stopped or failed, exactly where its last state is."""
    with sentences():
        folder = caller.found(run)
        _go(folder)
        return _status(folder)


def _go(folder: Folder) -> None:
    """Train in a process of its own; on ZeroGPU, which lends its GPU by the call, a slice of it here and now."""
    if not on_zero_gpu():
        runs.start(folder)
        return
    runs.check_unfinished(folder)
    folder.go_on()
    for event in gpu.lesson(folder.path):
        if isinstance(event, Failed):
            raise UserError(event.message)


def _status(folder: Folder) -> dict[str, Any]:
    told = asdict(runs.status(folder))
    shown = {
        name: [_file(getattr(folder, where) / file, folder) for file in told[name]] for name, where in (("previews", "previews"), ("checkpoints", "loras"))
    }
    return {**told, **shown, "lora": _file(folder.loras / told["lora"], folder) if told["lora"] else None}


def _file(file: Path, folder: Folder) -> dict[str, Any]:
    """A file as Gradio sends it, also inside of JSON."""
    return {"path": str(placed(file, owner.shown(folder))), "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}


@contextmanager
def _dataset(said: Any, regularisation: Any = None) -> Iterator[Dataset]:
    """What was brought, for as long as it is needed: a run has its own copy."""
    if not said:
        raise UserError("dataset: it takes a zip, or a list of pictures.")
    found = pictures.brought(_files(said, "dataset"), _files(regularisation, "regularisation") if regularisation else [])
    try:
        yield found
    finally:
        shutil.rmtree(found.folder.parent)


def _files(said: Any, field: str) -> list[Path]:
    return [Path(uploaded(each, field)) for each in (said if isinstance(said, list) else [said])]


def endpoints() -> None:
    """Wire the endpoints, on components that no page shows."""
    text, data, call = (lambda value="": gr.Textbox(value, visible=False)), (lambda: gr.JSON(visible=False)), gr.Button(visible=False)
    asked: dict[str, Any] = {"dataset": data(), "threshold": gr.Number(0.35, visible=False), "trigger": text(), "drop": text(), "model": text("nano")}
    call.click(caption, inputs_kwargs=asked, outputs=[gr.File(visible=False), data()], concurrency_id="train", api_name="caption")
    wanted: dict[str, Any] = {"dataset": data(), "recipe": text(), "model": text("nano"), "trigger": text(), "regularisation": data(), "overrides": data()}
    call.click(train_start, inputs_kwargs=wanted, outputs=data(), concurrency_id="train", api_name="train_start")
    for look in (train_status, train_stop):
        call.click(look, inputs_kwargs={"run": text()}, outputs=data(), queue=False, api_name=look.__name__)
    call.click(train_resume, inputs_kwargs={"run": text()}, outputs=data(), concurrency_id="train", api_name="train_resume")
