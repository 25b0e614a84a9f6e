"""The named endpoints, the same for gradio_client, a script and curl; everything else is private.

A long job yields nothing new after each of its steps: only there Gradio stops it, once its client is gone or has cancelled it.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from core import asking, edit, gpu, models, record
from core.events import Failed, Picture
from core.hires import size
from core.lora import file
from core.outcome import outcome
from core.plan import SEEDS, STRENGTHS, plan
from core.prompts import PLACES
from core.sweep import Study
from core.types import UserError
from tabs.files import chosen, filled_folder, new_folder, save, uploaded
from tabs.widgets import refusals, sentences, validator


def generate(
    prompt: str,
    preset: str = "nano",
    negative: str | None = None,
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    cfg: float | None = None,
    seed: int | None = None,
    count: int | None = None,
    clip_skip: int | None = None,
    loras: list | None = None,
    lora_file: str | None = None,
    lora_strength: float | None = None,
    hires: bool | dict | None = None,
    detail: bool | dict | None = None,
    expand: bool | dict | None = None,
    grain: bool | dict | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Make pictures. Whatever is not given is the preset's; a seed that is not given, or -1, is any.

    `loras` is a list such as [{"lora": "name on the shelf", "strength": 1.5, "blocks": "STYLE"}]; `lora_file` is one of your own.
    `hires`, `detail`, `expand` and `grain` are true, false, or those of their settings that are not the preset's:
    {"factor": 1.5}. Returns the PNG files, with their settings inside, and a report: seeds, prompt, negative,
    model, loras, size, seconds, warnings.
    """
    values = {name: value for name, value in locals().items() if value is not None}
    for sentence in asking.problems(values).values():  # the validator has looked, unless somebody went around the queue
        raise gr.Error(sentence)
    values = asking.settled(values)
    folder, begin, files, notes = new_folder(), time.monotonic(), [], []
    with sentences():
        expanded = gpu.lane(asking.expanded, values)
        cells = asking.cells({**values, "prompt": expanded.prompt} if expanded else values, expanded=prompt if expanded else None)
        for event in gpu.run(cells):
            if isinstance(event, Failed):
                raise UserError(event.message)
            if isinstance(event, Picture):
                files.append(save(event, folder)[0])
                notes += event.notes
            yield gr.skip(), gr.skip()
    first = cells[0].request
    many = models.tokens(first.prompt)
    long = [f"prompt: {many} tokens, read in chunks of {PLACES}; stay below {PLACES} for a clear picture."] if many > PLACES else []
    report = {
        "seeds": [cell.request.seed for cell in cells],
        "prompt": first.prompt,
        "negative": first.negative,
        "model": first.model,
        "loras": [{"lora": Path(use.path).stem, **{k: v for k, v in vars(use).items() if k != "path"}} for use in first.loras],
        "size": list(size(first)),
        "seconds": round(time.monotonic() - begin, 3),
        "warnings": asking.advice(values) + long + notes,
    }
    yield files, report


def expand_prompt(
    prompt: str,
    preset: str = "nano",
    length: str | None = None,
    temperature: float | None = None,
    ban: str | None = None,
    max_tags: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Let DanTagGen add tags to a prompt. `ban` holds patterns, one a line. Returns the prompt, what was added, its tokens."""
    with sentences():
        found = gpu.lane(asking.expanded, _expanding(**locals()))
    assert found is not None
    return {"prompt": found.prompt, "added": list(found.added), "tokens": models.tokens(found.prompt)}


def _expanding(prompt: str, preset: str, ban: str | None = None, seed: int | None = None, **said: Any) -> dict[str, Any]:
    """What `/expand_prompt` takes as `core.asking` takes it."""
    settings = {name: value for name, value in said.items() if value is not None}
    if ban is not None:
        settings["ban"] = ban.splitlines() if isinstance(ban, str) else ban
    return {"prompt": prompt, "preset": preset, "seed": seed, "expand": settings or True}


def inspect_lora(lora: str | dict) -> dict[str, Any]:
    """What a LoRA's file says: format, rank, alpha, blocks, trigger, tags, and how large its change is on the loaded model, unless a job has it."""
    with sentences():
        return gpu.inspected(file(chosen(lora)))


def edit_lora(lora: str | dict, multiply: float | None = None, blocks: str | None = None, keep: str | None = None) -> tuple[str, dict[str, Any]]:
    """Rewrite a LoRA: `multiply` is the old strength that becomes 1.0; `blocks` are block weights; `keep` is all, content or style.

    Only alpha changes, and blocks of weight 0 are left out. Returns the new file, in kohya's layout, and its inspection.
    """
    with sentences(), filled_folder() as folder:
        made = edit.edited(file(chosen(lora)), folder, multiply, blocks, keep)
        return str(made), gpu.inspected(file(str(made)))


def sweep(
    lora: str | dict,
    preset: str = "nano",
    prompts: str | None = None,
    seeds: str = SEEDS,
    strengths: str = STRENGTHS,
    references: list | None = None,
    refine: bool = False,
) -> Iterator[tuple[Any, ...]]:
    """Measure at which strengths a LoRA works. `prompts` one a line; `references` are pictures of the wanted style.

    Returns the contact sheet, the curve as rows, a zip of all cells with the report, and the report: onset, sweet_spot,
    breakdown and recommended, each null where it was not seen, and why.
    """
    values = {name: value for name, value in locals().items() if value is not None}
    with sentences():
        study = Study(plan(_sweeping(**values)))
        for event in study.run():
            if isinstance(event, Failed):
                raise UserError(event.message)
            yield tuple(gr.skip() for _ in range(4))
        done = outcome(study, new_folder())
    yield str(done.sheet), done.report["curve"], str(done.archive), done.report


def _sweeping(lora: str | dict, references: list | None = None, **said: Any) -> dict[str, Any]:
    """What `/sweep` takes as `core.plan` takes it."""
    if not isinstance(references, list | None):
        raise UserError("references: it takes a list of uploaded pictures.")
    return {**said, "lora": chosen(lora) if lora else None, "references": [uploaded(each, "references") for each in references or []]}


def read_picture(picture: str | None) -> dict[str, Any]:
    """Read the settings back from a picture made here, by A1111, Forge or Civitai."""
    with sentences():
        if picture is None:
            raise UserError("picture: it takes a PNG, JPEG or WebP file.")
        reading = record.read_picture(Path(picture))
    return {**reading.fields, "unused": reading.unused}


def endpoints() -> None:
    """Wire the endpoints, on components that no page shows."""
    text, number = (lambda value=None: gr.Textbox(value, visible=False)), (lambda: gr.Number(visible=False))
    call, files, report = gr.Button(visible=False), gr.File(file_count="multiple", visible=False), gr.JSON(visible=False)
    asked: dict[str, Any] = {"prompt": text(), "preset": text("nano"), "negative": text()}
    asked |= {name: number() for name in ("width", "height", "steps", "cfg", "seed", "count")}
    asked |= {"loras": gr.JSON(visible=False), "lora_file": gr.File(file_types=[".safetensors"], visible=False), "lora_strength": number()}
    asked |= {name: gr.JSON(visible=False) for name in ("hires", "detail", "expand", "grain")}
    call.click(
        generate,
        inputs_kwargs=asked,
        outputs=[files, report],
        validator=validator(tuple(asked)),
        concurrency_id="gpu",
        concurrency_limit=1,
        api_name="generate",
    )
    wanted: dict[str, Any] = {"prompt": text(), "preset": text("nano"), "length": text(), "temperature": number(), "ban": text()}
    wanted |= {"max_tags": number(), "seed": number()}
    call.click(
        expand_prompt,
        inputs_kwargs=wanted,
        outputs=report,
        validator=validator(tuple(wanted), lambda values: _expanding(**values)),
        concurrency_id="gpu",
        concurrency_limit=1,
        api_name="expand_prompt",
    )
    call.click(inspect_lora, inputs_kwargs={"lora": gr.JSON(visible=False)}, outputs=report, api_name="inspect_lora")
    changed = {"lora": gr.JSON(visible=False), "multiply": number(), "blocks": text(), "keep": text()}
    call.click(edit_lora, inputs_kwargs=changed, outputs=[gr.File(visible=False), report], api_name="edit_lora")
    measured: dict[str, Any] = {"lora": gr.JSON(visible=False), "preset": text("nano"), "prompts": text(), "seeds": text(SEEDS), "strengths": text(STRENGTHS)}
    measured |= {"references": gr.JSON(visible=False), "refine": gr.Checkbox(visible=False)}
    call.click(
        sweep,
        inputs_kwargs=measured,
        outputs=[gr.Image(visible=False, format="png", type="filepath"), gr.JSON(visible=False), gr.File(visible=False), report],
        validator=refusals(tuple(measured), lambda values: plan(_sweeping(**values)), {}),
        concurrency_id="gpu",
        concurrency_limit=1,
        api_name="sweep",
    )
    picture = gr.File(file_types=[".png", ".jpg", ".jpeg", ".webp"], visible=False)
    call.click(read_picture, inputs_kwargs={"picture": picture}, outputs=report, api_name="read_picture")
