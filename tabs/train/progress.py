"""Show how a run stands: its sentence, its curve, its film and its files.

One of the files can be opened in the Sweep tab.
"""

from pathlib import Path
from typing import Any

import gradio as gr

from core.hub.preflight import enter_preflight
from core.models.preset_match import find_preset
from core.schema.errors import UserError
from core.sweep import charts
from core.system.device import is_zerogpu
from core.system.markdown import format_warning
from core.train import access, runs
from core.train.trainer.previews import list_preview_strengths
from core.train.trainer.run_folder import RunFolder
from core.train.trainer.run_record import Run, read_run
from tabs.server import visitor
from tabs.server.page_files import expose_run_file
from tabs.shared.model_choices import PRESET_MODEL
from tabs.shared.references import list_run_images

OUTPUT_NAMES = ("status", "losses", "film", "lora", "checkpoints", "stop", "resume", "timer", "seen")
MAX_DRAWINGS = 40  # of the curves, in a run
MAX_NOTES = 3  # that are shown, the last ones


def show_run(name: str | None, seen: Any) -> dict[str, Any]:
    """Return the run as it stands, by `OUTPUT_NAMES`.

    It is drawn again only where something is new.
    """
    folder = visitor.find_run_or_none(name)
    if folder is None:
        said = "Ready." if not name else "⚠️ This run no longer exists."
        return {"status": said, "timer": gr.Timer(active=False), "seen": None}
    try:
        status, run = runs.read_status(folder), read_run(folder)
    except UserError as error:  # its files are damaged
        return {"status": format_warning(str(error)), "timer": gr.Timer(active=False), "seen": None}
    # A drawing costs as much as a step: there are at most `MAX_DRAWINGS`, and the film is only
    # drawn with a new picture.
    now = [
        folder.name,
        status.state,
        status.step * MAX_DRAWINGS // status.steps,
        len(status.checkpoints),
        status.lora,
        len(status.previews),
    ]
    goes = status.state in ("waiting", "running", "stopping")
    answer: dict[str, Any] = {
        "status": _describe_status(status, run, folder),
        "stop": gr.update(interactive=goes),
        "resume": gr.update(interactive=status.state in ("stopped", "failed")),
        "timer": gr.Timer(active=goes),
        "seen": now,
    }
    if now != seen:
        answer |= {"losses": _show_losses(run, folder), **_show_files(status, folder)}
        if not seen or (seen[0], seen[-1]) != (now[0], now[-1]):
            film = {"value": _draw_film(run, folder)} if status.previews else {}
            answer["film"] = gr.update(visible=bool(film), **film)
    return answer


def _show_losses(run: Run, folder: RunFolder) -> Any:
    said = folder.read_events()
    kinds = {kind: [line for line in said if line["kind"] == kind] for kind in ("loss", "validation")}
    drawn = (
        charts.draw_losses(
            f"{run.name} on {run.model}", run.settings.steps, kinds["loss"], kinds["validation"]
        )
        if kinds["loss"]
        else None
    )
    return gr.update(value=drawn, visible=drawn is not None)


def _show_files(status: runs.RunStatus, folder: RunFolder) -> dict[str, Any]:
    """Return the run's LoRAs, to download and to choose from."""
    place = access.get_public_id(folder)
    files = [
        expose_run_file(folder.loras / file, place)
        for file in (*status.checkpoints, *([status.lora] if status.lora else []))
    ]
    names = [file.name for file in files]
    return {
        "lora": gr.update(value=[str(file) for file in files] or None, visible=bool(files)),
        "checkpoints": gr.update(choices=names, value=names[-1] if names else None, visible=bool(names)),
    }


def _describe_status(status: runs.RunStatus, run: Run, folder: RunFolder) -> str:
    """Describe how the run stands in one line, and below it what it last went on without."""
    return "\n\n".join(
        [_describe_state(status, run, folder), *map(format_warning, status.notes[-MAX_NOTES:])]
    )


def _describe_state(status: runs.RunStatus, run: Run, folder: RunFolder) -> str:
    at = f"Step {status.step} of {status.steps}" + (
        f" · loss {status.loss:.4f}" if status.loss is not None else ""
    )
    match status.state:
        case "waiting":
            return (
                "Waiting for the Job's hardware."
                if folder.is_remote()
                else "Queued: another training is running."
            )
        case "running":
            left = f" · about {status.seconds_left:.0f} s left" if status.seconds_left is not None else ""
            return (
                f"{at}{left} · {folder.read_peak_memory() / 2**30:.1f} GB"
                if status.step
                else "Preparing images and model …"
            )
        case "stopping":
            return f"{at} · stopping after this step …"
        case "done":
            return (
                f"**Done.** {at}. `{run.name}.safetensors` is expected to work at "
                f"{run.settings.expected_strength:g}. Run a sweep to check."
            )
        case "failed":
            return format_warning(status.error or "")
        case _ if not status.step and not folder.is_stop_requested():
            return f"Set up. {at}. Press {get_resume_label()} to start."
        case _:
            return f"Stopped. {at}. Press {get_resume_label()} to continue."


def get_resume_label() -> str:
    """Return the label of the button that continues a run.

    Where the GPU is lent, each press trains a slice.
    """
    return "Continue" if is_zerogpu() else "Resume"


def _draw_film(run: Run, folder: RunFolder) -> Any:
    """Draw every preview: a row for each prompt and strength, a column for each step.

    Before the first step, the LoRA changes nothing.
    """
    files = {file.name for file in folder.previews.glob("*.png")}
    steps = sorted({int(name[:6]) for name in files})
    rows = [
        (number, prompt, strength)
        for number, prompt in enumerate(run.prompts)
        for strength in list_preview_strengths(run)
        if strength
    ]

    def find_preview(row: int, column: int) -> Path | None:
        number, _, strength = rows[row]
        name = f"{steps[column]:06d}-{number}-{strength if steps[column] else 0:g}.png"
        return folder.previews / name if name in files else None

    return charts.draw_contact_sheet(
        f"{run.name}: previews by step",
        [f"strength {s:g} · {prompt}" for _, prompt, s in rows],
        steps,
        find_preview,
        None,
    )


def open_in_sweep(name: str | None, file: str | None) -> dict[str, Any]:
    """Open the chosen LoRA in the Sweep tab.

    The model that it was trained on is chosen there, and its pictures become the references. Raises
    `gr.Error` if no LoRA is chosen.
    """
    folder = visitor.find_run_or_none(name)
    if folder is None or not file or not (folder.loras / Path(file).name).exists():
        raise gr.Error("Choose a LoRA first.")
    run, images = read_run(folder), list_run_images(folder)
    with enter_preflight():  # it waits in no queue
        preset = find_preset(run.model)
    return {
        "tabs": gr.Tabs(selected="sweep"),
        "lora_file": str(expose_run_file(folder.loras / Path(file).name, access.get_public_id(folder))),
        "preset": preset.name,
        "model": PRESET_MODEL if preset.model == run.model else run.model,
        "references": images,
        "found_references": images,
    }
