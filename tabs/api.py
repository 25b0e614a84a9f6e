"""The named endpoints, the same for gradio_client, a script and curl; everything else is private."""

import time
from pathlib import Path
from typing import Any

import gradio as gr

from core import asking, gpu, models, record
from core.prompts import PLACES
from core.types import Failed, Picture, UserError
from tabs.files import new_folder, save
from tabs.widgets import validator


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
) -> tuple[list[str], dict[str, Any]]:
    """Make pictures. Whatever is not given is the preset's; a seed that is not given, or -1, is any.

    Returns the PNG files, with their settings inside, and a report: seeds, prompt, negative, model,
    loras, size, seconds, warnings.
    """
    values = dict(locals())
    cells, folder, begin, files = asking.cells(values), new_folder(), time.monotonic(), []
    for event in gpu.run(cells):
        if isinstance(event, Failed):
            raise gr.Error(event.message)
        if isinstance(event, Picture):
            files.append(save(event, folder)[0])
    first = cells[0].request
    many = models.tokens(first.prompt)
    too_long = [f"prompt: {many} tokens; the model reads the first {PLACES}."] if many > PLACES else []
    return files, {
        "seeds": [cell.request.seed for cell in cells],
        "prompt": first.prompt,
        "negative": first.negative,
        "model": first.model,
        "loras": [],
        "size": [first.width, first.height],
        "seconds": round(time.monotonic() - begin, 3),
        "warnings": asking.advice(values) + too_long,
    }


def read_picture(picture: str) -> dict[str, Any]:
    """Read the settings back from a picture made here, by A1111, Forge or Civitai."""
    try:
        reading = record.read_picture(Path(picture))
    except UserError as error:
        raise gr.Error(str(error)) from error
    return {**reading.fields, "unused": reading.unused}


def endpoints() -> None:
    """Wire the endpoints, on components that no page shows."""
    text, number = (lambda value=None: gr.Textbox(value, visible=False)), (lambda: gr.Number(visible=False))
    call, files, report = gr.Button(visible=False), gr.File(file_count="multiple", visible=False), gr.JSON(visible=False)
    asked: dict[str, Any] = {"prompt": text(), "preset": text("nano"), "negative": text()}
    asked |= {name: number() for name in ("width", "height", "steps", "cfg", "seed", "count")}
    call.click(
        generate,
        inputs_kwargs=asked,
        outputs=[files, report],
        validator=validator(tuple(asked)),
        concurrency_id="gpu",
        concurrency_limit=1,
        api_name="generate",
    )
    picture = gr.File(file_types=[".png", ".jpg", ".jpeg", ".webp"], visible=False)
    call.click(read_picture, inputs_kwargs={"picture": picture}, outputs=report, api_name="read_picture")
