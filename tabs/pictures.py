"""The Train tab's pictures: dropped in, looked at in their buckets, captioned, corrected."""

from pathlib import Path
from typing import Any

import gradio as gr

from core import models, tools
from core.caption import Tagger
from core.data import dataset as datasets
from core.data.dataset import Dataset
from core.data.intake import imported, written
from core.data.tagging import advice, counts, replaced, tagged
from core.markdown import plain, warned
from core.train.caches import cropped
from core.train.lesson import buckets
from core.train.settings import Training
from core.types import UserError
from tabs.files import filled_folder, new_folder
from tabs.widgets import WRITES

KINDS = [".zip", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".txt", ".caption", ".toml"]
SHOWN_TAGS, SHOWN_SKIPPED = 30, 20
TABLE = ["file", "name", "caption"]


def panel() -> dict[str, Any]:
    """Components by name; `wire` connects them."""
    c: dict[str, Any] = {"data": gr.State(None)}
    c["files"] = gr.File(label="Pictures and captions, or a zip of them", file_count="multiple", file_types=KINDS, height=130, elem_id="train-files")
    with gr.Accordion("Regularisation pictures", open=False):
        gr.Markdown("Pictures of what is to stay as it is, such as other girls; a folder `1_girl` in the zip names their class, or captions do.")
        c["others"] = gr.File(label="Pictures, or a zip", file_count="multiple", file_types=KINDS, height=110)
    c["told"] = gr.Markdown("Drop about 15 pictures.", elem_id="train-data")
    c["trigger"] = gr.Textbox("", label="Trigger", info="a word that means nothing yet", elem_id="trigger")
    with gr.Accordion("Captions", open=False, elem_id="captions"):
        with gr.Row():
            c["threshold"] = gr.Slider(0.05, 0.95, 0.35, step=0.05, label="Threshold", info="of the tagger", min_width=140)
            c["drop"] = gr.Textbox("", label="Leave out", info="tags or patterns, one a line", lines=2, min_width=140, elem_id="drop")
        with gr.Row():
            c["keep"] = gr.Checkbox(False, label="Only where there is none")
            c["tag"] = gr.Button("Caption by tagger", size="sm", elem_id="tag")
        with gr.Row():
            c["search"] = gr.Textbox("", label="Search", min_width=100)
            c["replacement"] = gr.Textbox("", label="Replace by", info="empty takes the tag out", min_width=100)
            c["replace"] = gr.Button("Replace", size="sm")
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
    c["crops"] = gr.Gallery(
        label="A picture of each bucket, as it is seen",
        columns=4,
        height=200,
        preview=False,
        visible=False,
        format="png",
        object_fit="contain",
        elem_id="crops",
    )
    return c


def wire(c: dict[str, Any], quiet: dict[str, Any], changed: Any) -> None:
    """Connect the panel; `changed` is called with an event after which pictures, captions or trigger are others."""
    shown = [c[name] for name in ("data", "told", "table", "advice", "zip")]
    told = [c["data"], c["trigger"]]
    gr.on([c["files"].change, c["others"].change], _brought, [c["files"], c["others"], c["trigger"]], shown, **WRITES).then(**changed)
    c["tag"].click(_tagged, [*told, c["model"], c["threshold"], c["drop"], c["keep"]], shown, **WRITES).then(**changed)
    c["replace"].click(_replaced, [*told, c["search"], c["replacement"]], shown, **WRITES).then(**changed)
    edited = c["table"].input(_edited, [*told, c["table"]], [c["told"], c["advice"]], **quiet, trigger_mode="always_last")  # at once: none is left out
    edited.then(_zipped, c["data"], c["zip"], **WRITES)
    edited.then(**changed)
    c["trigger"].change(_advised, told, c["advice"], **quiet, trigger_mode="always_last")
    c["trigger"].blur(**changed)


def data(folder: str | None) -> Dataset:
    """What was brought. Raises `UserError` before anything was."""
    if not folder:
        raise UserError("dataset: bring pictures first.")
    return datasets.load(Path(folder))


def crops(found: Dataset, made: Training) -> list[tuple[Any, str]]:
    """A picture of each bucket that is occupied, and how many there are."""
    sizes = buckets(made)
    by_bucket: dict[tuple[int, int], list[Any]] = {}
    for sample in found.samples:
        fit = sizes.fit(sample.width, sample.height)
        by_bucket.setdefault(fit.bucket, []).append((sample, fit))
    return [(cropped(found.folder / members[0][0].file, members[0][1]), f"{w} x {h}: {len(members)}") for (w, h), members in sorted(by_bucket.items())]


def _brought(files: list[str] | None, others: list[str] | None, trigger: str) -> tuple[Any, ...]:
    if not files:
        return None, "Drop about 15 pictures.", [], "", gr.update(visible=False)
    try:
        found = brought([Path(file) for file in files], [Path(file) for file in others or []])
    except UserError as error:
        return None, warned(str(error)), [], "", gr.update(visible=False)
    return _shown(found, trigger)


def brought(files: list[Path], others: list[Path]) -> Dataset:
    """Pictures and regularisation pictures as one dataset in a folder of its own. Raises `UserError`."""
    with filled_folder() as work:
        found = imported(files, work / "data")
        if others:
            found = datasets.joined(found, imported(others, work / "regularisation", regularisation=True))
        datasets.save(found)
        return found


def _tagged(folder: str | None, trigger: str, model: str, threshold: float, drop: str, keep: bool) -> tuple[Any, ...]:
    try:
        return _shown(captioned(data(folder), model, threshold=threshold, trigger=trigger, drop=drop.splitlines(), keep_existing=keep), trigger)
    except UserError as error:
        raise gr.Error(str(error)) from error


def captioned(found: Dataset, model: str, **how: Any) -> Dataset:
    """The dataset with captions by the model's tagger, saved. Raises `UserError`."""
    name = models.find(model).tagger
    if name is None:
        raise UserError(f"model: no tagger is pinned for {model}; write the captions yourself.")
    made = tagged(found, Tagger(tools.file("tagger", name)), **how)
    datasets.save(made)
    return made


def _replaced(folder: str | None, trigger: str, search: str, replacement: str) -> tuple[Any, ...]:
    try:
        made = replaced(data(folder), search, replacement)
    except UserError as error:
        raise gr.Error(str(error)) from error
    datasets.save(made)
    return _shown(made, trigger)


def _edited(folder: str | None, trigger: str, table: Any) -> tuple[Any, ...]:
    """A caption was changed in the table."""
    try:
        made = datasets.with_captions(data(folder), {str(row[0]): str(row[2] or "") for row in table.to_numpy().tolist()})
    except UserError as error:
        raise gr.Error(str(error)) from error
    datasets.save(made)
    return _told(made), _advice(made, trigger)


def _zipped(folder: str) -> Any:
    return gr.update(value=str(written(data(folder), new_folder() / "dataset.zip")), visible=True)


def _advised(folder: str | None, trigger: str) -> str:
    return _advice(data(folder), trigger) if folder else ""


def _shown(found: Dataset, trigger: str) -> tuple[Any, ...]:
    own = [sample for sample in found.samples if not sample.regularisation]
    rows = [[sample.file, sample.name, sample.caption] for sample in own]
    return str(found.folder), _told(found), rows, _advice(found, trigger), _zipped(str(found.folder))


def _told(found: Dataset) -> str:
    """What was brought, in a person's words; nothing that was left out is silent."""
    own = [sample for sample in found.samples if not sample.regularisation]
    captions = sum(bool(sample.caption) for sample in own)
    lines = [
        f"**{len(own)} pictures**, {captions} with a caption"
        + (f", and {len(found.samples) - len(own)} for regularisation" if len(found.samples) > len(own) else "")
        + "."
    ]
    lines += [f"- {plain(note)}" for note in found.notes]
    if found.skipped:
        lines.append(f"- **{len(found.skipped)} files were left out:**")
        lines += [f"  - {plain(each.name)}: {plain(each.reason)}" for each in found.skipped[:SHOWN_SKIPPED]]
        lines += [f"  - and {len(found.skipped) - SHOWN_SKIPPED} more"] if len(found.skipped) > SHOWN_SKIPPED else []
    return "\n".join(lines)


def _advice(found: Dataset, trigger: str) -> str:
    tags = ", ".join(f"{plain(tag)} ({count})" for tag, count in list(counts(found).items())[:SHOWN_TAGS])
    lines = [f"- {plain(line)}" for line in advice(found, trigger)]
    return "\n".join([*lines, "", f"**Tags:** {tags}" if tags else ""])
