"""What a person should know before the pictures are made: what is ignored, unusual or missing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core.generate.request import PictureForm, choose_by_seed, fill_values, keep_stages, list_prompts
from core.models import catalogue, embedding_library, lora_facts
from core.prompts.grammar import (
    EXTRA_NETWORK,
    MAX_WEIGHT,
    PART_WEIGHT,
    WEIGHT_END,
    is_lora_tag,
    split_parts,
)
from core.schema.samplers import split_sampler
from core.schema.types import Cell, Hires, Request

ONLY_FIRST_PASS = "hires.prompt: it names no LoRA, so the second pass is made without any, as in A1111."


def list_notes(form: PictureForm, cells: Sequence[Cell]) -> list[str]:
    """Return all that a person should know before the pictures are made, each sentence once."""
    alike = {(cell.request.prompt, cell.request.lora_uses): cell.request for cell in cells}
    seeds = dict.fromkeys(cell.request.seed for cell in cells)
    said = [list_warnings(replace(form, seed=seed, **keep_stages(form))) for seed in seeds]
    said += [list_file_notes(request) for request in alike.values()]
    return list(dict.fromkeys(note for notes in said for note in notes))


def list_warnings(form: PictureForm) -> list[str]:
    """Return a sentence for each value that is allowed, but not advised by the preset's author."""
    preset, values = form.prompt_preset, fill_values(form)
    (low, high), (shortest, longest) = preset.cfg_range, preset.size_range
    warnings = []
    if not low <= values["cfg"] <= high:
        warnings.append(
            f"cfg: {values['cfg']:g} is outside the range of {low:g} to {high:g} recommended for "
            f"{preset.title}."
        )
    for side in ("width", "height"):
        if not shortest <= values[side] <= longest:
            warnings.append(
                f"{side}: {values[side]} is outside the range of {shortest} to {longest} pixels "
                f"recommended for {preset.title}."
            )
        if values[side] % preset.size_step:
            warnings.append(
                f"{side}: {values[side]} is no multiple of {preset.size_step}, as recommended for "
                f"{preset.title}."
            )
    width, height, beyond = values["width"], values["height"], preset.ultrawide_beyond
    if beyond and max(width, height) > beyond and width < 2 * height:
        warnings.append(f"{width} x {height}: sides beyond {beyond} are for ultrawide images only.")
    named = split_sampler(form.sampler)[1] if form.sampler else None
    if named and named != values["schedule"]:
        warnings.append(f"schedule: {values['schedule']} is used, not {named} of {form.sampler!r}.")
    hires = form.hires or Hires()
    own = [name for name in ("prompt", "negative", "sampler", "schedule", "cfg") if getattr(hires, name)]
    if own and hires.denoise == 0:
        warnings.append(f"hires.denoise: at 0 there is no second pass; ignored its {', '.join(own)}.")
    for field, text in list_prompts(values).items():
        warnings += _list_text_warnings(field, text, values["seed"])
    return warnings


def _list_text_warnings(field: str, template: str, seed: int) -> list[str]:
    """Return a sentence for each part of a text that does not reach the picture as it is written."""
    chosen, positive, warnings = choose_by_seed(template, seed, field), field.endswith("prompt"), []
    tags = [match[0] for match in EXTRA_NETWORK.finditer(chosen.text)]
    if ignored := [tag[:60] for tag in tags if not (positive and is_lora_tag(tag))][:10]:
        why = "of such tags, only <lora:…> applies" if positive else "LoRAs belong in the prompt"
        warnings.append(f"{field}: ignored {', '.join(ignored)}; {why}.")
    if missing := [name[:60] for name in chosen.missing[:10]]:
        warnings.append(
            f"{field}: {', '.join(missing)} has no file in the wildcards folder; it is read as words."
        )
    if any(abs(float(weight)) > MAX_WEIGHT for weight in WEIGHT_END.findall(chosen.text)):
        warnings.append(f"{field}: a weight beyond {MAX_WEIGHT:g} counts as {MAX_WEIGHT:g}.")
    parts = split_parts(chosen.text) if positive else []
    _, colon, rest = parts[0].text.rstrip().rpartition(":") if len(parts) == 1 else ("", "", "")
    if colon and PART_WEIGHT.fullmatch(rest):
        warnings.append(
            f"{field}: ':{rest.strip()}' at its end is text here; A1111 takes it as the strength of the "
            "whole prompt."
        )
    return warnings


def list_file_notes(request: Request) -> list[str]:
    """Return what a person should know of the files that a picture is made with.

    That is a LoRA made for another family than the base model, LoRAs that hires goes without, the
    embeddings that are used, and words that are the names of those that cannot be.
    """
    applied = request.lora_uses
    files = dict.fromkeys(use.path for use in applied)
    found = [lora_facts.describe_mismatch(Path(path), request.model) for path in files]
    words = ", ".join(dict.fromkeys(use.word[:60] for use in request.embeddings))
    model = catalogue.find_model(request.model)
    return [
        *(sentence for sentence in found if sentence),
        *([ONLY_FIRST_PASS] if request.loras and request.hires_loras == () else []),
        *([f"Embeddings: {words}."] if words else []),
        *embedding_library.list_unused_embeddings(list_prompts(vars(request)), applied, model),
    ]
