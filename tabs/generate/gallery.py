"""The gallery of the Generate tab, and what stands below it: settings, before and after, send to.

All of it belongs to one image: the one that a person chose, else the last one made.
"""

from pathlib import Path
from typing import Any

import gradio as gr

from core.generate import request
from core.prompts.png_metadata import get_infotext, read_infotext
from core.schema.events import Picture
from tabs.generate.send_buttons import build_send_buttons
from tabs.server import page_files
from tabs.shared.checks import QUIET_OPTIONS, translate_errors
from tabs.shared.updates import answer_by_name

SHOWN_NAMES = ("settings", "compare", "picture")
"""The components that show one image of the gallery, and the state of which it is."""
# While a person chooses one image after another, the last choice counts.
CHOICE_OPTIONS: dict[str, Any] = {**QUIET_OPTIONS, "trigger_mode": "always_last"}


def build_panel() -> dict[str, Any]:
    """Build the gallery and what belongs to its chosen image: components by name.

    `made` holds the gallery's images without previews: what stays after a Stop or an error. `chosen`
    is the place of the one that a person chose, `picture` the file whose settings are shown.
    """
    c: dict[str, Any] = {}
    c["gallery"] = gr.Gallery(
        label="Images",
        buttons=["download", "download_all", "fullscreen"],
        columns=2,
        height="max-content",
        object_fit="contain",
        format="png",  # webp would drop the settings
        elem_id="gallery",
    )
    c["compare"] = gr.ImageSlider(label="Before / after", visible=False, interactive=False, elem_id="compare")
    c["settings"] = gr.Textbox(
        label="Settings of the image",
        lines=3,
        max_lines=8,
        buttons=["copy"],
        interactive=False,
        elem_id="settings",
    )
    with gr.Row():
        c |= build_send_buttons("gallery")
    c["last_seed"] = gr.State(request.RANDOM_SEED)
    c["made"], c["chosen"], c["picture"] = gr.State([]), gr.State(None), gr.State("")
    return c


def wire(c: dict[str, Any]) -> None:
    """Connect the gallery with what belongs to its chosen image."""
    shown = {name: c[name] for name in SHOWN_NAMES}
    c["gallery"].select(
        inputs=[c["made"]],
        **answer_by_name(_choose_picture, {**shown, "chosen": c["chosen"], "last_seed": c["last_seed"]}),
        **CHOICE_OPTIONS,
    )
    c["gallery"].preview_close(lambda: None, None, c["chosen"], **QUIET_OPTIONS)
    c["made"].change(
        inputs=[c["made"], c["chosen"]], **answer_by_name(_show_picture, shown), **CHOICE_OPTIONS
    )


def keep_before(event: Picture, file: Path) -> None:
    """Keep what the finished image in `file` was before hires and details, as large as it is now."""
    if event.before:
        before = _locate_before(file)
        before.parent.mkdir(parents=True, exist_ok=True)
        event.before.resize(event.image.size).save(before)


def _locate_before(file: Path) -> Path:
    return page_files.locate_copies(file) / "before.png"


def _choose_picture(made: list[str], event: gr.SelectData) -> dict[str, Any]:
    """Return what the page shows of the image that was pressed in the gallery.

    One that is still on its way has no settings, and counts as not chosen. The path that a client sends
    is only compared.
    """
    try:
        place = made.index(event.value["image"]["path"])
    except (LookupError, TypeError, ValueError):
        return {"chosen": None}
    with translate_errors():
        seed = read_infotext(Path(made[place])).fields["seed"]
        return {"chosen": place, "last_seed": seed, **_show_picture(made, place)}


def _show_picture(made: list[str], chosen: int | None) -> dict[str, Any]:
    """Return what belongs to the chosen image, else to the last one, with a label that says which it is."""
    if not made:
        return {}
    place = len(made) - 1 if chosen is None else min(chosen, len(made) - 1)
    which = "the image" if len(made) == 1 else f"image {place + 1} of {len(made)}"
    file = Path(made[place])
    before = _locate_before(file) if file.is_file() else file  # it may be cleaned up already
    pair = (str(before), str(file)) if before != file and before.is_file() else None
    return {
        "settings": gr.update(value=get_infotext(file), label=f"Settings of {which}"),
        "compare": gr.update(value=pair, visible=pair is not None, label=f"Before / after of {which}"),
        "picture": str(file),
    }
