"""The named endpoints of a training: caption, start, look, stop, resume."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from core.dataset.dataset import Dataset
from core.dataset.intake import export_zip
from core.dataset.tagging import check_caption_options, count_tags
from core.runtime import gpu
from core.schema.bounds import format_value
from core.schema.errors import UserError
from core.schema.events import Failed
from core.system.device import is_zerogpu
from core.train import access, runs
from core.train.trainer.batches import make_buckets
from core.train.trainer.run_folder import RunFolder
from tabs.api.inputs import build_input
from tabs.server import visitor
from tabs.server.page_files import create_folder, expose_run_file, resolve_upload
from tabs.shared import dataset_intake
from tabs.shared.checks import translate_errors

FileValue = str | dict | list


def caption(
    dataset: FileValue, threshold: float = 0.35, trigger: str = "", drop: str = "", model: str = "nano"
) -> tuple[str, list[dict[str, Any]]]:
    """Caption images, or a zip of them, with the model's tagger.

    `drop` are tags or patterns to exclude, one per line. Images that come with a caption keep it:
    upload those that should get a new one without theirs.

    Returns a zip of images and captions, and how often each tag occurs.
    """
    model, drop = "nano" if model is None else model, "" if drop is None else drop
    with translate_errors():
        # Whatever is not allowed is refused before images are imported.
        dataset_intake.find_tagger(model)
        if not isinstance(drop, str):
            raise UserError("drop", f"{format_value(drop)} is not text, with one tag or pattern per line.")
        options = {
            "threshold": 0.35 if threshold is None else threshold,
            "trigger": trigger,
            "drop": drop.splitlines(),
        }
        check_caption_options(**options)
        with _import_dataset(dataset) as brought:
            found = dataset_intake.caption_dataset(brought, model, **options)
            rows = [{"tag": tag, "count": count} for tag, count in count_tags(found).items()]
            return str(export_zip(found, create_folder() / "captioned.zip")), rows


def train_start(
    dataset: FileValue,
    recipe: str,
    model: str = "nano",
    trigger: str = "",
    regularisation: FileValue | None = None,
    overrides: dict | None = None,
) -> dict[str, Any]:
    """Train a LoRA from images, or a zip of them, by a recipe.

    `overrides` are settings that differ from the recipe's.

    Returns the run's name, its steps, images and buckets, and warnings.
    """
    model = "nano" if model is None else model
    with translate_errors():
        runs.check_order(recipe, model, trigger, overrides)
        with _import_dataset(dataset, regularisation) as found:
            run, warnings = runs.plan_run(found, recipe, model, trigger=trigger, overrides=overrides)
            folder = runs.create_run(run, found, account=visitor.get_account_id())
            _start_training(folder)
    sizes = make_buckets(run.settings)
    fits = [sizes.fit(sample.width, sample.height).bucket for sample in found.samples]
    return {
        "run": folder.name,
        "steps": run.settings.steps,
        "images": len(found.samples),
        "buckets": {f"{width}x{height}": fits.count((width, height)) for width, height in sorted(set(fits))},
        "warnings": [*(f"{each.name}: {each.reason}" for each in found.skipped), *found.notes, *warnings],
    }


def train_status(run: str) -> dict[str, Any]:
    """Return the status of a run: state, step, loss and seconds left.

    It has previews, checkpoints and the LoRA as files, and says why the run failed, or what was
    skipped.
    """
    with translate_errors():
        return _build_status(visitor.find_run(run))


def train_stop(run: str) -> dict[str, Any]:
    """Stop a run after the current step; `/train_resume` continues it."""
    with translate_errors():
        folder = visitor.find_run(run)
        folder.request_stop()
        return _build_status(folder)


def train_resume(run: str) -> dict[str, Any]:
    """Resume a run that was stopped or failed, exactly from its last state."""
    with translate_errors():
        folder = visitor.find_run(run)
        _start_training(folder)
        return _build_status(folder)


def _start_training(folder: RunFolder) -> None:
    """Train in a process of its own, or on ZeroGPU, which lends its GPU by the call, a slice here.

    Raises `UserError` if the run cannot start, or if the slice fails.
    """
    if not is_zerogpu():
        runs.start_run(folder)
        return
    runs.check_unfinished(folder)
    folder.clear_stop()
    for event in gpu.train_slice(folder.path):
        if isinstance(event, Failed):
            raise UserError(None, event.message)


def _build_status(folder: RunFolder) -> dict[str, Any]:
    told = asdict(runs.read_status(folder))
    shown = {
        name: [_make_file_data(getattr(folder, where) / file, folder) for file in told[name]]
        for name, where in (("previews", "previews"), ("checkpoints", "loras"))
    }
    return {
        **told,
        **shown,
        "lora": _make_file_data(folder.loras / told["lora"], folder) if told["lora"] else None,
    }


def _make_file_data(file: Path, folder: RunFolder) -> dict[str, Any]:
    """Return a file as Gradio sends it, also inside JSON."""
    return {
        "path": str(expose_run_file(file, access.get_public_id(folder))),
        "orig_name": file.name,
        "meta": {"_type": "gradio.FileData"},
    }


@contextmanager
def _import_dataset(value: Any, regularisation: Any = None) -> Iterator[Dataset]:
    """Import the images that a client uploaded, and remove them at the end: a run has its own copy.

    Raises `UserError` if there is nothing to import.
    """
    if value is None or value == []:
        raise UserError("dataset", "use a zip, or a list of images.")
    found = dataset_intake.import_pictures(
        _resolve_uploads(value, "dataset"),
        [] if regularisation is None else _resolve_uploads(regularisation, "regularisation"),
    )
    try:
        yield found
    finally:
        shutil.rmtree(found.folder.parent)


def _resolve_uploads(value: Any, field: str) -> list[Path]:
    return [Path(resolve_upload(each, field)) for each in (value if isinstance(value, list) else [value])]


def register_endpoints() -> None:
    """Wire the endpoints, on components that no page shows."""
    call = gr.Button(visible=False)
    asked: dict[str, Any] = {
        "dataset": build_input(gr.JSON),
        "threshold": build_input(gr.Number, 0.35),
        "trigger": build_input(gr.Textbox, ""),
        "drop": build_input(gr.Textbox, ""),
        "model": build_input(gr.Textbox, "nano"),
    }
    call.click(
        caption,
        inputs_kwargs=asked,
        outputs=[gr.File(visible=False), gr.JSON(visible=False)],
        concurrency_id="train",
        api_name="caption",
    )
    wanted: dict[str, Any] = {
        "dataset": build_input(gr.JSON),
        "recipe": build_input(gr.Textbox, ""),
        "model": build_input(gr.Textbox, "nano"),
        "trigger": build_input(gr.Textbox, ""),
        "regularisation": build_input(gr.JSON),
        "overrides": build_input(gr.JSON),
    }
    call.click(
        train_start,
        inputs_kwargs=wanted,
        outputs=gr.JSON(visible=False),
        concurrency_id="train",
        api_name="train_start",
    )
    options: dict[str, dict[str, Any]] = {
        "train_status": {"queue": False},
        "train_stop": {"queue": False},
        "train_resume": {"concurrency_id": "train"},
    }
    for look in (train_status, train_stop, train_resume):
        call.click(
            look,
            inputs_kwargs={"run": build_input(gr.Textbox, "")},
            outputs=gr.JSON(visible=False),
            api_name=look.__name__,
            **options[look.__name__],
        )
