"""The Train tab: pictures, a recipe, and a run that goes on without the browser."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from core.models import bases
from core.runtime import gpu
from core.schema.errors import UserError
from core.schema.events import Failed
from core.system.device import is_zerogpu
from core.system.markdown import escape_markdown
from core.train import runs
from core.train.trainer.run_folder import RunFolder
from core.train.trainer.settings import OPTIMIZERS, TARGETS, load_recipes, read_field_help, resolve_settings
from tabs.server import visitor
from tabs.server.call_wrapper import show_refusal
from tabs.shared import hub_fetch
from tabs.shared.checks import QUIET_OPTIONS, READ_OPTIONS, make_plan_validator
from tabs.shared.handoff import (
    MAX_REMEMBERED_RUNS,
    RECALL_RUNS_JS,
    REMEMBER_RUNS_JS,
    SweepHandoff,
    TrainHandoff,
)
from tabs.shared.model_choices import list_model_choices
from tabs.shared.run_choices import label_run
from tabs.shared.train_form import CONTROL_SETTINGS, parse_overrides, plan_from_controls
from tabs.shared.updates import answer_by_name, refresh_choices
from tabs.train import captions, jobs, pictures
from tabs.train.estimate import get_recipe_values, show_estimate
from tabs.train.progress import OUTPUT_NAMES, get_resume_label, open_in_sweep, show_run

QUEUED_OPTIONS: dict[str, Any] = {**QUIET_OPTIONS, "queue": True}
INPUT_NAMES = ("data", "trigger", "recipe", "model", "others_said", *CONTROL_SETTINGS)


def build_tab(page: gr.Blocks, sweep_handoff: SweepHandoff, tabs: gr.Tabs) -> TrainHandoff:
    """Lay out the tab and connect it; `sweep_handoff` takes a LoRA into the Sweep tab of `tabs`."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            c = pictures.build_panel() | captions.build_panel() | _build_recipe_controls()
        with gr.Column(scale=6, min_width=320):
            c |= _build_run_controls() | jobs.build_panel()
    asked = {name: c[name] for name in INPUT_NAMES}
    _wire_form(c, asked)
    _wire_runs(c, asked, page)
    c["sweep"].click(
        inputs=[c["run"], c["checkpoints"]],
        **answer_by_name(open_in_sweep, {"tabs": tabs, **sweep_handoff._asdict()}),
        **QUIET_OPTIONS,
    )
    return TrainHandoff(asked, c["mine"], c["publish"], c["run"])


def _wire_form(c: dict[str, Any], asked: dict[str, Any]) -> None:
    """Connect what asks for a run: pictures, captions, recipe and settings."""
    guessed: dict[str, Any] = {
        "fn": show_estimate,
        "inputs_kwargs": asked,
        "outputs": [c["estimate"], c["crops"]],
        "trigger_mode": "always_last",
        **READ_OPTIONS,
    }
    pictures.wire(c, guessed)
    captions.wire(c, guessed)
    hub_fetch.wire(c, hub_fetch.fetch_base_to_choice, c["model"])
    refresh_choices(c["model"].focus, c["model"], list_model_choices)
    gr.on(
        [c["recipe"].input, c["model"].change],
        inputs=[c["recipe"], c["model"]],
        **answer_by_name(get_recipe_values, {name: c[name] for name in ("help", *CONTROL_SETTINGS)}),
        **QUIET_OPTIONS,
    ).then(**guessed)
    gr.on([c[name].change for name in (*CONTROL_SETTINGS, "others_said")], **guessed)


def _wire_runs(c: dict[str, Any], asked: dict[str, Any], page: gr.Blocks) -> None:
    """Connect the buttons that start, continue, stop and branch a run, here and on Jobs."""
    shown = {name: c[name] for name in OUTPUT_NAMES}
    look: dict[str, Any] = {
        **answer_by_name(show_run, shown),
        "inputs": [c["run"], c["seen"]],
        **QUIET_OPTIONS,
    }
    lent: dict[str, Any] = {
        **answer_by_name(_train_slice, shown),
        "inputs": c["run"],
        "concurrency_id": "gpu",
        **QUEUED_OPTIONS,
        "trigger_mode": "multiple",  # as in GPU_OPTIONS
    }

    def follow_run(event: Callable[..., Any]) -> None:
        """Add what comes after a run has begun.

        At home, where its process trains it, that is a look at once, whatever else has the GPU.
        """
        (event(**lent).then if is_zerogpu() else event)(**look)

    job = _make_new_run_options(c, asked)
    remembered: dict[str, Any] = {"fn": None, "inputs": c["mine"], "js": REMEMBER_RUNS_JS, **QUIET_OPTIONS}
    known = {"my_runs": c["mine"], "run": c["run"]}
    begun = (
        c["train"]
        .click(**answer_by_name(_start_new_run, {**known, "status": c["status"]}), **job)
        .success(**remembered)
    )
    follow_run(begun.success)
    follow_run(c["resume"].click(_resume_run, c["run"], c["status"], **QUIET_OPTIONS).success)
    c["stop"].click(_stop_run, c["run"], c["status"], **QUIET_OPTIONS)
    c["timer"].tick(**look)
    forked = (
        c["fork"]
        .click(
            inputs=[c["run"], c["step"], c["branch_settings"], c["mine"]],
            **answer_by_name(_fork_run, {**known, "status": c["status"]}),
            **QUIET_OPTIONS,
        )
        .success(**remembered)
    )
    follow_run(forked.success)
    attached = page.load(_restore_runs, c["mine"], [c["mine"], c["run"]], js=RECALL_RUNS_JS, **QUIET_OPTIONS)
    set_up = c["send_new"].click(**answer_by_name(_set_up_run, known), **job).success(**remembered)
    # Not `run.change`: a look that began before a run was sent could then be answered after it, and
    # stay.
    jobs.wire(c, look, set_up.success, [c["run"].input, attached.then], asked)
    # The look at the run comes with what trains it: a slice that waits for its turn is no run that
    # was stopped.
    for new in (begun, forked):
        new.success(**jobs.make_refresh_event(c))


def _make_new_run_options(c: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Return what the events that create a run have in common."""
    return {
        "inputs_kwargs": {**asked, "my_runs": c["mine"]},
        "validator": make_plan_validator(
            (*INPUT_NAMES, "mine"), plan_from_controls, {"dataset": "trigger", "overrides": "recipe"}
        ),
        "concurrency_id": "train",
        **QUEUED_OPTIONS,
    }


def _build_recipe_controls() -> dict[str, Any]:
    """Build the recipe and its settings: components by name."""
    c: dict[str, Any] = {}
    name = next(iter(load_recipes()))
    made, help_, lines = (
        resolve_settings(name, bases.find_model("nano")),
        load_recipes()[name]["help"],
        read_field_help(),
    )
    with gr.Row():
        c["recipe"] = gr.Dropdown(
            [(table["title"], name) for name, table in load_recipes().items()],
            value=name,
            label="Recipe",
            min_width=180,
            elem_id="recipe",
        )
        c["model"] = gr.Dropdown(
            list_model_choices(),
            value="nano",
            label="Base model",
            min_width=180,
            elem_id="train-model",
        )
    c |= hub_fetch.build_base_box("train-hub")
    c["help"] = gr.Markdown(help_, elem_id="recipe-help")
    with gr.Row():
        for field in CONTROL_SETTINGS:
            value, told = (
                getattr(made, field),
                {
                    "label": field.replace("_", " ").capitalize(),
                    "info": lines[field].split(";")[0].rstrip("."),
                    "min_width": 130,
                    "elem_id": f"train-{field}",
                },
            )
            if choices := {"targets": TARGETS, "optimizer": OPTIMIZERS}.get(field):
                c[field] = gr.Dropdown(list(choices), value=value, **told)
            elif field == "seed":  # as text, since a page's own numbers are exact only below 2^53
                c[field] = gr.Textbox(str(value), max_lines=1, **told)
            else:
                c[field] = gr.Number(value, precision=0 if isinstance(value, int) else None, **told)
    with gr.Accordion("Advanced settings", open=False):
        c["others_said"] = gr.Textbox(
            "",
            label="Settings",
            info="one per line, e.g. min_snr = 5.0",
            lines=3,
            max_lines=20,
            elem_id="others",
        )
        rows = [
            f"| {name} | {escape_markdown(text)} |"
            for name, text in lines.items()
            if name not in CONTROL_SETTINGS and name != "help"
        ]
        gr.Markdown("\n".join(["| setting | description |", "|---|---|", *rows]))
    return c


def _build_run_controls() -> dict[str, Any]:
    """Build the controls of the run: components by name."""
    c: dict[str, Any] = {
        "mine": gr.Textbox("", visible=False),
        "seen": gr.State(None),
        "timer": gr.Timer(2, active=False),
    }
    with gr.Row():
        c["train"] = gr.Button("Train", variant="primary", scale=3, elem_id="train")
        c["stop"] = gr.Button("Stop", variant="stop", interactive=False, elem_id="train-stop")
        c["resume"] = gr.Button(get_resume_label(), interactive=False, elem_id="resume")
    c["estimate"] = gr.Markdown(elem_id="expected")
    c["status"] = gr.Markdown("Ready.", elem_id="train-status")
    c["losses"] = gr.Image(
        label="Loss", show_label=False, interactive=False, visible=False, format="png", elem_id="losses"
    )
    c["film"] = gr.Image(
        label="Previews", show_label=False, interactive=False, visible=False, format="png", elem_id="film"
    )
    with gr.Row():
        c["checkpoints"] = gr.Dropdown([], label="LoRA", visible=False, elem_id="checkpoints")
        c["sweep"] = gr.Button("Send to Sweep", elem_id="into-sweep")
        c["publish"] = gr.Button("Send to Publish", elem_id="into-publish")
    c["lora"] = gr.File(
        label="LoRAs", file_count="multiple", interactive=False, visible=False, elem_id="trained"
    )
    c["run"] = gr.Dropdown(
        [],
        label="Runs",
        info="training continues if you close the page",
        elem_id="runs",
        allow_custom_value=True,
    )
    with gr.Accordion("Branch from a checkpoint", open=False):
        with gr.Row():
            c["step"] = gr.Number(None, label="Step", precision=0, min_width=100)
            c["branch_settings"] = gr.Textbox(
                "", label="Settings", info="one per line, e.g. learning_rate = 5e-5", lines=2, min_width=160
            )
        c["fork"] = gr.Button("Branch", size="sm")
    return c


# --- starting, stopping ---------------------------------------------------------------------------


def _set_up_run(my_runs: str, **values: Any) -> dict[str, Any]:
    """Create a new run that nothing trains yet.

    Raises `gr.Error` if it cannot be planned or created.
    """
    try:
        run, _, found = plan_from_controls(values)
        folder = runs.create_run(run, found, account=visitor.get_account_id())
    except UserError as error:
        raise gr.Error(str(error)) from error
    return _remember_run(folder, my_runs)


def _start_new_run(my_runs: str, **values: Any) -> dict[str, Any]:
    answer = _set_up_run(my_runs, **values)
    _start_training(visitor.find_run(answer["run"]["value"]))
    return {**answer, "status": "Starting …"}


def _start_training(folder: RunFolder) -> None:
    if is_zerogpu():
        runs.check_unfinished(folder)
        folder.clear_stop()  # `_train_slice` does the rest
    else:
        runs.start_run(folder)


def _remember_run(folder: RunFolder, my_runs: str) -> dict[str, Any]:
    known = [folder.name, *my_runs.split()][:MAX_REMEMBERED_RUNS]
    return {"my_runs": "\n".join(known), "run": _update_run_choice(known, folder.name)}


def _update_run_choice(run_names: list[str], selected: str | None) -> Any:
    """Offer the runs that this browser knows and that still exist."""
    there = [(name, folder) for name in run_names if (folder := visitor.find_run_or_none(name))]
    return gr.update(
        choices=[(label_run(folder), name) for name, folder in there],
        value=selected,
    )


def _restore_runs(my_runs: str | None) -> tuple[str, Any]:
    """Show the last run on a page that is loaded again.

    A visitor who is logged in also sees the runs that were begun elsewhere.
    """
    begun = [*(my_runs or "").split()[:MAX_REMEMBERED_RUNS], *(folder.name for folder in visitor.list_runs())]
    there = [name for name in dict.fromkeys(begun) if visitor.find_run_or_none(name)][:MAX_REMEMBERED_RUNS]
    return "\n".join(there), _update_run_choice(there, there[0] if there else None)


def _train_slice(name: str | None) -> Iterator[dict[str, Any]]:
    """Train a slice of the run on ZeroGPU, inside the visitor's own event."""
    folder = visitor.find_run(name)
    if folder.is_stop_requested():  # while it waited for its turn
        return
    for event in gpu.train_slice(folder.path):
        yield show_run(name, None)
        if isinstance(event, Failed):
            raise gr.Error(event.message)


def _resume_run(name: str | None) -> str:
    try:
        _start_training(visitor.find_run(name))
        return "Resuming …"
    except UserError as error:
        raise gr.Error(str(error)) from error


def _stop_run(name: str | None) -> str:
    try:
        visitor.find_run(name).request_stop()
        return "Stopping after this step …"
    except UserError as error:
        return show_refusal(error)


def _fork_run(name: str | None, step: int | None, changed: str, my_runs: str) -> dict[str, Any]:
    try:
        folder, _ = runs.fork_run(
            visitor.find_run(name), int(step or 0), parse_overrides(changed), account=visitor.get_account_id()
        )
        _start_training(folder)
        return {**_remember_run(folder, my_runs), "status": "Starting …"}
    except UserError as error:
        raise gr.Error(str(error)) from error
