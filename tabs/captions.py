"""The Train tab's captions: by a tagger, by hand, corrected, and taken back."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from core.data import dataset as datasets
from core.data.dataset import Dataset
from core.data.tagging import replaced
from core.data.undo import forget_changes, remember_changes, undo_changes
from tabs.pictures import SHOWN, advise, captioned, data, describe, offer_zip, show
from tabs.widgets import WRITES, sentences

TABLE = ["file", "name", "caption"]


def panel() -> dict[str, Any]:
    """Components by name; `wire` connects them."""
    c: dict[str, Any] = {}
    with gr.Accordion("Captions", open=False, elem_id="captions"):
        with gr.Row():
            c["threshold"] = gr.Slider(0.05, 0.95, 0.35, step=0.05, label="Threshold", info="of the tagger", min_width=140)
            c["drop"] = gr.Textbox("", label="Leave out", info="tags or patterns, one a line", lines=2, min_width=140, elem_id="drop")
        with gr.Row():
            c["tag"] = gr.Button("Caption by tagger", size="sm", elem_id="tag")
            c["tag_all"] = gr.Button("Caption all again …", size="sm", elem_id="tag-all")
        gr.Markdown("The tagger captions the pictures that have no caption; it asks before it replaces one.")
        with gr.Row(visible=False, elem_id="tag-question") as c["question"]:
            c["asks"] = gr.Markdown()
            c["replace_all"] = gr.Button("Replace them", variant="stop", size="sm", elem_id="tag-yes")
            c["keep_all"] = gr.Button("Keep them", size="sm", elem_id="tag-no")
        with gr.Row():
            c["search"] = gr.Textbox("", label="Search", min_width=100, elem_id="search")
            c["replacement"] = gr.Textbox("", label="Replace by", info="empty takes the tag out", min_width=100)
            c["replace"] = gr.Button("Replace", size="sm", elem_id="replace")
        with gr.Row():
            c["changed_captions"] = gr.Markdown(elem_id="changed-captions")
            c["undo"] = gr.Button("Undo", size="sm", visible=False, min_width=80, elem_id="undo")
        c["table"] = gr.Dataframe(
            headers=TABLE,
            datatype="str",
            column_count=3,
            static_columns=[0, 1],
            label="Captions",
            interactive=True,
            wrap=True,
            column_widths=["15%", "20%", "65%"],
            max_height=320,
            elem_id="table",
        )
        c["advice"] = gr.Markdown(elem_id="advice")
        c["zip"] = gr.DownloadButton("Pictures and captions as a zip", size="sm", visible=False)
    return c


def wire(c: dict[str, Any], quiet: dict[str, Any], changed: Any) -> None:
    """Connect the panel; `changed` is called with an event after which captions or the trigger are others."""
    named = {"folder": c["data"], "trigger": c["trigger"]}
    tagger = named | {name: c[name] for name in ("model", "threshold", "drop")}
    shown = [c["changed_captions"], *(c[name] for name in SHOWN)]
    c["tag"].click(_caption_missing, inputs_kwargs=tagger, outputs=shown, **WRITES).then(**changed)
    c["tag_all"].click(_ask, c["data"], [c["question"], c["asks"], c["changed_captions"]], **quiet)
    c["keep_all"].click(lambda: gr.update(visible=False), None, c["question"], **quiet)
    c["replace_all"].click(_caption_all, inputs_kwargs=tagger, outputs=shown, **WRITES).then(**changed)
    replacing = named | {name: c[name] for name in ("search", "replacement")}
    c["replace"].click(_replace_tag, inputs_kwargs=replacing, outputs=shown, **WRITES).then(**changed)
    c["undo"].click(_undo, inputs_kwargs=named, outputs=shown, **WRITES).then(**changed)
    latest = {**quiet, "trigger_mode": "always_last"}
    edited = c["table"].input(_edited, [c["data"], c["trigger"], c["table"]], [c["told"], c["advice"]], **latest)  # at once: none is left out
    edited.then(offer_zip, c["data"], c["zip"], **WRITES)
    edited.then(**changed)
    c["trigger"].change(_advised, [c["data"], c["trigger"]], c["advice"], **latest)
    c["trigger"].blur(**changed)


def _ask(folder: str | None) -> tuple[Any, str, str]:
    """What the tagger would replace, before it does."""
    samples = data(folder).samples
    if not (there := sum(bool(sample.caption) for sample in samples)):
        return gr.update(visible=False), "", "No picture has a caption yet: press 'Caption by tagger'."
    return gr.update(visible=True), f"Replace the captions of {there} of {len(samples)} pictures? Undo brings them back.", ""


def _caption_missing(folder: str | None, trigger: str, **how: Any) -> tuple[Any, ...]:
    return _change(folder, trigger, lambda found: _tag(found, trigger, keep_existing=True, **how))


def _caption_all(folder: str | None, trigger: str, **how: Any) -> tuple[Any, ...]:
    return _change(folder, trigger, lambda found: _tag(found, trigger, keep_existing=False, **how))


def _tag(found: Dataset, trigger: str, model: str, threshold: float, drop: str, keep_existing: bool) -> Dataset:
    return captioned(found, model, threshold=threshold, trigger=trigger, drop=drop.splitlines(), keep_existing=keep_existing)


def _replace_tag(folder: str | None, trigger: str, search: str, replacement: str) -> tuple[Any, ...]:
    return _change(folder, trigger, lambda found: replaced(found, search, replacement))


@sentences()
def _change(folder: str | None, trigger: str, tool: Callable[[Dataset], Dataset]) -> tuple[Any, ...]:
    """What the page shows once a tool has changed captions; what they were is remembered."""
    asked = data(folder)
    was = {sample.file: sample.caption for sample in asked.samples}
    changed = {sample.file: sample.caption for sample in tool(asked).samples if sample.caption != was[sample.file]}
    before = data(folder)  # anew: what was written while the tool worked stays
    untouched = {sample.file for sample in before.samples if sample.caption == was.get(sample.file)}
    after = datasets.with_captions(before, {file: caption for file, caption in changed.items() if file in untouched})
    many = remember_changes(before, after)
    datasets.save(after)
    same = sum(bool(old.caption) and old.caption == new.caption for old, new in zip(before.samples, after.samples, strict=True))
    said = f"Captions changed: {many}. Pictures that keep theirs: {same}."
    return said, *show(after, trigger)


@sentences()
def _undo(folder: str | None, trigger: str) -> tuple[Any, ...]:
    found, many = undo_changes(data(folder))
    datasets.save(found)
    forget_changes(found.folder)
    return f"Captions that are as they were before: {many}.", *show(found, trigger)


@sentences()
def _edited(folder: str | None, trigger: str, table: Any) -> tuple[str, str]:
    """A caption was changed in the table."""
    found = datasets.with_captions(data(folder), {str(row[0]): str(row[2] or "") for row in table.to_numpy().tolist()})
    datasets.save(found)
    return describe(found), advise(found, trigger)


def _advised(folder: str | None, trigger: str) -> str:
    return advise(data(folder), trigger) if folder else ""
