"""Sweetspot: `python app.py`. One door to the GPU first, then the models, one tab each, launch."""

from core import installed  # isort: skip  # noqa: F401  (says what is missing before it is missed)
from core import gpu  # isort: skip  (imports `spaces`, which must come before torch)

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware

from core import closing, journal, limits, models, presets, selfcheck, sweeper
from core.device import on_space, this_machine
from core.train import runs
from core.types import UserError
from tabs import api, crossing, generate, health, publish, publishing, sweep, train, training, transfer
from tabs.bodies import Bodies, explain
from tabs.door import Door
from tabs.files import FILES, keep_files
from tabs.sessions import forget
from tabs.watch import watch

CSS = """#status p, #tokens p { margin: 0 } #machine, #lacks { opacity: .75; font-size: .85em }
#card th { overflow-wrap: normal; word-break: normal } #gallery .grid-wrap img { max-height: 75vh }"""

LAUNCH: dict[str, Any] = {"css": CSS, "max_file_size": limits.UPLOAD[not on_space()], "state_session_capacity": limits.SESSIONS, "footer_links": ["api"]}
LAUNCH |= {"show_error": False, "enable_monitoring": False, "head_paths": Path(__file__).parent / "tabs" / "notice.html"}
PATIENCE = 20
"""Seconds that jobs and runs have to end and save once the studio is asked to close; whoever stops a container kills it after about 30."""


def build() -> gr.Blocks:
    """The page, with the embedded model loaded."""
    found = selfcheck.check(FILES)
    first = next(iter(presets.recipes().values()))
    gpu.lane(models.load, first.model)
    with gr.Blocks(title="Sweetspot", analytics_enabled=False) as page:
        gr.Markdown("# Sweetspot\nA studio for SDXL anime models that measures at which strength a LoRA works.")
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                opened = generate.tab()
            with gr.Tab("Sweep", id="sweep"):
                swept, curves = sweep.tab(opened, tabs)
            with gr.Tab("Train", id="train"):
                trained = train.tab(page, swept, tabs)
            with gr.Tab("Transfer", id="transfer") as here:
                crossed = transfer.tab(trained, here)
            with gr.Tab("Publish", id="publish") as here:
                publish.tab(trained, (curves, crossed), tabs, here)
        api.endpoints()
        training.endpoints()
        crossing.endpoints()
        publishing.endpoints()
        gr.Markdown(this_machine().line(), elem_id="machine")
        gr.Markdown(found.line(), elem_id="lacks")
        with gr.Accordion("Limits", open=False, elem_id="limits"):
            gr.Markdown("\n".join(["| what | how much |", "|---|---|", *(f"| {what} | {bound} |" for what, bound in limits.rows())]))
    watch(page)
    forget(page)
    keep_files(page)
    journal.say("start", machine=this_machine().line(), wrong=found.wrong or None, missing=found.missing or None)
    return page.queue(api_open=False, max_size=limits.QUEUE, default_concurrency_limit=4)


def beside(page: gr.Blocks) -> dict[str, Any]:
    """What the server has beside Gradio's own; for `launch(app_kwargs=...)`."""
    return {
        "routes": [health.route(page)],
        "middleware": [Middleware(Door), Middleware(Bodies, page=page)],
        "exception_handlers": {RequestValidationError: explain},
    }


def main() -> None:
    """Start the server and stay until a signal asks it to close; a preset that is wrong ends the start with its sentence."""
    journal.guard()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _asked_to_close)
    try:
        page = build()
    except UserError as error:
        sys.exit(f"Sweetspot cannot start: {error}")
    page.launch(server_name=os.environ.get("GRADIO_SERVER_NAME"), prevent_thread_lock=True, app_kwargs=beside(page), **LAUNCH)
    sweeper.start(FILES)
    while not closing.asked():
        time.sleep(0.2)
    _close(page)


def _asked_to_close(number: int, _frame: Any) -> None:
    closing.ask()
    signal.signal(number, signal.SIG_DFL)  # asked twice, it ends at once


def _close(page: gr.Blocks) -> None:
    """Let what is under way end and save, within bounds; then leave, whatever still holds on."""
    owned = [folder for folder in runs.listed() if folder.is_owned()]
    for folder in owned:
        folder.ask_to_stop()
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and (journal.under_way() or len(page._queue) or any(folder.is_owned() for folder in owned)):
        time.sleep(0.1)
    time.sleep(1)  # what ended is told to whoever listens
    page.close(verbose=False)
    journal.say("closed", under_way=journal.under_way() or None, training=sum(folder.is_owned() for folder in owned) or None)
    sys.stdout.flush()
    os._exit(0)  # a step that takes minutes on a thread of its own would hold the process


if __name__ == "__main__":
    main()
