"""The pictures of the Train tab: dropped in, and shown in their buckets.

Their captions are in tabs/train/captions.py.
"""

from pathlib import Path
from typing import Any

import gradio as gr

from core.dataset import dataset as datasets
from core.dataset.dataset import Dataset
from core.dataset.intake import export_zip
from core.dataset.tagging import advise_captions, count_tags
from core.dataset.undo import carry_over_captions, has_undo
from core.schema.errors import UserError
from core.system.markdown import escape_markdown
from core.train.trainer.batches import make_buckets
from core.train.trainer.latent_cache import crop_to_bucket
from core.train.trainer.settings import TrainingSettings
from tabs.server.call_wrapper import show_refusal
from tabs.server.page_files import create_folder
from tabs.shared.checks import WRITE_OPTIONS
from tabs.shared.dataset_intake import import_pictures, open_dataset
from tabs.shared.updates import answer_by_name

FILE_TYPES = [".zip", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".txt", ".caption", ".toml"]
MAX_SHOWN_TAGS, MAX_SHOWN_SKIPPED = 30, 20
NO_PICTURES = "Drop about 15 images to start."
OUTPUT_NAMES = ("data", "dataset_summary", "table", "advice", "zip", "undo", "question")
"""The components that change with the pictures or their captions."""


def build_panel() -> dict[str, Any]:
    """Build the panel: components by name; `wire` connects them."""
    c: dict[str, Any] = {"data": gr.State(None)}
    c["files"] = gr.File(
        label="Training images and captions (files or zip)",
        file_count="multiple",
        file_types=FILE_TYPES,
        height=130,
        elem_id="train-files",
    )
    with gr.Accordion("Regularisation images (optional)", open=False):
        gr.Markdown(
            "What must not change, e.g. other characters. "
            "Kohya folders such as `1_girl` name the class, or captions do."
        )
        c["others"] = gr.File(
            label="Images, or a zip",
            file_count="multiple",
            file_types=FILE_TYPES,
            height=110,
            elem_id="train-others",
        )
    c["dataset_summary"] = gr.Markdown(NO_PICTURES, elem_id="train-data")
    c["trigger"] = gr.Textbox(
        "", label="Trigger word", info="a made-up word, e.g. mystyle", elem_id="trigger"
    )
    c["crops"] = gr.Gallery(
        label="One crop per bucket",
        columns=4,
        height=200,
        preview=False,
        visible=False,
        format="png",
        object_fit="contain",
        elem_id="crops",
    )
    return c


def wire(c: dict[str, Any], on_change: Any) -> None:
    """Connect the panel; `on_change` is the event that follows a change of the pictures."""
    gr.on(
        [c["files"].change, c["others"].change],
        inputs=[c["files"], c["others"], c["trigger"], c["data"]],
        **answer_by_name(_receive_files, {name: c[name] for name in OUTPUT_NAMES}),
        **WRITE_OPTIONS,
    ).then(**on_change)


def crop_bucket_samples(dataset: Dataset, settings: TrainingSettings) -> list[tuple[Any, str]]:
    """Return a picture of each bucket that is occupied, and how many pictures it has."""
    sizes = make_buckets(settings)
    by_bucket: dict[tuple[int, int], list[Any]] = {}
    for sample in dataset.samples:
        fit = sizes.fit(sample.width, sample.height)
        by_bucket.setdefault(fit.bucket, []).append((sample, fit))
    return [
        (crop_to_bucket(dataset.folder / members[0][0].file, members[0][1]), f"{w} x {h}: {len(members)}")
        for (w, h), members in sorted(by_bucket.items())
    ]


def _receive_files(
    files: list[str] | None, others: list[str] | None, trigger: str, folder: str | None
) -> dict[str, Any]:
    if not files:
        hidden = dict.fromkeys(("zip", "undo", "question"), gr.update(visible=False))
        return {"data": None, "dataset_summary": NO_PICTURES, "table": [], "advice": "", **hidden}
    try:
        former = datasets.load_dataset(Path(folder)) if folder else None
    except UserError:  # deleted since: what is dropped now is all there is
        former = None
    try:
        found = import_pictures([Path(file) for file in files], [Path(file) for file in others or []])
    except UserError as error:
        stays = f"\n\nThe previous dataset was kept: {describe_dataset(former)}" if former else ""
        return {"dataset_summary": show_refusal(error) + stays}
    if former:
        found = carry_over_captions(former, found)
        datasets.save_dataset(found)
    return show_dataset(found, trigger)


def offer_zip(folder: str) -> Any:
    """Return the button that offers the dataset as a zip."""
    return gr.update(
        value=str(export_zip(open_dataset(folder), create_folder() / "dataset.zip")), visible=True
    )


def show_dataset(dataset: Dataset, trigger: str) -> dict[str, Any]:
    """Return what the page shows of a dataset, by `OUTPUT_NAMES`."""
    own = [sample for sample in dataset.samples if not sample.regularisation]
    return {
        "data": str(dataset.folder),
        "dataset_summary": describe_dataset(dataset),
        "table": [[sample.file, sample.name, sample.caption] for sample in own],
        "advice": describe_captions(dataset, trigger),
        "zip": offer_zip(str(dataset.folder)),
        "undo": gr.update(visible=has_undo(dataset.folder)),
        "question": gr.update(visible=False),
    }


def describe_dataset(dataset: Dataset) -> str:
    """Describe the dataset for a person; nothing that was left out is silent."""
    own = [sample for sample in dataset.samples if not sample.regularisation]
    captions = sum(bool(sample.caption) for sample in own)
    lines = [
        f"**{len(own)} images**, {captions} with a caption"
        + (
            f", and {len(dataset.samples) - len(own)} for regularisation"
            if len(dataset.samples) > len(own)
            else ""
        )
        + "."
    ]
    lines += [f"- {escape_markdown(note)}" for note in dataset.notes]
    if dataset.skipped:
        lines.append(f"- **Skipped files: {len(dataset.skipped)}**")
        lines += [
            f"  - {escape_markdown(each.name)}: {escape_markdown(each.reason)}"
            for each in dataset.skipped[:MAX_SHOWN_SKIPPED]
        ]
        lines += (
            [f"  - and {len(dataset.skipped) - MAX_SHOWN_SKIPPED} more"]
            if len(dataset.skipped) > MAX_SHOWN_SKIPPED
            else []
        )
    return "\n".join(lines)


def describe_captions(dataset: Dataset, trigger: str) -> str:
    """Describe what the captions will teach, and the tags in them."""
    tags = ", ".join(
        f"{escape_markdown(tag)} ({count})"
        for tag, count in list(count_tags(dataset).items())[:MAX_SHOWN_TAGS]
    )
    lines = [f"- {escape_markdown(line)}" for line in advise_captions(dataset, trigger)]
    return "\n".join([*lines, "", f"**Tags:** {tags}" if tags else ""])
