"""The visitor's runs that have a LoRA, as Transfer and Publish offer them."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from core.schema.errors import UserError
from core.train.trainer.run_folder import RunFolder
from core.train.trainer.run_record import read_run
from tabs.server import visitor
from tabs.shared import handoff


def label_run(folder: RunFolder) -> str:
    """Return what a list of runs says of a run."""
    try:
        run = read_run(folder)
    except UserError:  # choosing it says what is wrong with it
        return f"{folder.name[:8]} (damaged)"
    return f"{run.name} on {run.model}, {run.began[5:16].replace('T', ' ')}"


def update_run_choices(my_runs: str, selected: Sequence[str], several: bool = True) -> Any:
    """Offer the visitor's runs that have a LoRA.

    A run stands for its last LoRA; where `several` are taken, also for all that it kept. The runs
    in `selected` that still exist stay selected.
    """
    choices = _list_run_choices(my_runs, several)
    there = {name for _, name in choices}
    left = [name for name in selected or [] if name in there]
    return gr.update(choices=choices, value=left if several else next(iter(left), None))


def refresh_run_choices(my_runs: str, several: bool = True) -> Any:
    """Offer the visitor's runs when the tab is opened, as a run may have its LoRA by now.

    What is selected is left alone.
    """
    return gr.update(choices=_list_run_choices(my_runs, several))


def _list_run_choices(my_runs: str, several: bool) -> list[tuple[str, str]]:
    choices = []
    for name in my_runs.split()[: handoff.MAX_REMEMBERED_RUNS]:
        if (folder := visitor.find_run_or_none(name)) and any(folder.loras.glob("*.safetensors")):
            said = label_run(folder)
            choices += [(said, name), *([(f"{said}: all checkpoints", f"{name}:all")] if several else [])]
    return choices
