"""The visitor's runs that have a LoRA, as Transfer and Publish offer them."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from core.train.run import read
from tabs import caller, train


def known(mine: str, chosen: Sequence[str], several: bool = True) -> Any:
    """The visitor's runs that have a LoRA: the last one of each, or, where `several` are taken, all that it kept; those `chosen` stay."""
    choices = _choices(mine, several)
    there = {name for _, name in choices}
    left = [name for name in chosen or [] if name in there]
    return gr.update(choices=choices, value=left if several else next(iter(left), None))


def finished(mine: str, several: bool = True) -> Any:
    """The same when the tab is opened, as a run may have its LoRA by now; what is chosen is left alone."""
    return gr.update(choices=_choices(mine, several))


def _choices(mine: str, several: bool) -> list[tuple[str, str]]:
    choices = []
    for name in mine.split()[: train.MINE]:
        if (folder := caller.known(name)) and any(folder.loras.glob("*.safetensors")):
            run = read(folder)
            said = f"{run.name} on {run.model}, {run.began[5:16].replace('T', ' ')}"
            choices += [(said, name), *([(f"{said}: every kept step", f"{name}:all")] if several else [])]
    return choices
