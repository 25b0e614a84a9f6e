"""The named endpoints for what else can be varied: one axis or two, and two LoRAs together."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import gradio as gr

from core.generate.features import VAE
from core.runtime import gpu
from core.schema.errors import UserError
from core.schema.events import Failed
from core.schema.records import read_form
from core.sweep.axes_report import build_axes_report, build_pair_report, export_axes
from core.sweep.axes_study import AxesForm, AxesPlan, AxesStudy, PairForm, plan_axes, plan_pair
from core.sweep.plan import DEFAULT_SEEDS
from tabs.api.inputs import build_input
from tabs.server.page_files import create_folder, resolve_lora, resolve_uploads
from tabs.shared.checks import make_plan_validator, translate_errors
from tabs.shared.forms import takes

Answer = Iterator[tuple[Any, ...]]
Form = TypeVar("Form", bound=PairForm)


@takes(AxesForm)
def sweep_axes(form: AxesForm) -> Answer:
    """Measure at which values of a setting everything holds and most is gained, or of two settings at once.

    `axis` is `cfg`, `steps`, `cfg_rescale`, `clip_skip`, `sampler`, `schedule`, `hires_denoise`, `strength`,
    `blocks` or `strength2`; the last three vary `lora` or `lora2`. `values` are numbers such as `2-10 (+1)`,
    or names such as `Euler a, DPM++ 2M Karras`. With `axis2`, every pair of values is made. All are measured
    against the preset's value, or no LoRA. The other parameters are those of `/sweep`; `strength` is that of
    a LoRA that is not varied.

    Returns the chart or the map, the contact sheet, the points as rows, a zip of all cells with the report,
    and the report: answer, plateau, recommended, each point's gain with its interval, and why.
    """
    yield from _run_study(lambda: plan_axes(resolve_pair_files(form)), build_axes_report)


@takes(PairForm)
def compare_loras(form: PairForm) -> Answer:
    """Tell whether two LoRAs get along at their strengths: those given, known to work, or 1.

    Four images for each prompt and seed are made: without a LoRA, with each, with both. Returns the chart,
    the contact sheet, the four points as rows, a zip of all cells with the report, and the report: answer
    (get along, fight, unclear), why, and `interaction`: what both do beyond the sum of what each does, and
    what each keeps, with intervals.
    """
    yield from _run_study(lambda: plan_pair(resolve_pair_files(form)), build_pair_report)


def _run_study(plan: Callable[[], AxesPlan], build_report: Callable[[AxesStudy], dict[str, Any]]) -> Answer:
    with translate_errors():
        study = AxesStudy(plan())
        for event in study.run(gpu.generate_on_gpu):
            if isinstance(event, Failed):
                raise UserError(None, event.message)
            yield tuple(gr.skip() for _ in range(5))
        done = export_axes(study, create_folder(), build_report(study))
    yield str(done.chart), str(done.sheet), done.report["points"], str(done.archive), done.report


def resolve_pair_files(form: Form) -> Form:
    """Return the form with paths for the LoRAs and the references that a client named.

    Raises `UserError` if one of them cannot be found.
    """
    found: dict[str, Any] = {}
    for name in ("lora", "lora2"):
        try:
            given = getattr(form, name)
            found[name] = None if given is None else resolve_lora(given)
        except UserError as error:
            raise UserError(name, error.sentence) from error
    references = form.references
    return replace(
        form, **found, references=None if references is None else resolve_uploads(references, "references")
    )


def register_endpoints() -> None:
    """Wire the endpoints, on components that no page shows."""
    pair: dict[str, Any] = {
        "lora": build_input(gr.JSON),
        "lora2": build_input(gr.JSON),
        "strength": build_input(gr.Number),
        "strength2": build_input(gr.Number),
        "preset": build_input(gr.Textbox),
        "model": build_input(gr.Textbox),
        "prompts": build_input(gr.Textbox),
        "budget": build_input(gr.Textbox),
        "seeds": build_input(gr.Textbox, DEFAULT_SEEDS),
        "references": build_input(gr.JSON),
        "feature_extractor": build_input(gr.Textbox, VAE),
    }
    varied: dict[str, Any] = {
        "axis": build_input(gr.Textbox),
        "values": build_input(gr.Textbox),
        "axis2": build_input(gr.Textbox),
        "values2": build_input(gr.Textbox),
    }
    _register(sweep_axes, AxesForm, plan_axes, varied | pair)
    _register(compare_loras, PairForm, plan_pair, pair)


def _register(
    handler: Callable[..., Any], kind: type[Any], plan: Callable[[Any], AxesPlan], inputs: dict[str, Any]
) -> None:
    picture = {"visible": False, "format": "png", "type": "filepath"}
    gr.Button(visible=False).click(
        handler,
        inputs_kwargs=inputs,
        outputs=[
            gr.Image(**picture),
            gr.Image(**picture),
            gr.JSON(visible=False),
            gr.File(visible=False),
            gr.JSON(visible=False),
        ],
        validator=make_plan_validator(
            tuple(inputs), lambda values: plan(resolve_pair_files(read_form(kind, values))), {}
        ),
        concurrency_id="gpu",
        concurrency_limit=1,
        api_name=handler.__name__,
    )
