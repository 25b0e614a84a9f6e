"""Previews that are a small sweep, made by the Generate tab's own code.

The same prompts and seed at strengths 0, 1 and the expected one.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from core.generate.picture_file import save_picture
from core.generate.pipeline import generate
from core.models.lora_library import format_lora_tag
from core.models.preset_match import find_preset
from core.schema.errors import UserError
from core.schema.events import Picture
from core.schema.types import Cell, LoraUse, Request
from core.train.trainer.run_record import Run

PREVIEW_SEED = 1


def list_preview_strengths(run: Run) -> list[float]:
    """Return the strengths of a run's previews, in rising order."""
    return sorted({0.0, 1.0, run.settings.expected_strength})


def make_previews(
    run: Run, lora: Path, step: int, folder: Path, should_stop: Callable[[], bool]
) -> Iterator[Path]:
    """Make the pictures of a step, yielding their files; those at strength 0 are made once.

    Raises `UserError` as `generate` does, and within one denoising step once `should_stop` is true;
    what was made stays.
    """
    cells, files = [], []
    for number, prompt in enumerate(run.prompts):
        for strength in list_preview_strengths(run):
            file = folder / f"{step if strength else 0:06d}-{number}-{strength:g}.png"
            if not file.exists():
                cells.append(Cell(label=file.stem, request=_build_request(run, prompt, strength, lora)))
                files.append(file)
    folder.mkdir(parents=True, exist_ok=True)
    if not cells:
        return
    # `closing` removes the LoRA here, not only when an error's traceback is released.
    with closing(generate(cells)) as events:
        for event in events:
            if should_stop():
                raise UserError(None, "The run was asked to stop.")
            if isinstance(event, Picture):
                request = event.cell.request
                save_picture(event.image, request, files[event.index])
                yield files[event.index]


def _build_request(run: Run, prompt: str, strength: float, lora: Path) -> Request:
    chosen, use = find_preset(run.model), LoraUse(path=str(lora), strength=strength)
    worn = {"prompt": f"{prompt} {format_lora_tag(use)}", "loras": (use,)} if strength else {"prompt": prompt}
    taken = ("negative", "width", "height", "steps", "cfg", "cfg_rescale", "sampler", "schedule")
    shared = {name: getattr(chosen, name) for name in taken}
    return Request(model=run.model, seed=PREVIEW_SEED, **shared, **worn)  # type: ignore[arg-type]
