"""What a run looks like by now: its sentence, its curve, its film, its files; and one of them in the Sweep tab."""

from pathlib import Path
from typing import Any

import gradio as gr

from core import charts, limits
from core.data import dataset as datasets
from core.device import on_zero_gpu
from core.markdown import warned
from core.train import owner, runs
from core.train.folder import Folder
from core.train.preview import prompts, strengths
from core.train.run import Run, read
from tabs import caller
from tabs.files import placed

SHOWN = ("status", "losses", "film", "lora", "checkpoints", "stop", "resume", "timer", "seen")
DRAWINGS = 40  # of the curves, in a run
NOTES = 3  # that are shown, the last ones


def watched(name: str | None, seen: Any) -> tuple[Any, ...]:
    """The run as it stands; drawn anew only where something is new."""
    folder = caller.known(name)
    if folder is None:
        return "Ready." if not name else "⚠️ This run is not there any more.", *(gr.skip() for _ in SHOWN[1:-2]), gr.Timer(active=False), None
    status, run = runs.status(folder), read(folder)
    # A drawing costs what a step does: at most so many, and the film only with a new picture.
    now = [folder.name, status.state, status.step * DRAWINGS // status.steps, len(status.checkpoints), status.lora, len(status.previews)]
    goes = status.state in ("waiting", "running", "stopping")
    tail = [gr.update(interactive=goes), gr.update(interactive=status.state in ("stopped", "failed")), gr.Timer(active=goes), now]
    if now == seen:
        return _sentence(status, run, folder), *(gr.skip() for _ in range(4)), *tail
    said = folder.said()
    kinds = {kind: [line for line in said if line["kind"] == kind] for kind in ("loss", "validation")}
    drawn = charts.losses(f"{run.name} on {run.model}", run.settings.steps, kinds["loss"], kinds["validation"]) if kinds["loss"] else None
    same_film = seen and (seen[0], seen[-1]) == (now[0], now[-1])
    film = gr.skip() if same_film else gr.update(value=_film(run, folder), visible=True) if status.previews else gr.update(visible=False)
    place = owner.shown(folder)
    files = [placed(folder.loras / file, place) for file in (*status.checkpoints, *([status.lora] if status.lora else []))]
    names = [file.name for file in files]
    return (
        _sentence(status, run, folder),
        gr.update(value=drawn, visible=drawn is not None),
        film,
        gr.update(value=[str(file) for file in files] or None, visible=bool(files)),
        gr.update(choices=names, value=names[-1] if names else None, visible=bool(names)),
        *tail,
    )


def _sentence(status: runs.Status, run: Run, folder: Folder) -> str:
    """How it stands, in one line; below it, what it last went on without."""
    return "\n\n".join([_state(status, run, folder), *map(warned, status.notes[-NOTES:])])


def _state(status: runs.Status, run: Run, folder: Folder) -> str:
    at = f"Step {status.step} of {status.steps}" + (f" · loss {status.loss:.4f}" if status.loss is not None else "")
    match status.state:
        case "waiting":
            return "Waiting for the Job's hardware." if folder.is_away() else "Waiting for its turn: another run trains."
        case "running":
            left = f" · about {status.seconds_left:.0f} s left" if status.seconds_left is not None else ""
            return f"{at}{left} · {folder.memory() / 2**30:.1f} GB" if status.step else "Preparing pictures and model …"
        case "stopping":
            return f"{at} · stopping after this step …"
        case "done":
            return f"**Done.** {at}. `{run.name}.safetensors` is expected to work at {run.settings.expected_strength:g}: open it in Sweep to know."
        case "failed":
            return warned(status.error or "")
        case _ if not status.step and not folder.asked_to_stop():
            return f"Set up. {at}. Press {resume()} to begin."
        case _:
            return f"Stopped. {at}. Press {resume()} to go on; nothing is lost."


def resume() -> str:
    """What the button is called by which a run goes on: where the GPU is lent, each press is a slice."""
    return "Continue" if on_zero_gpu() else "Resume"


def _film(run: Run, folder: Folder) -> Any:
    """Every preview: a row for each prompt and strength, a column for each step; before the first step the LoRA is nothing."""
    files = {file.name for file in folder.previews.glob("*.png")}
    steps = sorted({int(name[:6]) for name in files})
    rows = [(number, prompt, strength) for number, prompt in enumerate(run.prompts) for strength in strengths(run) if strength]

    def picture(row: int, column: int) -> Path | None:
        number, _, strength = rows[row]
        name = f"{steps[column]:06d}-{number}-{strength if steps[column] else 0:g}.png"
        return folder.previews / name if name in files else None

    return charts.sheet(f"{run.name}: previews by step", [f"strength {s:g} · {prompt}" for _, prompt, s in rows], steps, picture, None)


def into_sweep(name: str | None, file: str | None) -> list[Any]:
    """The chosen LoRA, its trigger in the prompts and its pictures as references, in the Sweep tab."""
    folder = caller.known(name)
    if folder is None or not file or not (folder.loras / Path(file).name).exists():
        raise gr.Error("Choose a LoRA first.")
    run, found, place = read(folder), datasets.load(folder.dataset), owner.shown(folder)
    own = [sample for sample in found.samples if not sample.regularisation][: limits.REFERENCES]
    references = [str(placed(folder.dataset / sample.file, place)) for sample in own]
    return [gr.Tabs(selected="sweep"), str(placed(folder.loras / Path(file).name, place)), "\n".join(prompts(run.model, run.trigger, many=4)), references]
