"""The Publish tab: a LoRA with its card, sent to the Hub in one commit.

Everything is shown before anything is sent.
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from core.publish.bundle import build_bundle
from core.publish.licences import LICENCES
from core.publish.plan import PublicationForm, plan_publication
from core.publish.push import preview_repo
from core.schema.errors import UserError
from core.schema.records import read_form
from core.sweep import charts
from core.system.atomic_files import link_or_copy
from core.system.markdown import escape_markdown
from tabs.server import visitor as caller
from tabs.server.call_wrapper import show_refusal
from tabs.server.page_files import create_folder, create_temporary_folder
from tabs.shared import hub_fetch
from tabs.shared.checks import (
    QUIET_OPTIONS,
    build_login_box,
    get_login_token,
    require_login_token,
    translate_errors,
)
from tabs.shared.handoff import ReportHandoff, TrainHandoff
from tabs.shared.lora_choices import find_chosen_lora, list_lora_choices
from tabs.shared.model_choices import HOME_FROM_FILE, list_home_choices
from tabs.shared.publish_job import PUBLISH_OPTIONS, send_publication
from tabs.shared.run_choices import refresh_run_choices, update_run_choices
from tabs.shared.updates import answer_by_name, refresh_choices

PUBLICATION_FIELDS = ("repo", "title", "trigger", "description", "license", "private", "dataset")
INPUT_NAMES = ("file", "shelf", "run", "home", *PUBLICATION_FIELDS, "reports", "pictures")
INHERITED_LICENCE = "same as base model"
MAX_REPORT_BYTES = 20_000_000


def build_tab(
    train_handoff: TrainHandoff, report_handoffs: Sequence[ReportHandoff], tabs: gr.Tabs, this_tab: gr.Tab
) -> None:
    """Lay out the tab and connect it.

    `this_tab` is one of `tabs`. `train_handoff` knows this browser's runs; its button and those of
    `report_handoffs` bring something here.
    """
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            c = _build_controls()
        with gr.Column(scale=7, min_width=320):
            c |= _build_results()
    _wire_run_choices(c, train_handoff, this_tab)
    _wire_handoffs(c, train_handoff, report_handoffs, tabs)
    hub_fetch.wire(c, hub_fetch.fetch_lora_to_file, c["file"])
    refresh_choices(c["shelf"].focus, c["shelf"], list_lora_choices)
    refresh_choices(c["home"].focus, c["home"], list_home_choices)
    _wire_publication(c)


def _wire_run_choices(c: dict[str, Any], train_handoff: TrainHandoff, this_tab: gr.Tab) -> None:
    """Offer this browser's runs: when there are others, and when the tab is opened."""
    train_handoff.my_runs.change(
        lambda mine, run: update_run_choices(mine, [run] if run else [], several=False),
        [train_handoff.my_runs, c["run"]],
        c["run"],
        **QUIET_OPTIONS,
    )
    this_tab.select(
        lambda mine: refresh_run_choices(mine, several=False),
        train_handoff.my_runs,
        c["run"],
        **QUIET_OPTIONS,
    )


def _wire_handoffs(
    c: dict[str, Any], train_handoff: TrainHandoff, report_handoffs: Sequence[ReportHandoff], tabs: gr.Tabs
) -> None:
    """Connect the buttons of other tabs that bring a report or a run here."""
    for each in report_handoffs:
        each.publish_button.click(
            inputs=[each.result, c["reports"]],
            **answer_by_name(_add_report, {"tabs": tabs, "file": c["file"], "reports": c["reports"]}),
            **QUIET_OPTIONS,
        )
    train_handoff.publish_button.click(
        lambda mine, run: (
            gr.Tabs(selected="publish"),
            update_run_choices(mine, [run] if run else [], several=False),
        ),
        [train_handoff.my_runs, train_handoff.run],
        [tabs, c["run"]],
        **QUIET_OPTIONS,
    )


def _wire_publication(c: dict[str, Any]) -> None:
    """Connect the buttons that preview, publish and stop."""
    queued = {**QUIET_OPTIONS, "queue": True}
    asked = {name: c[name] for name in (*INPUT_NAMES, "login")}
    shown = {name: c[name] for name in ("status", "changes", "card_change", "card", "text", "curves")}
    c["preview"].click(inputs_kwargs=asked, **answer_by_name(_preview_publication, shown), **queued)
    sending = c["publish"].click(
        _publish_lora,
        inputs_kwargs={**asked, "overwrite": c["over"]},
        outputs=c["status"],
        trigger_mode="multiple",  # as in GPU_OPTIONS
        **PUBLISH_OPTIONS,
        **queued,
    )
    stopped = {
        "fn": lambda: (
            "Stopped. The repository is unchanged unless the commit had already begun; "
            "press Preview to check."
        ),
        "inputs": None,
    }
    c["stop"].click(**stopped, outputs=c["status"], cancels=[sending], **queued)


def _build_controls() -> dict[str, Any]:
    """Build the left side: components by name."""
    c: dict[str, Any] = {}
    c["file"] = gr.File(label="LoRA", file_types=[".safetensors"], height=110, elem_id="publish-file")
    with gr.Row():
        c["shelf"] = gr.Dropdown(list_lora_choices(), value=None, label="LoRA library", min_width=140)
        c["run"] = gr.Dropdown([], value=None, label="One of your runs", min_width=140, elem_id="publish-run")
    c |= hub_fetch.build_lora_box("publish-hub")
    c["repo"] = gr.Textbox("", label="Repository", placeholder="owner/name", elem_id="repo")
    c["title"] = gr.Textbox("", label="Title", info="default: file name", elem_id="publish-title")
    c["trigger"] = gr.Textbox(
        None, label="Trigger words", info="default: those in the file", elem_id="publish-trigger"
    )
    c["description"] = gr.Textbox("", label="Description", lines=4, elem_id="description")
    with gr.Row():
        c["home"] = gr.Dropdown(
            list_home_choices(),
            value=HOME_FROM_FILE,
            allow_custom_value=True,
            label="Trained on",
            info="or owner/name",
            min_width=140,
        )
        c["license"] = gr.Dropdown(
            [INHERITED_LICENCE, *LICENCES],
            value=INHERITED_LICENCE,
            allow_custom_value=True,
            label="Licence",
            min_width=140,
            elem_id="licence",
        )
    with gr.Row():
        c["private"] = gr.Checkbox(True, label="Private", min_width=120)
        c["dataset"] = gr.Checkbox(
            False, label="Include training images", min_width=180, elem_id="publish-dataset"
        )
    c["reports"] = gr.File(
        label="Sweep / Transfer results (zip or report.json)",
        file_count="multiple",
        file_types=[".zip", ".json"],
        height=110,
        elem_id="publish-reports",
    )
    c["pictures"] = gr.File(label="Gallery images", file_count="multiple", file_types=[".png"], height=110)
    return c


def _build_results() -> dict[str, Any]:
    """Build the right side: components by name."""
    c: dict[str, Any] = {}
    c["preview"] = gr.Button("Preview", variant="primary", elem_id="publish-preview")
    c["status"] = gr.Markdown("Nothing is uploaded until you press Publish.", elem_id="publish-status")
    c["changes"] = gr.Dataframe(
        headers=["file", "bytes", ""],
        interactive=False,
        visible=False,
        label="Files",
        elem_id="publish-files",
    )
    c["card_change"] = gr.Code(
        visible=False,
        interactive=False,
        label="Changes of README.md (- before, + after)",
        elem_id="card-change",
    )
    c["card"] = gr.Markdown(visible=False, container=True, elem_id="card")
    c["curves"] = gr.Image(
        visible=False, interactive=False, show_label=False, format="png", elem_id="card-curves"
    )
    with gr.Accordion("README.md source", open=False):
        c["text"] = gr.Code(language="markdown", interactive=False, elem_id="card-text")
    c["login"] = build_login_box("use-login")
    c["over"] = gr.Checkbox(
        False, label="Publish into a repository not created by Sweetspot", elem_id="write-over"
    )
    with gr.Row():
        c["publish"] = gr.Button("Publish", variant="primary", elem_id="publish")
        c["stop"] = gr.Button("Stop", variant="stop", elem_id="publish-stop")
    return c


def _add_report(result: dict[str, Any] | None, reports: list[str] | None) -> dict[str, Any]:
    """Add a study to the reports that are here; of a sweep, bring its LoRA, too."""
    if result is None:
        raise gr.Error("Run a sweep or a transfer study first.")
    folder = create_folder()
    report = folder / "report.json"
    report.write_text(json.dumps(result["report"]), encoding="utf-8")
    answer: dict[str, Any] = {
        "tabs": gr.Tabs(selected="publish"),
        "reports": [*(reports or []), str(report)],
    }
    if lora := result.get("lora"):
        link_or_copy(Path(lora), folder / Path(lora).name)
        answer["file"] = str(folder / Path(lora).name)
    return answer


@translate_errors()
def _preview_publication(
    visitor_token: gr.OAuthToken | None, login: bool = False, **values: Any
) -> dict[str, Any]:
    try:
        publication = plan_publication(_build_form(values))
        with create_temporary_folder() as folder:
            files = build_bundle(publication, folder)
            there = preview_repo(publication, files, get_login_token(login, visitor_token) or False)
            card = there.files["README.md"].read_bytes().decode()
    except UserError as error:
        return {"status": show_refusal(error)}
    rows = [[change.path, change.size, change.status] for change in there.changes]
    said = (
        f"**Not compared with the repository**: {escape_markdown(there.unknown)}"
        if there.unknown
        else "New repository."
        if there.commit is None
        else f"Existing repository, at {there.commit[:8]}. What others wrote in its README.md stays."
    )
    said += (
        ""
        if there.is_ours
        else " **It was not created by Sweetspot**: tick the box below to publish into it."
    )
    # The pictures are not there yet.
    body = re.sub(r"<Gallery />|<!--.*?-->|!\[[^\n]*\]\(reports/[^)]*\)", "", card.split("\n---\n", 1)[1])
    curves = charts.draw_curves(publication.sweeps[0]) if publication.sweeps else None
    total = sum(row[1] for row in rows)
    return {
        "status": f"{escape_markdown(publication.repo)}: {len(rows)} files, {total:,} bytes. {said}",
        "changes": gr.update(value=rows, visible=True),
        "card": gr.update(value=body, visible=True),
        "text": card,
        "card_change": gr.update(value=there.card_change, visible=bool(there.card_change)),
        "curves": gr.update(value=curves, visible=curves is not None),
    }


def _publish_lora(
    visitor_token: gr.OAuthToken | None, login: bool = False, overwrite: bool = False, **values: Any
) -> Iterator[str]:
    try:
        with translate_errors(), create_temporary_folder() as folder:
            publication = plan_publication(_build_form(values))
            own = require_login_token(login, visitor_token)
            files = build_bundle(publication, folder)
            yield (
                f"Uploading {len(files)} files, "
                f"{sum(file.stat().st_size for file in files.values()):,} bytes …"
            )
            url = yield from send_publication(publication, files, own, overwrite)
    except gr.Error as error:
        yield show_refusal(UserError(None, error.message))
    else:
        yield f"**Published**: {url}"


def _build_form(values: Mapping[str, Any]) -> PublicationForm:
    """Return what the tab asks for. Raises `UserError` if a value is not valid."""
    found = {name: values[name] for name in PUBLICATION_FIELDS} | read_reports(
        [Path(file) for file in values["reports"] or []]
    )
    found |= {"pictures": values["pictures"] or (), "trigger": values["trigger"] or None}
    found["license"] = None if values["license"] == INHERITED_LICENCE else values["license"]
    found["home"] = None if values["home"] == HOME_FROM_FILE else values["home"]
    if values["run"]:
        found["run"] = str(caller.find_run(values["run"]).path)
    elif values["file"] or values["shelf"]:
        found["lora"] = find_chosen_lora(values["file"], values["shelf"])
    return read_form(PublicationForm, found)


def read_reports(files: list[Path]) -> dict[str, Any]:
    """Read the reports of sweeps and of a transfer study from zips and JSON files.

    Raises `UserError` if a file contains no readable report.
    """
    found: dict[str, Any] = {"sweep": []}
    for file in files:
        try:
            if file.suffix == ".zip":
                with zipfile.ZipFile(file) as archive, archive.open("report.json") as opened:
                    text = opened.read(MAX_REPORT_BYTES + 1)
            else:
                with file.open("rb") as opened:
                    text = opened.read(MAX_REPORT_BYTES + 1)
            report = json.loads(text) if len(text) <= MAX_REPORT_BYTES else None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, RecursionError) as error:
            raise UserError("sweep", f"{file.name} contains no readable report.json.") from error
        if not isinstance(report, dict):
            raise UserError("sweep", f"{file.name} contains no report.")
        if "per_pair" in report:
            found["transfer"] = report
        else:
            found["sweep"].append(report)
    return found
