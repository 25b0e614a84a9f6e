"""The check by a person's eyes: blind pairs and rows of a finished sweep, and what the answers say.

It stands below the Sweep tab, and `python app.py fieldcheck` shows it alone.
"""

import random
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import gradio as gr

from core.schema.errors import UserError
from core.sweep.archive import load_pictures, read_report, replace_report
from core.sweep.field_check import (
    FieldAnswers,
    FinishedSweep,
    PairAnswer,
    RowAnswer,
    Screen,
    answer_pair,
    answer_row,
    describe_field_check,
    parse_finished_sweep,
    plan_field_check,
    summarise_field_check,
)
from core.system.markdown import escape_cell, format_warning
from tabs.server.page_files import create_folder
from tabs.shared.checks import QUIET_OPTIONS, READ_OPTIONS, WRITE_OPTIONS, translate_errors
from tabs.shared.updates import answer_by_name

NO_DIFFERENCE, NONE = "no difference", "none"
WITHOUT = "without the LoRA"
SHOWN_SIDE = 1024
"""Longest side in pixels of a picture that is shown."""
MAX_PROMPT_LENGTH = 300
"""Characters of a prompt that are shown."""
SHOWN_NAMES = ("panel", "task", "pictures", "better", "used", "broken", "message", "check")
ENDED_NAMES = ("summary", "file")
INTRODUCTION = (
    "Judge the finished sweep by eye, without knowing the strengths. It takes about five minutes of "
    "pairs and rows. The answers and how far they agree with the verdict are written into the "
    "report in the zip, with today's date and no name; nothing is sent anywhere."
)


@dataclass(frozen=True, kw_only=True)
class _Check:
    """A check under way."""

    archive: Path
    """The sweep's zip."""
    folder: Path
    """Where the pictures are that the page shows."""
    sweep: FinishedSweep
    screens: tuple[Screen, ...]
    answers: tuple[PairAnswer | RowAnswer, ...] = ()

    @property
    def screen(self) -> Screen:
        return self.screens[len(self.answers)]


def build_panel(result: gr.State) -> None:
    """Lay out the check of a sweep and connect it.

    `result` is `None`, or a finished sweep with its zip as `archive` and its `report`, to which the
    check is added.
    """
    c = _build_components(is_offered=result.value is not None)
    shown = {name: c[name] for name in SHOWN_NAMES}
    ended = {name: c[name] for name in ENDED_NAMES}
    result.change(
        inputs=[result, c["check"]],
        **answer_by_name(_offer_check, {"start": c["start"], **shown, **ended}),
        **QUIET_OPTIONS,
    )
    c["start"].click(inputs=result, **answer_by_name(_start_check, {**shown, **ended}), **READ_OPTIONS)
    c["next"].click(
        inputs=[c["check"], result, c["better"], c["used"], c["broken"]],
        **answer_by_name(_take_answer, {"result": result, **shown, **ended}),
        **WRITE_OPTIONS,
    )
    c["leave"].click(**answer_by_name(_leave_check, shown), **QUIET_OPTIONS)


def _build_components(is_offered: bool) -> dict[str, Any]:
    c: dict[str, Any] = {"check": gr.State(None)}
    c["start"] = gr.Button("Check with your own eyes", visible=is_offered, size="sm", elem_id="field-start")
    with gr.Group(visible=False, elem_id="field-panel") as c["panel"]:
        c["task"] = gr.Markdown(elem_id="field-task", padding=True)
        c["pictures"] = gr.Gallery(
            show_label=False,
            object_fit="contain",
            format="png",
            height="auto",
            buttons=["fullscreen"],
            elem_id="field-pictures",
        )
        c["better"] = gr.Radio(
            ["A", "B", NO_DIFFERENCE], label="Which one is better?", elem_id="field-better"
        )
        c["used"] = gr.CheckboxGroup(
            label="Which ones would you use?",
            info="those in which the LoRA does enough, and the image is good",
            elem_id="field-used",
        )
        c["broken"] = gr.CheckboxGroup(
            label="Which ones are broken?",
            info="beside the image without the LoRA: anatomy, mush, noise, burnt colours, another motif",
            elem_id="field-broken",
        )
        c["message"] = gr.Markdown(elem_id="field-message", padding=True)
        with gr.Row():
            c["next"] = gr.Button("Next", variant="primary", elem_id="field-next")
            c["leave"] = gr.Button("Leave the check", elem_id="field-leave")
    c["summary"] = gr.Markdown(elem_id="field-summary")
    c["file"] = gr.File(
        label="The sweep with its check", interactive=False, visible=False, elem_id="field-file"
    )
    return c


def _offer_check(result: dict[str, Any] | None, check: _Check | None) -> dict[str, Any]:
    """Offer a check of the sweep that is shown, and end one of another sweep."""
    offer = {"start": gr.update(visible=result is not None)}
    if check is None or (result and Path(result["archive"]) == check.archive):
        return offer
    return {**offer, **_leave_check(), "summary": "", "file": gr.update(visible=False)}


def _start_check(result: dict[str, Any]) -> dict[str, Any]:
    """Plan a check of the sweep and show its first screen."""
    with translate_errors():
        archive = Path(result["archive"])
        sweep = parse_finished_sweep(read_report(archive))
        screens = plan_field_check(sweep, random.SystemRandom())
        check = _Check(archive=archive, folder=create_folder(), sweep=sweep, screens=screens)
        return {**_show_screen(check), "summary": "", "file": gr.update(visible=False)}


def _show_screen(check: _Check) -> dict[str, Any]:
    """Return what the page shows of the first screen that has no answer yet."""
    screen, is_pair = check.screen, check.screen.kind == "pair"
    place = (screen.prompt, screen.seed)
    names = [check.sweep.pictures[(strength, *place)] for strength in (0.0, *screen.strengths)]
    letters = ascii_uppercase[: len(screen.strengths)]
    for old in check.folder.iterdir():  # a sweep's images are large, and no screen is shown twice
        old.unlink()
    shown = []
    for label, picture in zip((WITHOUT, *letters), load_pictures(check.archive, names), strict=True):
        # A copy without the name and the metadata, which tell the strength.
        file = check.folder / f"{len(check.answers)}-{len(shown)}.png"
        picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        picture.save(file, compress_level=1)
        shown.append((str(file), label))
    prompt = escape_cell(check.sweep.prompts[screen.prompt][:MAX_PROMPT_LENGTH])
    said = [f"**{len(check.answers) + 1} of {len(check.screens)}** · {prompt}"]
    choices = [*letters, NONE]
    return {
        "panel": gr.update(visible=True),
        "task": "\n\n".join([*([] if check.answers else [INTRODUCTION]), *said]),
        "pictures": gr.update(value=shown, selected_index=None),
        "better": gr.update(value=None, visible=is_pair),
        "used": gr.update(value=[], choices=choices, visible=not is_pair),
        "broken": gr.update(value=[], choices=choices, visible=not is_pair),
        "message": "",
        "check": check,
    }


def _take_answer(
    check: _Check, result: dict[str, Any], better: str | None, used: list[str], broken: list[str]
) -> dict[str, Any]:
    """Keep the answer to a screen and show the next one, or what all answers say."""
    try:
        answer = _read_answer(check, better, used, broken)
    except UserError as error:
        return {"message": format_warning(str(error))}
    check = replace(check, answers=(*check.answers, answer))
    with translate_errors():
        if len(check.answers) < len(check.screens):
            return _show_screen(check)
        found = _write_check(check)
    sentence = f"{describe_field_check(found)} Written into the report in the zip."
    return {
        **_leave_check(),
        "summary": sentence,
        "file": gr.update(value=str(check.archive), visible=True),
        "result": {**result, "report": {**result["report"], "field_check": found}},
    }


def _read_answer(
    check: _Check, better: str | None, used: list[str], broken: list[str]
) -> PairAnswer | RowAnswer:
    """Return the answer to the screen that is shown. Raises `UserError` if it is incomplete."""
    screen, letters = check.screen, dict(zip(ascii_uppercase, check.screen.strengths, strict=False))
    if screen.kind == "pair":
        assert check.sweep.recommended is not None
        if better not in (NO_DIFFERENCE, *letters):
            raise UserError(None, "Choose A, B or no difference.")
        return answer_pair(screen, check.sweep.recommended, letters.get(better or ""))
    for chosen, question in ((used, "you would use"), (broken, "are broken")):
        if not chosen or (NONE in chosen and len(chosen) > 1) or {*chosen} - {NONE, *letters}:
            raise UserError(None, f"Tick those that {question}, or none.")
    if both := sorted({*used} & {*broken} - {NONE}):
        raise UserError(None, f"{', '.join(both)}: ticked as broken, and as one you would use. Choose one.")
    of_use, lost = ([letters[each] for each in chosen if each != NONE] for chosen in (used, broken))
    return answer_row(screen, of_use, lost)


def _write_check(check: _Check) -> dict[str, Any]:
    """Write what the answers say into the report in the zip, and return it."""
    answers = FieldAnswers(
        date=date.today().isoformat(),
        pairs=tuple(each for each in check.answers if isinstance(each, PairAnswer)),
        rows=tuple(each for each in check.answers if isinstance(each, RowAnswer)),
    )
    found = summarise_field_check(answers, check.sweep.breakdown_interval)
    replace_report(check.archive, {**read_report(check.archive), "field_check": found})
    return found


def _leave_check() -> dict[str, Any]:
    """Forget the answers so far."""
    return {"panel": gr.update(visible=False), "check": None}
