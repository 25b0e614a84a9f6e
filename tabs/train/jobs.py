"""The panel 'Train on Hugging Face Jobs' of the Train tab.

Hardware and its price come first; then a run on it is watched, stopped and brought back in the same
tab.
"""

import os
from collections.abc import Callable
from typing import Any

import gradio as gr

from core.schema.errors import UserError
from core.system.device import is_space
from core.system.markdown import escape_markdown
from core.train import jobs
from core.train.jobs import Hardware, Offer, list_hardware, make_offer
from tabs.server import visitor as caller
from tabs.server.call_wrapper import show_refusal
from tabs.shared.checks import QUIET_OPTIONS, build_login_box, get_login_token, require_login_token
from tabs.shared.updates import answer_by_name
from tabs.train.estimate import estimate_seconds

OUTPUT_NAMES = ("job", "log", "end", "job_timer")
POLL_SECONDS = 15  # between two looks at a Job; its log alone takes five
JOB_STAGE_LABELS = {
    "SCHEDULING": "is waiting for hardware",
    "RUNNING": "is training",
    "COMPLETED": "is done",
    "CANCELED": "was stopped",
    "ERROR": "ended with an error",
}
JOB_INTRO = (
    "A training that is too long for this machine can run on Hugging Face hardware, "
    "**billed to your account by the minute**. Its images\n"
    "and results are stored in your private bucket `sweetspot-runs`; the Job gets no token. "
    "When it has ended, the run comes back here."
)


def build_panel() -> dict[str, Any]:
    """Build the panel: components by name; `wire` connects them."""
    c: dict[str, Any] = {
        "there": gr.State([]),
        "offer": gr.State(None),
        "job_timer": gr.Timer(POLL_SECONDS, active=False),
    }
    with gr.Accordion("Train on Hugging Face Jobs", open=False, elem_id="job"):
        gr.Markdown(JOB_INTRO)
        c["login"] = build_login_box("job-login")
        c["space"] = gr.Textbox(
            os.environ.get("SPACE_ID", ""),
            label="Space to run",
            placeholder="owner/name",
            visible=not is_space(),
            elem_id="job-space",
        )
        c["list"] = gr.Button("Show hardware and prices", size="sm", elem_id="job-list")
        with gr.Row():
            c["hardware"] = gr.Dropdown(
                [], value=None, label="Hardware", min_width=180, elem_id="job-hardware"
            )
            c["minutes"] = gr.Number(
                None,
                label="Minutes",
                info="that the training is expected to take there",
                minimum=0,
                min_width=120,
                elem_id="job-minutes",
            )
        c["price"] = gr.Markdown("You will see the price before anything is sent.", elem_id="job-price")
        with gr.Row():
            c["send_new"] = gr.Button("Start a new run there", interactive=False, elem_id="job-send-new")
            c["send"] = gr.Button("Continue this run there", interactive=False, elem_id="job-send")
            c["end"] = gr.Button("Stop the Job", variant="stop", interactive=False, elem_id="job-stop")
        with gr.Row(visible=False) as c["stop_question"]:
            gr.Markdown("Stop it? Its last saved state is kept and can be resumed.")
            c["confirm_stop"] = gr.Button("Stop it", variant="stop", size="sm", elem_id="job-stop-yes")
            c["keep_training"] = gr.Button("Keep training", size="sm")
        c["job"] = gr.Markdown("", elem_id="job-status")
        c["log"] = gr.Textbox(
            "", label="Last lines of its log", lines=4, interactive=False, visible=False, elem_id="job-log"
        )
    return c


def wire(
    c: dict[str, Any],
    refresh: dict[str, Any],
    on_set_up: Callable[..., Any],
    on_other_runs: list[Callable[..., Any]],
    inputs: dict[str, Any],
) -> None:
    """Connect the panel.

    After the event `on_set_up` a new run is there to be sent, after those of `on_other_runs`
    another run is to be seen; `refresh` shows it. `inputs` are the controls that ask for a run.
    """
    own = {"login": c["login"], "run": c["run"]}
    shown = {name: c[name] for name in OUTPUT_NAMES}
    c["list"].click(
        inputs_kwargs={"login": c["login"], "minutes": c["minutes"], **inputs},
        **answer_by_name(
            _show_hardware, {name: c[name] for name in ("there", "hardware", "minutes", "price")}
        ),
        **QUIET_OPTIONS,
    )
    gr.on(
        [c["hardware"].change, c["minutes"].change],
        inputs=[c["there"], c["hardware"], c["minutes"]],
        **answer_by_name(_show_price, {name: c[name] for name in ("price", "offer", "send_new", "send")}),
        **QUIET_OPTIONS,
    )
    send: dict[str, Any] = {
        **answer_by_name(_submit_job, shown),
        "inputs_kwargs": {**own, "space": c["space"], "chosen": c["offer"]},
        **QUIET_OPTIONS,
        "queue": True,
    }
    for event in (on_set_up, c["send"].click):
        event(**send).then(**refresh)
    for event in (*on_other_runs, c["job_timer"].tick, c["login"].input):
        event(**make_refresh_event(c)).then(**refresh)
    c["end"].click(lambda: gr.update(visible=True), None, c["stop_question"], **QUIET_OPTIONS)
    gr.on(
        [c["confirm_stop"].click, c["keep_training"].click],
        lambda: gr.update(visible=False),
        None,
        c["stop_question"],
        **QUIET_OPTIONS,
    )
    stopping = c["confirm_stop"].click(inputs_kwargs=own, **answer_by_name(_stop_job, shown), **QUIET_OPTIONS)
    stopping.then(**refresh)


def make_refresh_event(c: dict[str, Any]) -> dict[str, Any]:
    """Return an event by which the panel shows the Job of the run that is selected."""
    return {
        **answer_by_name(_poll_job, {name: c[name] for name in OUTPUT_NAMES}),
        "inputs_kwargs": {"login": c["login"], "run": c["run"]},
        **QUIET_OPTIONS,
    }


def _show_hardware(
    visitor_token: gr.OAuthToken | None, login: bool, minutes: float | None, **values: Any
) -> dict[str, Any]:
    """Offer the hardware that there is, and estimate the minutes unless a person named them."""
    try:
        there = list_hardware(_get_jobs_token(login, visitor_token))
    except UserError as error:
        none = gr.update(choices=[], value=None)
        return {"there": [], "hardware": none, "price": show_refusal(error)}
    taken = estimate_seconds(values) if minutes is None else None
    return {
        "there": there,
        "hardware": gr.update(choices=[(each.describe(), each.name) for each in there]),
        "minutes": minutes or (taken and max(1, round(taken / 60))),
        "price": "Choose hardware.",
    }


def _get_jobs_token(login: bool, visitor_token: gr.OAuthToken | None) -> str:
    """Return the token for requests to Jobs.

    Raises `UserError` if there is none, or if the Space does not ask for the scope jobs.
    """
    if is_space() and "jobs" not in os.environ.get("OAUTH_SCOPES", "").split():
        raise UserError(
            "login",
            "this Space does not ask its visitors for the scope jobs; "
            "its README explains how to set that up in your own Space.",
        )
    return require_login_token(login, visitor_token)


def _show_price(available: list[Hardware], name: str | None, minutes: float | None) -> dict[str, Any]:
    """Say what the chosen hardware costs; only then can a run be sent."""
    closed = {"offer": None, **dict.fromkeys(("send_new", "send"), gr.update(interactive=False))}
    if not available or name is None:
        return closed
    try:
        found = make_offer(available, name, minutes)
    except UserError as error:
        return {"price": show_refusal(error), **closed}
    said = (
        f"**{escape_markdown(found.describe())}**. The time is estimated from this machine; "
        "after a timeout, training can continue from its last state."
    )
    opened = dict.fromkeys(("send_new", "send"), gr.update(interactive=True))
    return {"price": said, "offer": found, **opened}


def _submit_job(
    visitor_token: gr.OAuthToken | None, login: bool, run: str | None, space: str, chosen: Offer | None
) -> dict[str, Any]:
    try:
        if chosen is None:
            raise UserError("hardware", "choose hardware first; nothing is sent before its price is shown.")
        jobs.submit_job(
            caller.find_run(run),
            chosen,
            os.environ.get("SPACE_ID") or (space or "").strip(),
            _get_jobs_token(login, visitor_token),
        )
    except UserError as error:
        return {"job": show_refusal(error)}
    return _show_job(run, [], True)


def _poll_job(visitor_token: gr.OAuthToken | None, login: bool, run: str | None) -> dict[str, Any]:
    """Return how the run's Job stands; the Hub is asked only while there is one."""
    folder = caller.find_run_or_none(run)
    if folder is None or not folder.is_remote():
        return _show_job(run, [], False)
    own = get_login_token(login, visitor_token)
    if own is None:
        said = "A Job is training this run: log in to see its status."
        return {"job": said, "job_timer": gr.Timer(active=False)}
    try:
        job = jobs.refresh_job(folder, own)
        return _show_job(run, jobs.fetch_job_log(job, own) if job and job.stage != "SCHEDULING" else [], True)
    except UserError as error:
        return {"job": show_refusal(error)}


def _stop_job(visitor_token: gr.OAuthToken | None, login: bool, run: str | None) -> dict[str, Any]:
    try:
        jobs.stop_job(caller.find_run(run), _get_jobs_token(login, visitor_token))
    except UserError as error:
        return {"job": show_refusal(error)}
    return _show_job(run, [], True)


def _show_job(run: str | None, lines: list[str], keep: bool) -> dict[str, Any]:
    """Return the Job of a run as it was last seen.

    Without new `lines`, those in the log stay if `keep` is true.
    """
    folder = caller.find_run_or_none(run)
    job = jobs.read_job(folder) if folder else None
    no_log = {"log": gr.update(value="", visible=False)}
    if folder is None or job is None:
        return {"job": "", **no_log, "end": gr.update(interactive=False), "job_timer": gr.Timer(active=False)}
    why = f": {escape_markdown(job.message)}" if job.message else ""
    new_log = {"log": gr.update(value="\n".join(lines), visible=True)}
    stage = JOB_STAGE_LABELS.get(job.stage, "is gone")
    return {
        "job": f"Job `{job.id}` on {escape_markdown(job.flavor)} {stage}{why}",
        **(new_log if lines else {} if keep else no_log),
        "end": gr.update(interactive=folder.is_remote()),
        "job_timer": gr.Timer(active=folder.is_remote()),
    }
