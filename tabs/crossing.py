"""The named endpoint of a transfer study, and how LoRAs are named there and in the tab."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from core.transfer.outcome import outcome
from core.transfer.plan import SEEDS, STRENGTHS, apart, of_run, plan
from core.transfer.study import Study
from core.types import UserError
from tabs import caller
from tabs.files import chosen, new_folder, uploaded
from tabs.widgets import refusals, sentences


def tables(said: Any) -> list[dict[str, Any]]:
    """LoRAs as clients name them, as `core.transfer.plan` takes them. Raises `UserError`.

    Each is an uploaded file, a name of the shelf, a Hub id, or a table with `lora`, one of these, and `home`, `blocks` or
    `apart` (a row for each block); `{"run": "..."}` stands for all that a run has kept, with `last` for its last only.
    """
    if not isinstance(said, list):
        raise UserError("loras: it takes a list of uploaded files, names of the shelf, Hub ids or tables.")
    found: list[dict[str, Any]] = []
    for one in said:
        told = one if isinstance(one, dict) and ("lora" in one or "run" in one) else {"lora": one}
        if unknown := sorted(set(told) - {"lora", "run", "home", "blocks", "apart", "last"}):
            raise UserError(f"loras: {unknown[0][:40]!r} is not a setting; the settings are lora, run, home, blocks, apart and last.")
        if "run" in told:
            made = of_run(caller.found(told["run"]))
            if not made:
                raise UserError(f"loras: the run {str(told['run'])[:40]} has kept no LoRA yet.")
            rows = made[-1:] if told.get("last") else made
        else:
            rows = [{"lora": chosen(told["lora"]), **{name: told[name] for name in ("home", "blocks") if told.get(name)}}]
        found += [each for row in rows for each in apart(row)] if told.get("apart") else rows
    return found


def transfer(
    loras: list,
    models: list | str,
    strengths: str = STRENGTHS,
    prompts: str | None = None,
    seeds: str = SEEDS,
    references: list | None = None,
    clip_skip: int = 2,
) -> Iterator[tuple[Any, ...]]:
    """Measure LoRAs over base models. `loras` is a list of uploaded files, names of the shelf, Hub ids or tables such as
    {"lora": "name", "home": "nano"} or {"run": "..."}; `models` are names. `references` are pictures of the wanted style.

    Returns the contact sheet, a zip of every picture with table and page, and the report: cells, per_pair, lineage.
    """
    values = {name: value for name, value in locals().items() if value is not None}
    with sentences():
        study = Study(plan(_said(**values)))
        for _ in study.run():
            yield tuple(gr.skip() for _ in range(3))  # as in tabs/api.py
        done = outcome(study, new_folder())
    yield str(done.sheet), str(done.archive), done.report


def _said(loras: Any, references: list | None = None, **said: Any) -> dict[str, Any]:
    if not isinstance(references, list | None):
        raise UserError("references: it takes a list of uploaded pictures.")
    return {**said, "loras": tables(loras), "references": [uploaded(each, "references") for each in references or []]}


def endpoints() -> None:
    """Wire the endpoint, on components that no page shows."""
    text, data = (lambda value="": gr.Textbox(value, visible=False)), (lambda: gr.JSON(visible=False))
    asked: dict[str, Any] = {"loras": data(), "models": data(), "strengths": text(STRENGTHS), "prompts": text(), "seeds": text(SEEDS)}
    asked |= {"references": data(), "clip_skip": gr.Number(2, precision=0, visible=False)}
    gr.Button(visible=False).click(
        transfer,
        inputs_kwargs=asked,
        outputs=[gr.Image(visible=False, format="png", type="filepath"), gr.File(visible=False), data()],
        validator=refusals(tuple(asked), lambda values: plan(_said(**values)), {"home": "loras", "lora": "loras", "run": "loras"}),
        concurrency_id="gpu",
        concurrency_limit=1,
        api_name="transfer",
    )
