"""The history of the Generate tab: pictures made before, newest first, with their settings.

At home it shows what is kept in `outputs/`, on a Space what this session made. A client names a
picture by its place on the page only, never by a path.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr

from core.generate import outputs
from core.prompts.png_metadata import get_infotext
from core.schema import limits
from core.schema.errors import UserError
from core.system.device import is_space
from core.system.markdown import escape_markdown
from tabs.generate.send_buttons import build_send_buttons
from tabs.server import page_files
from tabs.shared.checks import QUIET_OPTIONS, READ_OPTIONS, WRITE_OPTIONS, translate_errors
from tabs.shared.updates import answer_by_name

PAGE_SIZE = 24
SPACE_NOTE = (
    "These are the images of this visit; nobody else sees them. They are gone when you reload or close the "
    f"page, and after {limits.UNUSED_AGES['files'][0] // limits.HOUR} hours. Download what you want to keep."
)
NO_INFOTEXT = "The image contains no settings."
SHOW_CHOICE_JS = "() => document.querySelector('#history-image')?.scrollIntoView({block: 'nearest'})"
PAGE_NAMES = ("history_line", "history_grid", "history_newer", "history_older", "history_start")
"""The components that show a page of the history, and the states of what it shows."""
CHOICE_NAMES = ("history_choice", "history_image", "history_settings", "history_ask", "history_delete")
"""The components that show the chosen picture."""


def build_panel() -> dict[str, Any]:
    """Build the panel, closed: components by name."""
    c: dict[str, Any] = {}
    with gr.Accordion("History", open=False, elem_id="history") as c["history"]:
        if is_space():
            gr.Markdown(SPACE_NOTE, elem_id="history-note")
        c["history_line"] = gr.Markdown(elem_id="history-line")
        c["history_grid"] = gr.Gallery(
            show_label=False,
            columns=6,
            height="max-content",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="history-grid",
        )
        with gr.Row():
            for name in ("newer", "older"):
                c[f"history_{name}"] = gr.Button(
                    name.capitalize(), size="sm", min_width=60, interactive=False, elem_id=f"history-{name}"
                )
        with gr.Column(visible=False) as c["history_choice"]:
            c["history_image"] = gr.Image(
                show_label=False,
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="history-image",
            )
            c["history_settings"] = gr.Textbox(
                label="Settings of this image",
                lines=3,
                max_lines=8,
                buttons=["copy"],
                interactive=False,
                elem_id="history-settings",
            )
            with gr.Row():
                c |= build_send_buttons("history")
                c["history_delete"] = gr.Button("Delete", size="sm", min_width=100, elem_id="history-delete")
            with gr.Row(visible=False) as c["history_ask"]:
                c["history_confirm"] = gr.Button(
                    "Delete for good", variant="stop", size="sm", min_width=140, elem_id="history-confirm"
                )
                c["history_keep"] = gr.Button("Keep", size="sm", min_width=100)
    c["history_open"], c["history_start"] = gr.State(False), gr.State(0)
    c["history_shown"] = gr.State([])
    c["history_chosen"] = gr.State("")
    c["session_images"] = gr.State([])
    return c


def wire(c: dict[str, Any], making: Any) -> None:
    """Connect the panel; `making` is the job after which an open history shows the new pictures."""
    session, start = c["session_images"], c["history_start"]
    page = {name: c[name] for name in (*PAGE_NAMES, "history_shown", "history_open")}
    choice = {name: c[name] for name in (*CHOICE_NAMES, "history_chosen")}

    def turn_to(step: int) -> Callable[[list[str], int], dict[str, Any]]:
        return lambda session, start: _show_page(session, start + step)

    for event, handler, inputs in (
        (c["history"].expand, lambda session: {**_show_page(session, 0), "history_open": True}, [session]),
        (c["history_newer"].click, turn_to(-PAGE_SIZE), [session, start]),
        (c["history_older"].click, turn_to(PAGE_SIZE), [session, start]),
        (
            making.then,
            lambda session, is_open: _show_page(session, 0) if is_open else {},
            [session, c["history_open"]],
        ),
    ):
        event(inputs=inputs, **answer_by_name(handler, page), **READ_OPTIONS)
    if is_space():
        c["made"].change(_remember_pictures, [c["made"], session], session, **QUIET_OPTIONS)
    c["history"].collapse(lambda: False, None, c["history_open"], **READ_OPTIONS)
    c["history_grid"].select(
        inputs=[c["history_shown"]], **answer_by_name(_choose_picture, choice), **READ_OPTIONS
    ).success(None, None, None, js=SHOW_CHOICE_JS, **QUIET_OPTIONS)
    for button, is_asked in ((c["history_delete"], True), (c["history_keep"], False)):
        button.click(
            lambda is_asked=is_asked: (gr.update(visible=is_asked), gr.update(visible=not is_asked)),
            None,
            [c["history_ask"], c["history_delete"]],
            **READ_OPTIONS,
        )
    c["history_confirm"].click(
        inputs=[c["history_chosen"], session, start],
        **answer_by_name(_delete_picture, {**page, **choice, "session_images": session}),
        **WRITE_OPTIONS,
    )


def _remember_pictures(made: list[str], session: list[str]) -> list[str]:
    return [*session, *(file for file in made if file not in session)]


def _list_pictures(session: list[str]) -> list[Path]:
    """Return the pictures of the history, newest first; `session` are those that this session made."""
    if kept := outputs.find_outputs():
        return outputs.list_pictures(kept.folder)
    return [file for file in map(Path, reversed(session)) if file.is_file()]


def _show_page(session: list[str], start: int) -> dict[str, Any]:
    """Return what the page shows of the history from the picture at `start` on."""
    with translate_errors():
        found = _list_pictures(session)
    last = max(0, (len(found) - 1) // PAGE_SIZE * PAGE_SIZE)
    start = min(max(0, start), last)
    part = found[start : start + PAGE_SIZE]
    with ThreadPoolExecutor(4) as pool:  # decoding is most of the time, and holds no lock
        small = zip(part, pool.map(page_files.expose_thumbnail, part), strict=True)
    thumbnails = {file: thumbnail for file, thumbnail in small if thumbnail}
    torn = [file.name for file in part if file not in thumbnails]
    place = f"Images {start + 1:,} to {start + len(part):,} of {len(found):,}, newest first."
    line = [place if found else "No images yet."]
    if torn:
        line.append(f"Not an image: {', '.join(torn)}.")
    if kept := outputs.find_outputs():
        line.append(f"They are kept in {kept.folder}.")
    return {
        "history_line": escape_markdown(" ".join(line)),
        "history_grid": gr.update(value=list(thumbnails.values()), selected_index=None),
        "history_newer": gr.update(interactive=start > 0),
        "history_older": gr.update(interactive=start < last),
        "history_start": start,
        "history_shown": [str(file) for file in thumbnails],
    }


def _choose_picture(shown: list[str], event: gr.SelectData) -> dict[str, Any]:
    """Return what the page shows of the picture that was pressed."""
    place = event.index
    with translate_errors():
        if type(place) is not int or not 0 <= place < len(shown):
            raise UserError("image", "close and open the history, and choose one again.")
        file = Path(shown[place])
        if not file.is_file():
            raise UserError("image", f"{file.name} is not there any more.")
        text = get_infotext(file)
        picture = page_files.expose_picture(file)
    return {
        "history_choice": gr.update(visible=True),
        "history_image": str(picture),
        "history_settings": gr.update(value=text or NO_INFOTEXT, label=f"Settings of {file.name}"),
        "history_ask": gr.update(visible=False),
        "history_delete": gr.update(visible=True),
        "history_chosen": str(file),
    }


def _delete_picture(chosen: str, session: list[str], start: int) -> dict[str, Any]:
    """Delete the chosen picture, and return what the page shows then."""
    with translate_errors():
        if not chosen:
            raise UserError("image", "choose one first.")
        file, kept = Path(chosen), outputs.find_outputs()
        copies = page_files.locate_copies(file) if file.exists() else None
        outputs.delete_picture(file, kept.folder if kept else page_files.FILES_FOLDER)
    if copies:
        shutil.rmtree(copies, ignore_errors=True)
    rest = [each for each in session if each != chosen]
    hidden = gr.update(visible=False)
    return {
        **_show_page(rest, start),
        "history_choice": hidden,
        "history_image": None,
        "history_ask": hidden,
        "history_chosen": "",
        "session_images": rest,
    }
