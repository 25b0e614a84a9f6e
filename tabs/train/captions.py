"""The captions of the Train tab: by a tagger, by hand, corrected, and undone."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from core.dataset import dataset as datasets
from core.dataset.dataset import Dataset
from core.dataset.tagging import replace_tag
from core.dataset.undo import forget_changes, remember_changes, undo_changes
from tabs.shared.checks import QUIET_OPTIONS, WRITE_OPTIONS, translate_errors
from tabs.shared.dataset_intake import caption_dataset, open_dataset
from tabs.shared.updates import answer_by_name
from tabs.train.pictures import OUTPUT_NAMES, describe_captions, describe_dataset, offer_zip, show_dataset

TABLE_HEADERS = ["file", "name", "caption"]


def build_panel() -> dict[str, Any]:
    """Build the panel: components by name; `wire` connects them."""
    c: dict[str, Any] = {}
    with gr.Accordion("Captions", open=False, elem_id="captions"):
        with gr.Row():
            c["threshold"] = gr.Slider(0.05, 0.95, 0.35, step=0.05, label="Tag threshold", min_width=140)
            c["drop"] = gr.Textbox(
                "",
                label="Exclude tags",
                info="tags or patterns, one per line",
                lines=2,
                min_width=140,
                elem_id="drop",
            )
        with gr.Row():
            c["tag"] = gr.Button("Auto-caption", size="sm", elem_id="tag")
            c["tag_all"] = gr.Button("Re-caption all …", size="sm", elem_id="tag-all")
        gr.Markdown("Auto-caption fills in missing captions; Re-caption all asks before it replaces any.")
        with gr.Row(visible=False, elem_id="tag-question") as c["question"]:
            c["question_text"] = gr.Markdown()
            c["replace_all"] = gr.Button("Replace them", variant="stop", size="sm", elem_id="tag-yes")
            c["keep_all"] = gr.Button("Keep them", size="sm", elem_id="tag-no")
        with gr.Row():
            c["search"] = gr.Textbox("", label="Search", min_width=100, elem_id="search")
            c["replacement"] = gr.Textbox(
                "", label="Replace with", info="empty removes the tag", min_width=100
            )
            c["replace"] = gr.Button("Replace", size="sm", elem_id="replace")
        with gr.Row():
            c["changed_captions"] = gr.Markdown(elem_id="changed-captions")
            c["undo"] = gr.Button("Undo", size="sm", visible=False, min_width=80, elem_id="undo")
        c["table"] = gr.Dataframe(
            headers=TABLE_HEADERS,
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
        c["zip"] = gr.DownloadButton("Images and captions (zip)", size="sm", visible=False)
    return c


def wire(c: dict[str, Any], on_change: Any) -> None:
    """Connect the panel.

    `on_change` is the event that follows a change of captions or of the trigger.
    """
    named = {"folder": c["data"], "trigger": c["trigger"]}
    tagger = named | {name: c[name] for name in ("model", "threshold", "drop")}
    shown = {name: c[name] for name in ("changed_captions", *OUTPUT_NAMES)}
    asked = {name: c[name] for name in ("question", "question_text", "changed_captions")}
    c["tag"].click(inputs_kwargs=tagger, **answer_by_name(_caption_missing, shown), **WRITE_OPTIONS).then(
        **on_change
    )
    c["tag_all"].click(inputs=c["data"], **answer_by_name(_ask_to_replace, asked), **QUIET_OPTIONS)
    c["keep_all"].click(lambda: gr.update(visible=False), None, c["question"], **QUIET_OPTIONS)
    c["replace_all"].click(inputs_kwargs=tagger, **answer_by_name(_caption_all, shown), **WRITE_OPTIONS).then(
        **on_change
    )
    c["replace"].click(
        inputs_kwargs=named | {name: c[name] for name in ("search", "replacement")},
        **answer_by_name(_replace_tag, shown),
        **WRITE_OPTIONS,
    ).then(**on_change)
    c["undo"].click(inputs_kwargs=named, **answer_by_name(_undo, shown), **WRITE_OPTIONS).then(**on_change)
    latest = {**QUIET_OPTIONS, "trigger_mode": "always_last"}
    # Saved at once, so that no edit is left out.
    edited = c["table"].input(
        _save_edits, [c["data"], c["trigger"], c["table"]], [c["dataset_summary"], c["advice"]], **latest
    )
    edited.then(offer_zip, c["data"], c["zip"], **WRITE_OPTIONS)
    edited.then(**on_change)
    c["trigger"].change(_refresh_advice, [c["data"], c["trigger"]], c["advice"], **latest)
    c["trigger"].blur(**on_change)


def _ask_to_replace(folder: str | None) -> dict[str, Any]:
    """Say what the tagger would replace, before it does."""
    samples = open_dataset(folder).samples
    if not (there := sum(bool(sample.caption) for sample in samples)):
        none = "No image has a caption yet: press Auto-caption."
        return {"question": gr.update(visible=False), "question_text": "", "changed_captions": none}
    return {
        "question": gr.update(visible=True),
        "question_text": f"Replace the captions of {there} of {len(samples)} images? You can undo this.",
        "changed_captions": "",
    }


def _caption_missing(folder: str | None, trigger: str, **options: Any) -> dict[str, Any]:
    return _change_captions(
        folder, trigger, lambda found: _run_tagger(found, trigger, keep_existing=True, **options)
    )


def _caption_all(folder: str | None, trigger: str, **options: Any) -> dict[str, Any]:
    return _change_captions(
        folder, trigger, lambda found: _run_tagger(found, trigger, keep_existing=False, **options)
    )


def _run_tagger(
    dataset: Dataset, trigger: str, model: str, threshold: float, drop: str, keep_existing: bool
) -> Dataset:
    return caption_dataset(
        dataset,
        model,
        threshold=threshold,
        trigger=trigger,
        drop=drop.splitlines(),
        keep_existing=keep_existing,
    )


def _replace_tag(folder: str | None, trigger: str, search: str, replacement: str) -> dict[str, Any]:
    return _change_captions(folder, trigger, lambda found: replace_tag(found, search, replacement))


@translate_errors()
def _change_captions(folder: str | None, trigger: str, tool: Callable[[Dataset], Dataset]) -> dict[str, Any]:
    """Change captions with a tool, and return what the page shows then.

    What the captions were is remembered.
    """
    asked = open_dataset(folder)
    was = {sample.file: sample.caption for sample in asked.samples}
    changed = {
        sample.file: sample.caption for sample in tool(asked).samples if sample.caption != was[sample.file]
    }
    before = open_dataset(folder)  # loaded again: what was written while the tool worked stays
    untouched = {sample.file for sample in before.samples if sample.caption == was.get(sample.file)}
    after = datasets.replace_captions(
        before, {file: caption for file, caption in changed.items() if file in untouched}
    )
    many = remember_changes(before, after)
    datasets.save_dataset(after)
    same = sum(
        bool(old.caption) and old.caption == new.caption
        for old, new in zip(before.samples, after.samples, strict=True)
    )
    said = f"Captions changed: {many}. Unchanged: {same}."
    return {"changed_captions": said, **show_dataset(after, trigger)}


@translate_errors()
def _undo(folder: str | None, trigger: str) -> dict[str, Any]:
    found, many = undo_changes(open_dataset(folder))
    datasets.save_dataset(found)
    forget_changes(found.folder)
    return {"changed_captions": f"Captions restored: {many}.", **show_dataset(found, trigger)}


@translate_errors()
def _save_edits(folder: str | None, trigger: str, table: Any) -> tuple[str, str]:
    """Save the captions that were edited in the table."""
    found = datasets.replace_captions(
        open_dataset(folder), {str(row[0]): str(row[2] or "") for row in table.to_numpy().tolist()}
    )
    datasets.save_dataset(found)
    return describe_dataset(found), describe_captions(found, trigger)


def _refresh_advice(folder: str | None, trigger: str) -> str:
    return describe_captions(open_dataset(folder), trigger) if folder else ""
