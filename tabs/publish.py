"""The Publish tab: a LoRA with its card, seen whole before anything is sent, then one commit to the Hub."""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from core import charts, presets, shelf
from core.atomic import placed
from core.markdown import plain, warned
from core.publish.bundle import bundle
from core.publish.plan import LICENCES, plan
from core.publish.push import compared
from core.types import UserError
from tabs import brought, caller
from tabs.files import new_folder, passing_folder
from tabs.finished import finished, known
from tabs.publishing import AT_ONCE, TOLD, sent
from tabs.train import Trained
from tabs.widgets import Measured, sentences, sign_in, signed_in, token

ASKED = ("file", "shelf", "run", "home", *TOLD, "reports", "pictures")
INHERIT = "the base's"
LARGEST_REPORT = 20_000_000  # bytes


def tab(trained: Trained, measured: Sequence[Measured], tabs: gr.Tabs, here: gr.Tab) -> None:
    """Lay out the tab and wire it: `here`, of `tabs`; `trained` knows this browser's runs, and its button and those of `measured` bring something here."""
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            c = _controls()
        with gr.Column(scale=7, min_width=320):
            c["preview"] = gr.Button("Show what would be sent", variant="primary", elem_id="publish-preview")
            c["status"] = gr.Markdown("Nothing is sent before you press Publish.", elem_id="publish-status")
            c["changes"] = gr.Dataframe(headers=["file", "bytes", ""], interactive=False, visible=False, label="Files", elem_id="publish-files")
            c["card"] = gr.Markdown(visible=False, container=True, elem_id="card")
            c["curves"] = gr.Image(visible=False, interactive=False, show_label=False, format="png", elem_id="card-curves")
            with gr.Accordion("The card as it is written", open=False):
                c["text"] = gr.Code(language="markdown", interactive=False, elem_id="card-text")
            c["login"] = sign_in("use-login")
            c["over"] = gr.Checkbox(False, label="Write into a repository that was not made here", elem_id="write-over")
            with gr.Row():
                c["publish"] = gr.Button("Publish", variant="primary", elem_id="publish")
                c["stop"] = gr.Button("Stop", variant="stop", elem_id="publish-stop")
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    trained.mine.change(lambda mine, run: known(mine, [run] if run else [], several=False), [trained.mine, c["run"]], c["run"], queue=False, **quiet)
    here.select(lambda mine: finished(mine, several=False), trained.mine, c["run"], queue=False, **quiet)
    for each in measured:
        each.publish.click(_taken, [each.result, c["reports"]], [tabs, c["file"], c["reports"]], queue=False, **quiet)
    trained.publish.click(
        lambda mine, run: (gr.Tabs(selected="publish"), known(mine, [run] if run else [], several=False)),
        [trained.mine, trained.run],
        [tabs, c["run"]],
        queue=False,
        **quiet,
    )
    brought.wire(c, brought.into_file, c["file"])
    asked = {name: c[name] for name in (*ASKED, "login")}
    shown = [c[name] for name in ("status", "changes", "card", "text", "curves")]
    c["preview"].click(_previewed, inputs_kwargs=asked, outputs=shown, **quiet)
    sending = c["publish"].click(
        _published,
        inputs_kwargs={**asked, "over": c["over"]},
        outputs=c["status"],
        trigger_mode="multiple",  # as in tabs/sweep.py
        **AT_ONCE,
        **quiet,
    )
    stopped = {"fn": lambda: "Stopped. Nothing is in the repository unless its commit had begun: 'Show what would be sent' tells.", "inputs": None}
    c["stop"].click(**stopped, outputs=c["status"], cancels=[sending], **quiet)


def _controls() -> dict[str, Any]:
    """The left side: components by name."""
    c: dict[str, Any] = {}
    c["file"] = gr.File(label="LoRA", file_types=[".safetensors"], height=110, elem_id="publish-file")
    with gr.Row():
        c["shelf"] = gr.Dropdown(shelf.names(), value=None, label="Or from the shelf", min_width=140)
        c["run"] = gr.Dropdown([], value=None, label="Or a run of yours", min_width=140, elem_id="publish-run")
    c |= brought.lora_box("publish-hub")
    c["repo"] = gr.Textbox("", label="Repository", placeholder="owner/name", elem_id="repo")
    c["title"] = gr.Textbox("", label="Title", info="empty for the file's name", elem_id="publish-title")
    c["trigger"] = gr.Textbox(None, label="Trigger words", info="empty for those in the file", elem_id="publish-trigger")
    c["description"] = gr.Textbox("", label="Description", lines=4, elem_id="description")
    with gr.Row():
        c["home"] = gr.Dropdown(
            ["as the file says", *presets.models()], value="as the file says", allow_custom_value=True, label="Trained on", info="or owner/name", min_width=140
        )
        c["license"] = gr.Dropdown([INHERIT, *LICENCES], value=INHERIT, allow_custom_value=True, label="Licence", min_width=140, elem_id="licence")
    with gr.Row():
        c["private"] = gr.Checkbox(True, label="Private", min_width=120)
        c["dataset"] = gr.Checkbox(False, label="Send a run's training pictures, too", min_width=180, elem_id="publish-dataset")
    c["reports"] = gr.File(
        label="What was measured: zips of Sweep and Transfer, or their reports", file_count="multiple", file_types=[".zip", ".json"], height=110,
        elem_id="publish-reports",
    )  # fmt: skip
    c["pictures"] = gr.File(label="Pictures made here, for the gallery", file_count="multiple", file_types=[".png"], height=110)
    return c


def _taken(result: dict[str, Any] | None, reports: list[str] | None) -> tuple[Any, Any, list[str]]:
    """What was measured beside what is here already, and of a sweep its LoRA."""
    if result is None:
        raise gr.Error("Measure something first.")
    folder = new_folder()
    report = folder / "report.json"
    report.write_text(json.dumps(result["report"]), encoding="utf-8")
    file = gr.skip()
    if lora := result.get("lora"):
        placed(Path(lora), folder / Path(lora).name)
        file = str(folder / Path(lora).name)
    return gr.Tabs(selected="publish"), file, [*(reports or []), str(report)]


@sentences()
def _previewed(visitor: gr.OAuthToken | None, login: bool = False, **values: Any) -> tuple[Any, ...]:
    try:
        publication = plan(_said(values))
        with passing_folder() as folder:
            files = bundle(publication, folder)
            there = compared(publication.repo, files, token(login, visitor) or False)
            card = files["README.md"].read_text(encoding="utf-8")
    except UserError as error:
        return warned(str(error)), *[gr.skip()] * 4
    rows = [[change.path, change.size, change.what] for change in there.changes]
    said = "It is new." if there.commit is None else f"It is there, at {there.commit[:8]}."
    said += "" if there.ours else " **It was not made here**: tick below that it may be written over."
    body = re.sub(r"<Gallery />|!\[[^\n]*\]\(reports/[^)]*\)", "", card.split("\n---\n", 1)[1])  # pictures are not there yet
    curves = charts.curves(publication.sweeps[0]) if publication.sweeps else None
    return (
        f"{plain(publication.repo)}: {len(rows)} files, {sum(row[1] for row in rows):,} bytes. {said}",
        gr.update(value=rows, visible=True),
        gr.update(value=body, visible=True),
        card,
        gr.update(value=curves, visible=curves is not None),
    )


def _published(visitor: gr.OAuthToken | None, login: bool = False, over: bool = False, **values: Any) -> Iterator[str]:
    try:
        with sentences(), passing_folder() as folder:
            publication = plan(_said(values))
            own = signed_in(login, visitor)
            files = bundle(publication, folder)
            yield f"Sending {len(files)} files, {sum(file.stat().st_size for file in files.values()):,} bytes …"
            url = yield from sent(publication, files, own, over)
    except gr.Error as error:
        yield warned(error.message)
    else:
        yield f"**Published**: {url}"


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tab's values as `core.publish.plan` takes them."""
    told = {name: values[name] for name in TOLD} | {"pictures": values["pictures"], "trigger": values["trigger"] or None}
    told["license"] = "" if values["license"] in (None, INHERIT) else values["license"]
    told["home"] = None if values["home"] in (None, "as the file says") else values["home"]
    told |= reports([Path(file) for file in values["reports"] or []])
    if values["run"]:
        return told | {"run": str(caller.found(values["run"]).path)}
    return told | {"lora": values["file"] or (str(shelf.path(values["shelf"])) if values["shelf"] else None)}


def reports(files: list[Path]) -> dict[str, Any]:
    """Sweeps' and a transfer's report from zips and JSON files. Raises `UserError`."""
    found: dict[str, Any] = {"sweep": []}
    for file in files:
        try:
            if file.suffix == ".zip":
                with zipfile.ZipFile(file) as archive, archive.open("report.json") as opened:
                    text = opened.read(LARGEST_REPORT + 1)
            else:
                with file.open("rb") as opened:
                    text = opened.read(LARGEST_REPORT + 1)
            report = json.loads(text) if len(text) <= LARGEST_REPORT else None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, RecursionError) as error:
            raise UserError(f"sweep: {file.name} holds no report.json that can be read.") from error
        if not isinstance(report, dict):
            raise UserError(f"sweep: {file.name} holds no report.")
        if "per_pair" in report:
            found["transfer"] = report
        else:
            found["sweep"].append(report)
    return found
