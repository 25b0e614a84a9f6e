"""Previews that are a small sweep: the same prompts and seed at strengths 0, 1 and the expected one, by the Generate tab's own code."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from core import models, presets
from core.events import Picture
from core.generate import generate
from core.infotext import infotext
from core.plan import neutral
from core.record import save_png
from core.shelf import hashes, tag
from core.train.run import Run
from core.types import Cell, LoraUse, Recipe, Request, UserError

SEED = 1


def preset(model: str) -> Recipe:
    """The recipe that pictures of a model are made with."""
    return next((recipe for recipe in presets.recipes().values() if recipe.model == model), next(iter(presets.recipes().values())))


def prompts(model: str, trigger: str, many: int = 2) -> tuple[str, ...]:
    """The preset's neutral prompts, with the trigger behind the subject."""
    return tuple(called(prompt, trigger) for prompt in neutral(preset(model))[:many])


def called(prompt: str, trigger: str) -> str:
    """A prompt with the trigger behind its subject."""
    subject, comma, rest = prompt.partition(", ")
    return f"{subject}, {trigger}{comma}{rest}" if trigger else prompt


def strengths(run: Run) -> list[float]:
    return sorted({0.0, 1.0, run.settings.expected_strength})


def previews(run: Run, lora: Path, step: int, folder: Path, stops: Callable[[], bool]) -> Iterator[Path]:
    """Make the pictures of a step; those at strength 0 are made once.

    Raises `UserError` as `generate`, and within a denoising step where it `stops`; what was made stays.
    """
    cells, files = [], []
    for number, prompt in enumerate(run.prompts):
        for strength in strengths(run):
            file = folder / f"{step if strength else 0:06d}-{number}-{strength:g}.png"
            if not file.exists():
                cells.append(Cell(label=file.stem, request=_request(run, prompt, strength, lora)))
                files.append(file)
    folder.mkdir(parents=True, exist_ok=True)
    if not cells:
        return
    with closing(generate(cells)) as events:  # its LoRA comes off here, not when somebody forgets an error
        for event in events:
            if stops():
                raise UserError("The run was asked to stop.")
            if isinstance(event, Picture):
                request = event.cell.request
                save_png(event.image, files[event.index], infotext(request, models.find(request.model), hashes(request.loras)))
                yield files[event.index]


def _request(run: Run, prompt: str, strength: float, lora: Path) -> Request:
    chosen, use = preset(run.model), LoraUse(path=str(lora), strength=strength)
    worn = {"prompt": f"{prompt} {tag(use)}", "loras": (use,)} if strength else {"prompt": prompt}
    size = {name: getattr(chosen, name) for name in ("negative", "width", "height", "steps", "cfg", "sampler")}
    return Request(model=run.model, seed=SEED, **size, **worn)  # type: ignore[arg-type]
