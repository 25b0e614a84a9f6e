"""The Train tab: pictures, a recipe, and a run that belongs to nobody's browser."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from core import gpu, models, presets
from core.device import on_zero_gpu
from core.events import Failed
from core.markdown import plain, warned
from core.train import runs
from core.train.folder import Folder
from core.train.run import read
from core.train.settings import OPTIMIZERS, TARGETS, explained, recipes, settings
from core.types import UserError
from tabs import brought, caller, captions, jobs, pictures
from tabs.expected import CHOSEN, expected, filled, lines, seconds, settled
from tabs.sweep import Swept
from tabs.watching import SHOWN, into_sweep, resume, watched
from tabs.widgets import LOOKS, refusals

ASKED = ("data", "trigger", "recipe", "model", "others_said", *CHOSEN)
MINE = 50  # runs that a browser remembers
REMEMBER, RECALL = "(runs) => { localStorage.setItem('sweetspot-runs', runs) }", "() => [localStorage.getItem('sweetspot-runs') ?? '']"
"""In the page's own storage, which outlives the app; gr.BrowserState's does not."""


class Trained(NamedTuple):
    """The components by which another tab trains what this one is filled with."""

    asked: dict[str, Any]
    """By `ASKED`, what `settled` takes."""
    mine: Any
    """The runs that this browser knows, and those of the account, a line each."""
    publish: Any
    """The button that takes `run` into the Publish tab."""
    run: Any


def tab(page: gr.Blocks, swept: Swept, tabs: gr.Tabs) -> Trained:
    """Lay out the tab and wire it; `swept` takes a LoRA into the Sweep tab of `tabs`."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            c = pictures.panel() | captions.panel() | _recipe()
        with gr.Column(scale=6, min_width=320):
            c |= _run() | jobs.panel()
    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    queued = {**quiet, "queue": True}
    asked = {name: c[name] for name in ASKED}
    guessed: dict[str, Any] = {"fn": expected, "inputs_kwargs": asked, "outputs": [c["expected"], c["crops"]], "trigger_mode": "always_last", **LOOKS}
    pictures.wire(c, guessed)
    captions.wire(c, quiet, guessed)
    brought.wire(c, brought.into_choice, c["model"])
    gr.on([c["recipe"].input, c["model"].change], filled, [c["recipe"], c["model"]], [c["help"], *(c[name] for name in CHOSEN)], **quiet).then(**guessed)
    gr.on([c[name].change for name in (*CHOSEN, "others_said")], **guessed)
    shown = [c[name] for name in SHOWN]
    job = {"validator": refusals((*ASKED, "mine"), settled, {"dataset": "trigger", "overrides": "recipe"}), "concurrency_id": "train", **queued}
    started = c["train"].click(_started, inputs_kwargs={**asked, "mine": c["mine"]}, outputs=[c["mine"], c["run"], c["status"]], **job)
    look: dict[str, Any] = {"fn": watched, "inputs": [c["run"], c["seen"]], "outputs": shown, **quiet}
    many = {"trigger_mode": "multiple"}  # as in tabs/sweep.py
    lent: dict[str, Any] = {"fn": _lent, "inputs": c["run"], "outputs": shown, "concurrency_id": "gpu", **queued, **many}

    def followed(event: Callable[..., Any]) -> None:
        """What comes after a run has begun: at home, where its process trains it, a look at once, whatever else has the GPU."""
        (event(**lent).then if on_zero_gpu() else event)(**look)

    remembered: dict[str, Any] = {"fn": None, "inputs": c["mine"], "js": REMEMBER, **quiet}
    begun = started.success(**remembered)
    followed(begun.success)
    followed(c["resume"].click(_resumed, c["run"], c["status"], **quiet).success)
    c["stop"].click(_stopped, c["run"], c["status"], **quiet)
    c["timer"].tick(**look)
    forked = c["fork"].click(_forked, [c["run"], c["step"], c["changed"], c["mine"]], [c["mine"], c["run"], c["status"]], **quiet).success(**remembered)
    followed(forked.success)
    attached = page.load(_attached, c["mine"], [c["mine"], c["run"]], js=RECALL, **quiet)
    set_up = c["send_new"].click(_set_up, inputs_kwargs={**asked, "mine": c["mine"]}, outputs=[c["mine"], c["run"]], **job).success(**remembered)
    # Not `run.change`: a look that began before a run was sent could then be answered after it, and stay.
    jobs.wire(c, quiet, look, set_up.success, [c["run"].input, attached.then], seconds, asked)
    for new in (begun, forked):  # its own look comes with what trains it: a slice that waits for its turn is no run that was stopped
        new.success(**jobs.looked(c, quiet))
    c["sweep"].click(into_sweep, [c["run"], c["checkpoints"]], [tabs, *swept], **quiet)
    return Trained(asked, c["mine"], c["publish"], c["run"])


def _recipe() -> dict[str, Any]:
    """Recipe and settings: components by name."""
    c: dict[str, Any] = {}
    name = next(iter(recipes()))
    made, help_, lines = settings(name, models.find("nano")), recipes()[name]["help"], explained()
    with gr.Row():
        c["recipe"] = gr.Dropdown([(table["title"], name) for name, table in recipes().items()], value=name, label="Recipe", min_width=180, elem_id="recipe")
        c["model"] = gr.Dropdown(
            [(model.title, model.name) for model in presets.models().values()], value="nano", label="Base model", min_width=180, elem_id="train-model"
        )
    c |= brought.base_box("train-hub")
    c["help"] = gr.Markdown(help_, elem_id="recipe-help")
    with gr.Row():
        for field in CHOSEN:
            value, told = (
                getattr(made, field),
                {"label": field.replace("_", " "), "info": lines[field].partition(";")[0].rstrip("."), "min_width": 130, "elem_id": f"train-{field}"},
            )
            choices = {"targets": TARGETS, "optimizer": OPTIMIZERS}.get(field)
            c[field] = gr.Dropdown(list(choices), value=value, **told) if choices else gr.Number(value, precision=0 if isinstance(value, int) else None, **told)
    with gr.Accordion("Every other setting", open=False):
        c["others_said"] = gr.Textbox("", label="Settings", info="one a line, such as: min_snr = 5.0", lines=3, max_lines=20, elem_id="others")
        rows = [f"| {name} | {plain(text)} |" for name, text in lines.items() if name not in CHOSEN and name != "help"]
        gr.Markdown("\n".join(["| setting | what it is |", "|---|---|", *rows]))
    return c


def _run() -> dict[str, Any]:
    """The run: components by name."""
    c: dict[str, Any] = {"mine": gr.Textbox("", visible=False), "seen": gr.State(None), "timer": gr.Timer(2, active=False)}
    with gr.Row():
        c["train"] = gr.Button("Train", variant="primary", scale=3, elem_id="train")
        c["stop"] = gr.Button("Stop", variant="stop", interactive=False, elem_id="train-stop")
        c["resume"] = gr.Button(resume(), interactive=False, elem_id="resume")
    c["expected"] = gr.Markdown(elem_id="expected")
    c["status"] = gr.Markdown("Ready.", elem_id="train-status")
    c["losses"] = gr.Image(label="Loss", show_label=False, interactive=False, visible=False, format="png", elem_id="losses")
    c["film"] = gr.Image(label="Previews", show_label=False, interactive=False, visible=False, format="png", elem_id="film")
    with gr.Row():
        c["checkpoints"] = gr.Dropdown([], label="LoRA", visible=False, elem_id="checkpoints")
        c["sweep"] = gr.Button("Open in Sweep", elem_id="into-sweep")
        c["publish"] = gr.Button("Publish", elem_id="into-publish")
    c["lora"] = gr.File(label="The LoRAs", file_count="multiple", interactive=False, visible=False, elem_id="trained")
    c["run"] = gr.Dropdown([], label="Run", info="runs go on without the page; choose one to see it again", elem_id="runs", allow_custom_value=True)
    with gr.Accordion("Go on from a kept step with other settings", open=False):
        with gr.Row():
            c["step"] = gr.Number(None, label="Step", precision=0, min_width=100)
            c["changed"] = gr.Textbox("", label="Settings", info="one a line, such as: rate = 5e-5", lines=2, min_width=160)
        c["fork"] = gr.Button("Fork", size="sm")
    return c


# --- starting, stopping ------------------------------------------------------------------------------


def _set_up(mine: str, **values: Any) -> tuple[str, Any]:
    """A new run that nobody trains yet."""
    try:
        run, _, found = settled(values)
        folder = runs.prepared(run, found, account=caller.account())
    except UserError as error:
        raise gr.Error(str(error)) from error
    return _known(folder, mine)


def _started(mine: str, **values: Any) -> tuple[str, Any, str]:
    known, choice = _set_up(mine, **values)
    _go(caller.found(choice["value"]))
    return known, choice, "Starting …"


def _go(folder: Folder) -> None:
    if on_zero_gpu():
        runs.check_unfinished(folder)
        folder.go_on()  # `_lent` does the rest
    else:
        runs.start(folder)


def _known(folder: Folder, mine: str) -> tuple[str, Any]:
    known = [folder.name, *mine.split()][:MINE]
    return "\n".join(known), _choice(known, folder.name)


def _choice(mine: list[str], chosen: str | None) -> Any:
    """The runs that this browser knows and that are still there."""
    there = [(name, folder) for name in mine if (folder := caller.known(name))]
    return gr.update(choices=[(f"{(run := read(folder)).name}, {run.began[:16].replace('T', ' ')}", name) for name, folder in there], value=chosen)


def _attached(mine: str | None) -> tuple[str, Any]:
    """A page that is loaded again sees its last run; who is logged in, also those that were begun elsewhere."""
    begun = [*(mine or "").split()[:MINE], *(folder.name for folder in caller.own())]
    there = [name for name in dict.fromkeys(begun) if caller.known(name)][:MINE]
    return "\n".join(there), _choice(there, there[0] if there else None)


def _lent(name: str | None) -> Iterator[tuple[Any, ...]]:
    """On ZeroGPU a slice of the run, inside the visitor's own event."""
    folder = caller.found(name)
    if folder.asked_to_stop():  # while it waited for its turn
        return
    for event in gpu.lesson(folder.path):
        yield watched(name, None)
        if isinstance(event, Failed):
            raise gr.Error(event.message)


def _resumed(name: str | None) -> str:
    try:
        _go(caller.found(name))
        return "Going on …"
    except UserError as error:
        raise gr.Error(str(error)) from error


def _stopped(name: str | None) -> str:
    try:
        caller.found(name).ask_to_stop()
        return "Stopping after this step …"
    except UserError as error:
        return warned(str(error))


def _forked(name: str | None, step: int | None, changed: str, mine: str) -> tuple[str, Any, str]:
    try:
        folder, _ = runs.forked(caller.found(name), int(step or 0), lines(changed), account=caller.account())
        _go(folder)
        return *_known(folder, mine), "Starting …"
    except UserError as error:
        raise gr.Error(str(error)) from error
