"""What a person filled in for a sweep -> its plan; what is not allowed is said in one sentence before any work."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from core import grid, limits, lora, models, presets, tools
from core.beforehand import is_job
from core.features import VAE
from core.prompts import compose, networks
from core.record import PIXELS
from core.types import LoraUse, Recipe, Request, Sweep, UserError

STRENGTHS = "0-3.5 (+0.25)"
SEEDS = "1-4"


def plan(values: Mapping[str, Any]) -> Sweep:
    """The sweep that is asked for: `lora` (a path), and by name `preset`, `prompts`, `seeds`, `strengths`, `references`, `refine`, `eye`.

    Whatever is not said is the preset's. Raises `UserError` beginning with the field's name.
    """
    preset = values.get("preset") or "nano"
    if preset not in list(presets.recipes()):
        raise UserError(f"preset: {str(preset)[:40]!r} is unknown; it takes {', '.join(presets.recipes())}.")
    recipe = presets.recipes()[preset]
    if not values.get("lora"):
        raise UserError("lora: choose one to sweep.")
    use = LoraUse(path=str(values["lora"]))
    family = lora.file(use.path).family
    if family in ("nano", "SDXL") and (family == "nano") != (models.find(recipe.model).native_size == 128):
        raise UserError(f"lora: {Path(use.path).name} is made for {family}, and {recipe.title} is not of that family; choose another preset.")
    prompts = _prompts(values.get("prompts"), recipe)
    seeds = grid.seeds(_said(values.get("seeds"), SEEDS))
    strengths = grid.strengths(_said(values.get("strengths"), STRENGTHS))
    cells = len(prompts) * len(seeds) * len(strengths)
    if cells > limits.CELLS:
        raise UserError(f"strengths: {len(strengths)} strengths x {len(prompts)} prompts x {len(seeds)} seeds are {cells} pictures; up to {limits.CELLS}.")
    refine = values.get("refine")
    if not isinstance(refine, bool | None):
        raise UserError(f"refine: {str(refine)[:40]!r} is not allowed; it takes true or false.")
    settings = Request(
        model=recipe.model,
        prompt=prompts[0],
        negative=recipe.negative,
        width=recipe.width,
        height=recipe.height,
        steps=recipe.steps,
        cfg=recipe.cfg,
        sampler=recipe.sampler,
        seed=seeds[0],
    )
    for prompt in prompts:
        if problem := limits.problems({"prompt": prompt}):
            raise UserError(f"prompts: {problem['prompt']}")
    eye = values.get("eye") or VAE
    if eye not in eyes():
        raise UserError(f"eye: {str(eye)[:40]!r} is unknown; it takes {', '.join(eyes())}.")
    references = tuple(checked(Path(str(file))) for file in _files(values.get("references")))
    axes = {"prompts": prompts, "seeds": tuple(seeds), "strengths": tuple(strengths)}
    return Sweep(lora=use, settings=settings, eye=eye, references=references, refine=bool(refine), **axes)


def eyes() -> list[str]:
    """Whose activations can be measured."""
    return [VAE, *tools.names("eye")]


def neutral(recipe: Recipe) -> tuple[str, ...]:
    """The preset's own prompts for a sweep: whole, different from each other, without a style."""
    return tuple(compose(recipe, subject=recipe.subject, character="", general=general, quality=recipe.quality) for general in recipe.neutral)


def checked(file: Path) -> str:
    """The path of a picture that can be opened; before the job it is not decoded. Raises `UserError`."""
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.width * picture.height > PIXELS:
                raise UserError(f"references: {file.name} is too large; up to {PIXELS // 10**6} megapixels are read.")
            if is_job():
                picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"references: {file.name} cannot be read as a PNG, JPEG or WebP picture.") from error
    return str(file)


def _prompts(said: Any, recipe: Recipe) -> tuple[str, ...]:
    text = "\n".join(map(str, said)) if isinstance(said, list | tuple) else _said(said, "")
    if len(text) > limits.PROMPT:
        raise UserError(f"prompts: {len(text):,} characters are too many; it takes up to {limits.PROMPT:,}.")
    prompts = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())) or neutral(recipe)
    if tagged := next((prompt for prompt in prompts if networks(prompt)[0] != prompt), None):
        raise UserError(f"prompts: {tagged[:60]!r} has a LoRA of its own, or another <tag:...>; a sweep puts on the one that is swept.")
    if len(prompts) > limits.PROMPTS:
        raise UserError(f"prompts: {len(prompts)} are too many; it takes up to {limits.PROMPTS}, one a line.")
    return prompts


def _said(value: Any, otherwise: str) -> str:
    return otherwise if value is None or not str(value).strip() else str(value)


def _files(said: Any) -> Sequence[Any]:
    files = said if isinstance(said, list | tuple) else [said] if said else []
    if len(files) > limits.REFERENCES:
        raise UserError(f"references: {len(files)} pictures are too many; it takes up to {limits.REFERENCES}.")
    return files
