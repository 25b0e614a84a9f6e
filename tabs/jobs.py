"""'Send to a Job' in the Train tab: hardware and its price first, then a run on it, watched, stopped and brought back in the same tab."""

import os
from collections.abc import Callable
from typing import Any

import gradio as gr

from core.markdown import plain, warned
from core.train import jobs
from core.train.offers import Hardware, Offer, hardware, offer
from core.types import UserError
from tabs import caller
from tabs.widgets import on_space, sign_in, signed_in, token

SHOWN = ("job", "log", "end", "job_timer")
SECONDS = 15  # between two looks at a Job; its log alone takes five
STAGES = {"SCHEDULING": "waits for its hardware", "RUNNING": "trains", "COMPLETED": "is done", "CANCELED": "was stopped", "ERROR": "ended with an error"}
TOLD = """A training that is too long for this machine can go on hardware of Hugging Face, **paid by the minute from your account**. Its pictures
and what it makes lie in a private bucket of yours, `sweetspot-runs`; the Job is given no token. When it has ended, the run is here again."""


def panel() -> dict[str, Any]:
    """Lay it out: components by name."""
    c: dict[str, Any] = {"there": gr.State([]), "offer": gr.State(None), "job_timer": gr.Timer(SECONDS, active=False)}
    with gr.Accordion("Send to a Job", open=False, elem_id="job"):
        gr.Markdown(TOLD)
        c["login"] = sign_in("job-login")
        c["space"] = gr.Textbox(
            os.environ.get("SPACE_ID", ""), label="Space whose image trains", placeholder="owner/name", visible=not on_space(), elem_id="job-space"
        )
        c["list"] = gr.Button("Show hardware and prices", size="sm", elem_id="job-list")
        with gr.Row():
            c["hardware"] = gr.Dropdown([], value=None, label="Hardware", min_width=180, elem_id="job-hardware")
            c["minutes"] = gr.Number(None, label="Minutes", info="that the training takes there, about", minimum=0, min_width=120, elem_id="job-minutes")
        c["price"] = gr.Markdown("Nothing is sent before its price stands here.", elem_id="job-price")
        with gr.Row():
            c["send_new"] = gr.Button("Send what is set above", interactive=False, elem_id="job-send-new")
            c["send"] = gr.Button("Send the chosen run", interactive=False, elem_id="job-send")
            c["end"] = gr.Button("Stop the Job", variant="stop", interactive=False, elem_id="job-stop")
        with gr.Row(visible=False) as c["asked"]:
            gr.Markdown("Stop it? What it saved last stays, and can be gone on with.")
            c["yes"] = gr.Button("Stop it", variant="stop", size="sm", elem_id="job-stop-yes")
            c["no"] = gr.Button("Let it train", size="sm")
        c["job"] = gr.Markdown("", elem_id="job-status")
        c["log"] = gr.Textbox("", label="Its last lines", lines=4, interactive=False, visible=False, elem_id="job-log")
    return c


def wire(
    c: dict[str, Any],
    quiet: dict[str, Any],
    look: dict[str, Any],
    set_up: Callable[..., Any],
    another: list[Callable[..., Any]],
    seconds: Callable[[dict[str, Any]], float | None],
    asked: dict[str, Any],
) -> None:
    """Connect it. By the event `set_up` a new run is there to be sent, by those of `another` one is to be seen; `look` shows it.

    `seconds` is what the run that is `asked` for would take here.
    """

    def listed(visitor: gr.OAuthToken | None, login: bool, minutes: float | None, **values: Any) -> tuple[Any, ...]:
        try:
            there = hardware(_own(login, visitor))
        except UserError as error:
            return [], gr.update(choices=[], value=None), minutes, warned(str(error))
        taken = seconds(values) if minutes is None else None
        return there, gr.update(choices=[(each.line(), each.name) for each in there]), minutes or (taken and max(1, round(taken / 60))), "Choose one."

    own = {"login": c["login"], "run": c["run"]}
    priced = {"fn": _priced, "inputs": [c["there"], c["hardware"], c["minutes"]], "outputs": [c["price"], c["offer"], c["send_new"], c["send"]], **quiet}
    shown = [c[name] for name in SHOWN]
    c["list"].click(
        listed,
        inputs_kwargs={"login": c["login"], "minutes": c["minutes"], **asked},
        outputs=[c["there"], c["hardware"], c["minutes"], c["price"]],
        **quiet,
    )
    gr.on([c["hardware"].change, c["minutes"].change], **priced)
    send: dict[str, Any] = {"fn": _sent, "inputs_kwargs": {**own, "space": c["space"], "chosen": c["offer"]}, "outputs": shown, **quiet, "queue": True}
    for event in (set_up, c["send"].click):
        event(**send).then(**look)
    for event in (*another, c["job_timer"].tick, c["login"].input):
        event(**looked(c, quiet)).then(**look)
    c["end"].click(lambda: gr.update(visible=True), None, c["asked"], **quiet)
    gr.on([c["yes"].click, c["no"].click], lambda: gr.update(visible=False), None, c["asked"], **quiet)
    c["yes"].click(_ended, inputs_kwargs=own, outputs=shown, **quiet).then(**look)


def looked(c: dict[str, Any], quiet: dict[str, Any]) -> dict[str, Any]:
    """An event by which the panel shows the Job of the run that is chosen."""
    return {"fn": _looked, "inputs_kwargs": {"login": c["login"], "run": c["run"]}, "outputs": [c[name] for name in SHOWN], **quiet}


def _own(login: bool, visitor: gr.OAuthToken | None) -> str:
    """The token by which Jobs are asked for. Raises `UserError`."""
    if on_space() and "jobs" not in os.environ.get("OAUTH_SCOPES", "").split():
        raise UserError("login: this Space does not ask its visitors for the scope jobs; its README says how a Space of your own does.")
    return signed_in(login, visitor)


def _priced(there: list[Hardware], name: str | None, minutes: float | None) -> tuple[Any, ...]:
    if not there or name is None:
        return gr.skip(), None, *[gr.update(interactive=False)] * 2
    try:
        found = offer(there, name, minutes)
    except UserError as error:
        return warned(str(error)), None, *[gr.update(interactive=False)] * 2
    said = f"**{plain(found.line())}**. What it takes is guessed from this machine; what a timeout cuts off goes on from its last state."
    return said, found, *[gr.update(interactive=True)] * 2


def _sent(visitor: gr.OAuthToken | None, login: bool, run: str | None, space: str, chosen: Offer | None) -> tuple[Any, ...]:
    try:
        if chosen is None:
            raise UserError("hardware: choose one first; nothing is sent before its price is shown.")
        jobs.sent(caller.found(run), chosen, os.environ.get("SPACE_ID") or (space or "").strip(), _own(login, visitor))
    except UserError as error:
        return warned(str(error)), *(gr.skip() for _ in range(3))
    return _shown(run, [], True)


def _looked(visitor: gr.OAuthToken | None, login: bool, run: str | None) -> tuple[Any, ...]:
    """How the run's Job stands; asked of the Hub only while there is one."""
    folder = caller.known(run)
    if folder is None or not folder.is_away():
        return _shown(run, [], False)
    own = token(login, visitor)
    if own is None:
        return "A Job trains this run: log in to see how it stands.", *(gr.skip() for _ in range(2)), gr.Timer(active=False)
    try:
        job = jobs.looked(folder, own)
        return _shown(run, jobs.log(job, own) if job and job.stage != "SCHEDULING" else [], True)
    except UserError as error:
        return warned(str(error)), *(gr.skip() for _ in range(3))


def _ended(visitor: gr.OAuthToken | None, login: bool, run: str | None) -> tuple[Any, ...]:
    try:
        jobs.stopped(caller.found(run), _own(login, visitor))
    except UserError as error:
        return warned(str(error)), *(gr.skip() for _ in range(3))
    return _shown(run, [], True)


def _shown(run: str | None, lines: list[str], keep: bool) -> tuple[Any, ...]:
    """The Job of a run as it was last seen; without new `lines` those there stay where `keep` says so."""
    folder = caller.known(run)
    job = jobs.of(folder) if folder else None
    if folder is None or job is None:
        return "", gr.update(value="", visible=False), gr.update(interactive=False), gr.Timer(active=False)
    why = f": {plain(job.message)}" if job.message else ""
    log = gr.update(value="\n".join(lines), visible=True) if lines else gr.skip() if keep else gr.update(value="", visible=False)
    stage = STAGES.get(job.stage, "is gone")
    return f"Job `{job.id}` on {plain(job.flavor)} {stage}{why}", log, gr.update(interactive=folder.is_away()), gr.Timer(active=folder.is_away())
