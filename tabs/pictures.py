"""The Train tab's pictures: dropped in, and looked at in their buckets; tabs/captions.py has what they are called."""

import os
from pathlib import Path
from typing import Any

import gradio as gr

from core import models, tools
from core.caption import Tagger
from core.data import dataset as datasets
from core.data.dataset import Dataset
from core.data.intake import imported, written
from core.data.tagging import advice, counts, tagged
from core.data.undo import carry_over, has_undo
from core.markdown import plain, warned
from core.train.caches import cropped
from core.train.lesson import buckets
from core.train.settings import Training
from core.types import UserError
from tabs.files import filled_folder, new_folder
from tabs.widgets import WRITES

KINDS = [".zip", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".txt", ".caption", ".toml"]
SHOWN_TAGS, SHOWN_SKIPPED = 30, 20
SHOWN = ("data", "told", "table", "advice", "zip", "undo", "question")
"""What changes with the pictures or their captions."""


def panel() -> dict[str, Any]:
    """Components by name; `wire` connects them."""
    c: dict[str, Any] = {"data": gr.State(None)}
    c["files"] = gr.File(label="Pictures and captions, or a zip of them", file_count="multiple", file_types=KINDS, height=130, elem_id="train-files")
    with gr.Accordion("Regularisation pictures", open=False):
        gr.Markdown("Pictures of what is to stay as it is, such as other girls; a folder `1_girl` in the zip names their class, or captions do.")
        c["others"] = gr.File(label="Pictures, or a zip", file_count="multiple", file_types=KINDS, height=110, elem_id="train-others")
    c["told"] = gr.Markdown("Drop about 15 pictures.", elem_id="train-data")
    c["trigger"] = gr.Textbox("", label="Trigger", info="a word that means nothing yet", elem_id="trigger")
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


def wire(c: dict[str, Any], changed: Any) -> None:
    """Connect the panel; `changed` is called with an event after which pictures are others."""
    asked = [c["files"], c["others"], c["trigger"], c["data"]]
    gr.on([c["files"].change, c["others"].change], _brought, asked, [c[name] for name in SHOWN], **WRITES).then(**changed)


def data(folder: str | None) -> Dataset:
    """What was brought. Raises `UserError` before anything was."""
    if not folder:
        raise UserError("dataset: bring pictures first.")
    found = datasets.load(Path(folder))
    os.utime(folder)  # in use now, which the sweeper goes by
    return found


def crops(found: Dataset, made: Training) -> list[tuple[Any, str]]:
    """A picture of each bucket that is occupied, and how many there are."""
    sizes = buckets(made)
    by_bucket: dict[tuple[int, int], list[Any]] = {}
    for sample in found.samples:
        fit = sizes.fit(sample.width, sample.height)
        by_bucket.setdefault(fit.bucket, []).append((sample, fit))
    return [(cropped(found.folder / members[0][0].file, members[0][1]), f"{w} x {h}: {len(members)}") for (w, h), members in sorted(by_bucket.items())]


def _brought(files: list[str] | None, others: list[str] | None, trigger: str, folder: str | None) -> tuple[Any, ...]:
    if not files:
        return None, "Drop about 15 pictures.", [], "", *[gr.update(visible=False)] * 3
    try:
        former = datasets.load(Path(folder)) if folder else None
    except UserError:  # swept away since: what is dropped now is all there is
        former = None
    try:
        found = brought([Path(file) for file in files], [Path(file) for file in others or []])
    except UserError as error:
        stays = f"\n\nWhat was here before stays: {describe(former)}" if former else ""
        return gr.skip(), warned(str(error)) + stays, *[gr.skip()] * 5
    if former:
        found = carry_over(former, found)
        datasets.save(found)
    return show(found, trigger)


def brought(files: list[Path], others: list[Path]) -> Dataset:
    """Pictures and regularisation pictures as one dataset in a folder of its own. Raises `UserError`."""
    with filled_folder() as work:
        found = imported(files, work / "data")
        if others:
            found = datasets.joined(found, imported(others, work / "regularisation", regularisation=True))
        datasets.save(found)
        return found


def captioned(found: Dataset, model: str, **how: Any) -> Dataset:
    """The dataset with captions by the model's tagger; `how` is what `tagged` takes. Raises `UserError`."""
    name = models.find(model).tagger
    if name is None:
        raise UserError(f"model: no tagger is pinned for {model}; write the captions yourself.")
    return tagged(found, Tagger(tools.file("tagger", name)), **how)


def offer_zip(folder: str) -> Any:
    """The button that gives them as a zip."""
    return gr.update(value=str(written(data(folder), new_folder() / "dataset.zip")), visible=True)


def show(found: Dataset, trigger: str) -> tuple[Any, ...]:
    """What `SHOWN` shows of a dataset."""
    own = [sample for sample in found.samples if not sample.regularisation]
    rows = [[sample.file, sample.name, sample.caption] for sample in own]
    undo = gr.update(visible=has_undo(found.folder))
    return str(found.folder), describe(found), rows, advise(found, trigger), offer_zip(str(found.folder)), undo, gr.update(visible=False)


def describe(found: Dataset) -> str:
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


def advise(found: Dataset, trigger: str) -> str:
    """What the captions will teach, and the tags that stand in them."""
    tags = ", ".join(f"{plain(tag)} ({count})" for tag, count in list(counts(found).items())[:SHOWN_TAGS])
    lines = [f"- {plain(line)}" for line in advice(found, trigger)]
    return "\n".join([*lines, "", f"**Tags:** {tags}" if tags else ""])
