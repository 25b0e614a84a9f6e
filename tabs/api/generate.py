"""The named endpoints of Generate, the same for gradio_client, scripts and curl.

Everything else is private. A long job yields nothing new after each of its steps: only there can
Gradio stop it, once its client is gone or has cancelled it.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from core.generate import outputs, request
from core.generate.notes import list_notes
from core.generate.stages.hires import output_size
from core.models import bases, embedding_library
from core.prompts import png_metadata
from core.prompts.grammar import CHUNK_LENGTH
from core.runtime import gpu, torch_thread
from core.schema.errors import UserError
from core.schema.events import Failed, Picture
from core.schema.records import read_form, record
from tabs.api.inputs import build_input
from tabs.server.page_files import create_folder, save_result
from tabs.shared.checks import make_request_validator, translate_errors
from tabs.shared.forms import takes


@takes(request.PictureForm)
def generate(form: request.PictureForm) -> Iterator[tuple[Any, Any]]:
    """Generate images. Parameters that are left out are the preset's.

    `model` is a name in the list of models, a checkpoint of one's own, or a Hub id; without it, the
    preset's is taken. Without a preset, it is the one that fits the model, or nano's.
    Without a seed, or with -1, it is random. `loras` is a list such as [{"lora": "name in the LoRA
    library", "strength": 1.5, "blocks": "STYLE"}]; `lora_file` is an uploaded one. `hires`,
    `detail`, `expand` and `grain` are true, false, or those of their settings that are not the
    preset's: {"factor": 1.5}.

    Returns the PNG files, with their settings inside, and a report: seeds, prompt, negative, model,
    loras, size, seconds, warnings.
    """
    form = request.resolve_seed(form)
    folder, begin, files, notes = create_folder(), time.monotonic(), [], []
    with translate_errors():
        kept_in = outputs.find_outputs()
        request.fill_form(form)  # whatever is not allowed is refused before torch is waited for
        expansion = torch_thread.run_on_torch_thread(request.expand_request, form)
        full = request.replace_prompt(form, expansion.prompt) if expansion else form
        cells = request.build_cells(full, unexpanded_prompt=form.prompt if expansion else None)
        warnings = list_notes(form, cells)
        for event in gpu.generate_on_gpu(cells):
            if isinstance(event, Failed):
                raise UserError(None, event.message)
            if isinstance(event, Picture):
                files.append(save_result(event, folder))
                _, refused = outputs.keep_picture(Path(files[-1]), event.cell.request, kept_in)
                notes += [*event.notes, *(note for note in refused if note not in notes)]
            yield gr.skip(), gr.skip()
    first = cells[0].request
    tokens = bases.count_prompt_tokens(first.prompt, first.embeddings)
    too_long = f"prompt: {tokens} tokens; over {CHUNK_LENGTH}, the prompt is split into chunks."
    report = {
        "seeds": [cell.request.seed for cell in cells],
        "prompt": first.prompt,
        "negative": first.negative,
        "model": first.model,
        "loras": [
            {"lora": Path(use.path).stem, **{k: v for k, v in vars(use).items() if k != "path"}}
            for use in first.loras
        ],
        "size": list(output_size(first)),
        "seconds": round(time.monotonic() - begin, 3),
        "warnings": [*warnings, *([too_long] if tokens > CHUNK_LENGTH else []), *notes],
    }
    yield files, report


@record
class ExpandForm:
    """The request of `/expand_prompt`; a field that is `None` takes the preset's value."""

    prompt: Any
    preset: str = "nano"
    length: Any = None
    temperature: Any = None
    ban: Any = None
    """Patterns, one per line."""
    max_tags: Any = None
    seed: Any = None

    def to_fields(self) -> dict[str, Any]:
        """Return the fields of a `PictureForm` that expands the prompt."""
        settings = {name: getattr(self, name) for name in ("length", "temperature", "max_tags")}
        settings = {name: value for name, value in settings.items() if value is not None}
        if self.ban is not None:
            settings["ban"] = self.ban.splitlines() if isinstance(self.ban, str) else self.ban
        return {"prompt": self.prompt, "preset": self.preset, "seed": self.seed, "expand": settings or True}


@takes(ExpandForm)
def expand_prompt(form: ExpandForm) -> dict[str, Any]:
    """Let DanTagGen add tags to a prompt. `ban` holds patterns, one per line.

    Returns the prompt, what was added, its tokens.
    """
    picture_form = read_form(request.PictureForm, form.to_fields())
    with translate_errors():
        expansion = torch_thread.run_on_torch_thread(request.expand_request, picture_form)
    assert expansion is not None
    embeddings = embedding_library.find_countable_embeddings(expansion.prompt)
    return {
        "prompt": expansion.prompt,
        "added": list(expansion.added),
        "tokens": bases.count_prompt_tokens(expansion.prompt, embeddings),
    }


def read_picture(picture: str | None) -> dict[str, Any]:
    """Read the settings back from an image made by Sweetspot or another tool.

    Returns the settings that `/generate` takes, `loras` that the prompt does not name, the `tool` that
    wrote them, `unused` settings by the tool's names, and `lost`: a sentence for each value that
    cannot be read.
    """
    with translate_errors():
        if picture is None:
            raise UserError("picture", "use a PNG, JPEG, WebP or AVIF file.")
        reading = png_metadata.read_infotext(Path(picture))
    return {
        **reading.fields,
        "loras": list(reading.loras),
        "tool": reading.tool,
        "unused": reading.unused,
        "lost": list(reading.lost),
    }


def register_endpoints() -> None:
    """Wire the endpoints, on components that no page shows."""
    call, files, report = (
        gr.Button(visible=False),
        gr.File(file_count="multiple", visible=False),
        gr.JSON(visible=False),
    )
    asked: dict[str, Any] = {
        "prompt": build_input(gr.Textbox),
        "preset": build_input(gr.Textbox),
        "negative": build_input(gr.Textbox),
    }
    asked |= {name: build_input(gr.Number) for name in ("width", "height", "steps", "cfg", "seed", "count")}
    asked |= {
        "loras": build_input(gr.JSON),
        "lora_file": gr.File(file_types=[".safetensors"], visible=False),
        "lora_strength": build_input(gr.Number),
    }
    asked |= {name: build_input(gr.JSON) for name in ("hires", "detail", "expand", "grain")}
    # New parameters come last: whoever sends values by their places goes on.
    asked |= {name: build_input(gr.Textbox) for name in ("model", "sampler", "schedule")}
    asked |= {name: build_input(gr.Number) for name in ("clip_skip", "cfg_rescale")}
    call.click(
        generate,
        inputs_kwargs=asked,
        outputs=[files, report],
        validator=make_request_validator(tuple(asked)),
        concurrency_id="gpu",
        concurrency_limit=1,
        api_name="generate",
    )
    wanted: dict[str, Any] = {
        "prompt": build_input(gr.Textbox),
        "preset": build_input(gr.Textbox, "nano"),
        "length": build_input(gr.Textbox),
        "temperature": build_input(gr.Number),
        "ban": build_input(gr.Textbox),
        "max_tags": build_input(gr.Number),
        "seed": build_input(gr.Number),
    }
    call.click(
        expand_prompt,
        inputs_kwargs=wanted,
        outputs=report,
        validator=make_request_validator(
            tuple(wanted), lambda values: read_form(ExpandForm, values).to_fields()
        ),
        concurrency_id="gpu",
        concurrency_limit=1,
        api_name="expand_prompt",
    )
    picture = gr.File(file_types=[".png", ".jpg", ".jpeg", ".webp", ".avif"], visible=False)
    call.click(read_picture, inputs_kwargs={"picture": picture}, outputs=report, api_name="read_picture")
