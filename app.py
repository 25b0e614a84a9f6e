"""Sweetspot: run `python app.py`.

The GPU module is imported first; then come the models, one tab each, and the server starts.
`python app.py --help` lists what else it does.
"""

# It reports missing packages before anything imports them.
from core.system import requirements_check  # isort: skip  # noqa: F401

# It imports `spaces`, which must come before torch.
from core.runtime import gpu  # isort: skip  # noqa: F401

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware

from core.models import bases
from core.runtime import cleanup, selfcheck, torch_thread
from core.schema import limits, presets
from core.schema.bounds import FORBIDDEN_CHARACTERS
from core.schema.errors import UserError
from core.sweep.archive import read_report
from core.sweep.field_check import parse_finished_sweep
from core.sweep.recompute import recompute_verdict
from core.system import call_log, shutdown
from core.system.device import detect_machine, is_space
from core.system.markdown import escape_markdown
from core.train import runs
from tabs import publish
from tabs.api import axes as axes_api
from tabs.api import generate as generate_api
from tabs.api import lora as lora_api
from tabs.api import publish as publish_api
from tabs.api import sweep as sweep_api
from tabs.api import train as train_api
from tabs.api import transfer as transfer_api
from tabs.generate import tab as generate_tab
from tabs.server import health
from tabs.server.call_wrapper import wrap_calls
from tabs.server.origin_guard import OriginGuard
from tabs.server.page_files import FILES_FOLDER, keep_files
from tabs.server.request_bodies import RequestGuard, handle_validation_error
from tabs.server.sessions import drop_call_sessions
from tabs.sweep import axes, field_check
from tabs.sweep import tab as sweep_tab
from tabs.train import tab as train_tab
from tabs.transfer import tab as transfer_tab

CSS = """#status p, #tokens p { margin: 0 } #machine, #lacks { opacity: .75; font-size: .85em }
#card th { overflow-wrap: normal; word-break: normal } #gallery .grid-wrap img { max-height: 75vh }
#history-grid .grid-container { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)) }
#field-pictures .grid-container { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)) }"""

LAUNCH_OPTIONS: dict[str, Any] = {
    "css": CSS,
    "max_file_size": limits.UPLOAD_BYTES[not is_space()],
    "state_session_capacity": limits.SESSIONS,
    "footer_links": ["api"],
}
LAUNCH_OPTIONS |= {
    "show_error": False,
    "enable_monitoring": False,
    "head_paths": [
        Path(__file__).parent / "tabs" / name for name in ("notice.html", "generate/shortcuts.html")
    ],
}
SHUTDOWN_TIMEOUT = 20
"""Seconds that jobs and runs have to end and save once the app is asked to close.

A container is killed about 30 seconds after it is asked to stop.
"""


def build_page() -> gr.Blocks:
    """Build the page and return it, with the embedded model loaded."""
    found = selfcheck.run_selfcheck(FILES_FOLDER)
    first = next(iter(presets.get_prompt_presets().values()))
    torch_thread.run_on_torch_thread(bases.load_model, first.model)
    with gr.Blocks(title="Sweetspot", analytics_enabled=False) as page:
        gr.Markdown(
            "# Sweetspot\n"
            "Train, test and publish SDXL anime LoRAs, and measure the strength each one works at."
        )
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                opened = generate_tab.build_tab()
            with gr.Tab("Sweep", id="sweep"):
                swept, curves, controls = sweep_tab.build_tab(opened, tabs)
                axes.build_panel(controls)
                field_check.build_panel(curves.result)
            with gr.Tab("Train", id="train"):
                trained = train_tab.build_tab(page, swept, tabs)
            with gr.Tab("Transfer", id="transfer") as here:
                crossed = transfer_tab.build_tab(trained, here)
            with gr.Tab("Publish", id="publish") as here:
                publish.build_tab(trained, (curves, crossed), tabs, here)
        for each in (generate_api, lora_api, sweep_api, axes_api, train_api, transfer_api, publish_api):
            each.register_endpoints()
        gr.Markdown(detect_machine().describe(), elem_id="machine")
        gr.Markdown(found.describe(), elem_id="lacks")
        with gr.Accordion("Limits", open=False, elem_id="limits"):
            gr.Markdown(
                "\n".join(
                    [
                        "| item | limit |",
                        "|---|---|",
                        *(f"| {what} | {bound} |" for what, bound in limits.list_limits()),
                    ]
                )
            )
    call_log.log_line(
        "start",
        machine=detect_machine().describe(),
        wrong=found.problems or None,
        missing=found.missing or None,
    )
    return _prepare_page(page)


def build_check_page(archive: Path) -> gr.Blocks:
    """Build the page of a field check alone, of the sweep in this zip.

    Raises `UserError` if the zip has no finished sweep that is large enough.
    """
    parse_finished_sweep(read_report(archive))
    with gr.Blocks(title="Sweetspot", analytics_enabled=False) as page:
        gr.Markdown(f"# Field check\n{escape_markdown(archive.name)}")
        field_check.build_panel(gr.State({"archive": str(archive), "report": {}}))
    return _prepare_page(page)


def _prepare_page(page: gr.Blocks) -> gr.Blocks:
    """Put around a finished page what every page needs: log, sessions, files, the queue."""
    wrap_calls(page)
    drop_call_sessions(page)
    keep_files(page)
    return page.queue(api_open=False, max_size=limits.QUEUE_LENGTH, default_concurrency_limit=4)


def make_app_kwargs(page: gr.Blocks) -> dict[str, Any]:
    """Return the server's own routes, middleware and handlers, for `launch(app_kwargs=...)`."""
    return {
        "routes": [health.make_route(page)],
        "middleware": [Middleware(OriginGuard), Middleware(RequestGuard, page=page)],
        "exception_handlers": {RequestValidationError: handle_validation_error},
    }


def main() -> None:
    """Do what the command line asks for; exits with status 1 and one sentence if that is impossible."""
    parser = argparse.ArgumentParser(prog="python app.py", description="Without a command, start the studio.")
    commands = parser.add_subparsers(title="commands", dest="command")
    about = "judge a finished sweep by eye, and write how far that agrees into its report"
    check = commands.add_parser("fieldcheck", help=about, description=about)
    check.add_argument("archive", type=Path, metavar="REPORT.zip", help="the zip of a sweep")
    about = "decide a sweep's verdict again from its report alone"
    again = commands.add_parser("verdict", help=about, description=about)
    again.add_argument("report", type=Path, metavar="report.json", help="the report of a sweep, or its zip")
    asked = parser.parse_args()
    call_log.redact_output()
    try:
        match asked.command:
            case "fieldcheck":
                serve_check(asked.archive)
            case "verdict":
                print_verdict(asked.report)
            case _:
                serve_studio()
    except UserError as error:
        sys.exit(f"{'Sweetspot cannot start: ' if asked.command is None else ''}{error}")


def serve_studio() -> None:
    """Start the server and stay until a signal asks it to close.

    Raises `UserError` for a preset that is not valid.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _handle_signal)
    page = build_page()
    _launch(page)
    cleanup.start_cleanup(FILES_FOLDER)
    while not shutdown.is_shutting_down():
        time.sleep(0.2)
    _shut_down(page)


def serve_check(archive: Path) -> None:
    """Serve the field check of a sweep until Ctrl+C; its last answer writes the zip anew."""
    page = build_check_page(archive)
    print("Answer the questions at the address below; Ctrl+C ends this program.", flush=True)
    _launch(page)
    page.block_thread()


def print_verdict(file: Path) -> None:
    """Print the verdict that a report's measurements give; exits with status 1 if the report says another."""
    report = read_report(file)
    found = recompute_verdict(report)
    print(found.why)
    if found.why != report.get("why"):
        sys.exit(f"The report says: {FORBIDDEN_CHARACTERS.sub('', str(report.get('why')))}")


def _launch(page: gr.Blocks) -> None:
    page.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME"),
        prevent_thread_lock=True,
        app_kwargs=make_app_kwargs(page),
        **LAUNCH_OPTIONS,
    )


def _handle_signal(number: int, _frame: Any) -> None:
    shutdown.request_shutdown()
    signal.signal(number, signal.SIG_DFL)  # a second signal ends it at once


def _shut_down(page: gr.Blocks) -> None:
    """Let jobs and runs end and save, for a limited time; then exit, whatever still runs."""
    owned = [folder for folder in runs.list_all_runs() if folder.is_locked()]
    for folder in owned:
        folder.request_stop()
    end = time.monotonic() + SHUTDOWN_TIMEOUT
    while time.monotonic() < end and (
        call_log.count_open_calls() or len(page._queue) or any(folder.is_locked() for folder in owned)
    ):
        time.sleep(0.1)
    time.sleep(1)  # clients that listen hear what has ended
    page.close(verbose=False)
    call_log.log_line(
        "closed",
        under_way=call_log.count_open_calls() or None,
        training=sum(folder.is_locked() for folder in owned) or None,
    )
    sys.stdout.flush()
    os._exit(0)  # a step of minutes on its own thread would hold the process


if __name__ == "__main__":
    main()
