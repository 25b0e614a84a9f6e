"""The named endpoint that sweeps a LoRA over strengths."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from core.runtime import gpu
from core.schema.errors import UserError
from core.schema.events import Failed
from core.schema.records import read_form
from core.sweep.plan import DEFAULT_SEEDS, SweepForm, plan_sweep
from core.sweep.report import export_sweep
from core.sweep.study import SweepStudy
from tabs.api.inputs import build_input
from tabs.server.page_files import create_folder, resolve_lora, resolve_uploads
from tabs.shared.checks import make_plan_validator, translate_errors
from tabs.shared.forms import takes
from tabs.shared.references import find_references


@takes(SweepForm)
def sweep(form: SweepForm) -> Iterator[tuple[Any, ...]]:
    """Measure at which strengths a LoRA works.

    `strengths` are a list such as `0-3.5 (+0.25)`; without one, they are found by how much single calls
    of the model change: above 0, or below 0 with `-auto`. `prompts` are one per line; without any,
    `budget` says how many neutral prompts there are at most: `Quick` 4, `Standard` 8, `Full` 16. A sweep
    with a budget ends where its verdict stands. `references` are images of the target style; without a
    list, they are those in the folder beside a LoRA of the library, of the caller's run that trained it, or
    of its card on the Hub. `model` is a name in the list of models, a checkpoint of one's own, or a name on
    the Hub; without it, the preset's is taken. Without a preset, it is the one that fits the model, or
    nano's.

    Returns the contact sheet, the curve as rows, a zip of all cells with the report, and the report:
    answer, onset, sweet_spot, breakdown and recommended, each null where it was not seen, and why. For a
    LoRA that shows at no strength, why says so, and no picture is made.
    """
    with translate_errors():
        asked = plan_sweep(resolve_files(form))
        if form.references is None:  # found, or fetched, only for what is not refused
            found, _ = find_references(asked.lora.path)
            asked = replace(asked, references=tuple(map(str, found)))
        study = SweepStudy(asked)
        for event in study.run(gpu.generate_on_gpu):
            if isinstance(event, Failed):
                raise UserError(None, event.message)
            yield tuple(gr.skip() for _ in range(4))
        done = export_sweep(study, create_folder())
    yield str(done.sheet), done.report["curve"], str(done.archive), done.report


def resolve_files(form: SweepForm) -> SweepForm:
    """Return the form with paths for the LoRA and the references that a client named.

    Raises `UserError` if one of them cannot be found.
    """
    references = () if form.references is None else resolve_uploads(form.references, "references")
    return replace(form, lora=None if form.lora is None else resolve_lora(form.lora), references=references)


def register_endpoints() -> None:
    """Wire the endpoint, on components that no page shows."""
    call, report = gr.Button(visible=False), gr.JSON(visible=False)
    measured: dict[str, Any] = {
        "lora": build_input(gr.JSON),
        "preset": build_input(gr.Textbox),
        "prompts": build_input(gr.Textbox),
        "seeds": build_input(gr.Textbox, DEFAULT_SEEDS),
        "strengths": build_input(gr.Textbox),
        "references": build_input(gr.JSON),
        "refine": build_input(gr.Checkbox, False),
        "model": build_input(gr.Textbox),
        "budget": build_input(gr.Textbox),
    }
    call.click(
        sweep,
        inputs_kwargs=measured,
        outputs=[
            gr.Image(visible=False, format="png", type="filepath"),
            gr.JSON(visible=False),
            gr.File(visible=False),
            report,
        ],
        validator=make_plan_validator(
            tuple(measured), lambda values: plan_sweep(resolve_files(read_form(SweepForm, values))), {}
        ),
        concurrency_id="gpu",
        concurrency_limit=1,
        api_name="sweep",
    )
