"""The named endpoint of a transfer study, and how LoRAs are named there and in the tab."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import gradio as gr

from core.runtime import gpu
from core.schema.bounds import Switch
from core.schema.errors import UserError
from core.schema.records import read_form, record
from core.transfer.export import export_transfer
from core.transfer.plan import (
    DEFAULT_SEEDS,
    DEFAULT_STRENGTHS,
    TransferEntry,
    TransferForm,
    list_run_loras,
    plan_transfer,
    split_by_block,
)
from core.transfer.study import TransferStudy
from tabs.api.inputs import build_input
from tabs.server import visitor
from tabs.server.page_files import create_folder, resolve_lora, resolve_uploads
from tabs.shared.checks import make_plan_validator, translate_errors
from tabs.shared.forms import takes


@record
class TransferTable:
    """A LoRA, or all LoRAs that a run has kept, as clients name them in a table."""

    lora: Any = None
    """An uploaded file, a name in the LoRA library, or a Hub id."""
    run: Any = None
    """A run's name, in place of `lora`."""
    home: str | None = None
    """The model that `lora` was trained on."""
    blocks: str | None = None
    """Block weights of `lora`."""
    apart: Annotated[bool, Switch()] = False
    """Whether each block is a LoRA of its own."""
    last: Annotated[bool, Switch()] = False
    """Whether only the last LoRA of `run` is meant."""

    def __post_init__(self) -> None:
        if (self.lora is None) == (self.run is None):
            raise UserError("lora", "give either a LoRA or a run.")
        source, others = ("lora", ("last",)) if self.run is None else ("run", ("home", "blocks"))
        if extra := next((name for name in others if getattr(self, name)), None):
            raise UserError(extra, f"it does not go with a {source}; leave it out.")
        if self.apart and self.blocks:
            raise UserError("apart", "it does not go with blocks; leave one of them out.")

    def find_loras(self) -> list[TransferEntry]:
        """Return the LoRAs. Raises `UserError` if there is no such file or run, or the run has none."""
        if self.run is None:
            rows = [TransferEntry(lora=resolve_lora(self.lora), home=self.home, blocks=self.blocks)]
        else:
            rows = list_run_loras(visitor.find_run(self.run))
            if not rows:
                raise UserError("run", f"{str(self.run)[:40]} has no saved LoRA yet.")
            rows = rows[-1:] if self.last else rows
        return [part for row in rows for part in split_by_block(row)] if self.apart else rows


def parse_transfer_loras(entries: Any) -> list[TransferEntry]:
    """Read LoRAs as clients name them: what `TransferTable.lora` takes, or tables of its fields.

    Raises `UserError` for anything else.
    """
    if not isinstance(entries, list):
        raise UserError(
            "loras", "use a list of uploaded files, names in the LoRA library, Hub ids or tables."
        )
    found: list[TransferEntry] = []
    for number, each in enumerate(entries, 1):
        # An uploaded file is a table, too.
        table = each if isinstance(each, dict) and "path" not in each else {"lora": each}
        try:
            found += read_form(
                TransferTable, {str(name)[:40]: value for name, value in table.items()}
            ).find_loras()
        except UserError as error:
            raise UserError("loras", f"entry {number}, {error}") from error
    return found


@takes(TransferForm)
def transfer(form: TransferForm) -> Iterator[tuple[Any, ...]]:
    """Measure LoRAs over base models.

    `loras` is a list of uploaded files, names in the LoRA library, Hub ids or tables such as
    {"lora": "name", "home": "nano"} or {"run": "..."}; `models` are names. `references` are images
    of the target style.

    Returns the contact sheet, a zip of every image with table and page, and the report: cells,
    per_pair, lineage.
    """
    with translate_errors():
        study = TransferStudy(plan_transfer(resolve_files(form)))
        for _ in study.run(gpu.generate_on_gpu):
            yield tuple(gr.skip() for _ in range(3))  # as in tabs/api/generate.py
        done = export_transfer(study, create_folder())
    yield str(done.sheet), str(done.archive), done.report


def resolve_files(form: TransferForm) -> TransferForm:
    """Return the form with paths for the LoRAs and the references that a client named.

    Raises `UserError` if one of them cannot be found.
    """
    references = () if form.references is None else resolve_uploads(form.references, "references")
    return replace(form, loras=parse_transfer_loras(form.loras), references=references)


def register_endpoints() -> None:
    """Wire the endpoint, on components that no page shows."""
    asked: dict[str, Any] = {
        "loras": build_input(gr.JSON),
        "models": build_input(gr.JSON),
        "strengths": build_input(gr.Textbox, DEFAULT_STRENGTHS),
        "prompts": build_input(gr.Textbox, ""),
        "seeds": build_input(gr.Textbox, DEFAULT_SEEDS),
        "references": build_input(gr.JSON),
        "clip_skip": build_input(gr.Number, 2),
    }
    gr.Button(visible=False).click(
        transfer,
        inputs_kwargs=asked,
        outputs=[
            gr.Image(visible=False, format="png", type="filepath"),
            gr.File(visible=False),
            gr.JSON(visible=False),
        ],
        validator=make_plan_validator(
            tuple(asked),
            lambda values: plan_transfer(resolve_files(read_form(TransferForm, values))),
            {"home": "loras", "lora": "loras", "run": "loras"},
        ),
        concurrency_id="gpu",
        concurrency_limit=1,
        api_name="transfer",
    )
