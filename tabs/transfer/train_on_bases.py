"""Train the Train tab's pictures on several bases, one after another, for the Transfer tab."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from core.models import bases as base_models
from core.schema import presets
from core.schema.errors import UserError
from core.system.device import is_zerogpu
from core.train import runs
from tabs.server import visitor
from tabs.shared import handoff, train_form
from tabs.shared.run_choices import update_run_choices


def train_on_each_base(
    bases: Sequence[str], all_checkpoints: bool, my_runs: str, **values: Any
) -> Iterator[dict[str, Any]]:
    """Train the same pictures on each base, one after another.

    Then choose the runs and the bases for the study. Raises `gr.Error` if a run cannot start or
    does not finish.
    """
    try:
        if not bases:
            raise UserError("models", "choose the base models to train on.")
        if is_zerogpu():
            raise UserError(
                "models",
                "ZeroGPU trains in slices. "
                "Train on one base after another in the Train tab, then choose the runs here.",
            )
        # All of them are checked before the first begins.
        planned = [train_form.plan_from_controls({**values, "model": model}) for model in bases]
        folders = [runs.create_run(run, found, account=visitor.get_account_id()) for run, _, found in planned]
        for folder in folders:
            runs.start_run(folder)
    except UserError as error:
        raise gr.Error(str(error)) from error
    my_runs = "\n".join(
        [*(folder.name for folder in folders), *my_runs.split()][: handoff.MAX_REMEMBERED_RUNS]
    )
    yield {"status": "Training …", "my_runs": my_runs}
    while not all(
        (told := runs.read_status(folder)).state in ("done", "failed", "stopped") for folder in folders
    ):
        at = [
            f"{model}: {status.state}, step {status.step} of {status.steps}"
            for model, status in zip(bases, map(runs.read_status, folders), strict=True)
        ]
        yield {"status": f"Training. {'; '.join(at)}."}
        time.sleep(1)
    for folder, model in zip(folders, bases, strict=True):
        if (told := runs.read_status(folder)).state != "done":
            raise gr.Error(
                f"The run on {model} has {told.state}: {told.error or 'resume it in the Train tab'}"
            )
    chosen = [f"{folder.name}{':all' if all_checkpoints else ''}" for folder in folders]
    yield {
        "status": "Training finished; testing …",
        "runs": update_run_choices(my_runs, chosen),
        "models": gr.update(value=list(dict.fromkeys([*bases, *list_family_models(bases)]))),
    }


def list_family_models(bases: Sequence[str]) -> list[str]:
    """Return the models of the same family that are on this machine, by name.

    A family is known by its native size.
    """
    sizes = {base_models.find_model(name).native_size for name in bases}
    return [
        model.name
        for model in presets.get_models().values()
        if model.native_size in sizes and base_models.describe_absence(model) is None
    ]
