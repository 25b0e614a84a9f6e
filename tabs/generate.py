"""The Generate tab: a preset's controls, a prompt from its parts, pictures as they come, and its two endpoints."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from core import asking, gpu, limits, models, presets, record
from core.prompts import compose
from core.samplers import SAMPLERS
from core.types import Failed, Picture, Recipe, Step, UserError
from tabs.files import new_folder

PARTS = ("subject", "character", "general", "quality")
RATIOS = {"1:1": (1, 1), "2:3": (2, 3), "3:2": (3, 2), "3:4": (3, 4), "4:3": (4, 3), "9:16": (9, 16), "16:9": (16, 9)}
PLACES = 75
"""CLIP's tokens beside its start and end marks."""


def tab() -> None:
    """Lay out the tab and wire it; call inside a `gr.Tab`."""
    recipes = presets.recipes()
    first = next(iter(recipes.values()))
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            preset = gr.Dropdown([(r.title, r.name) for r in recipes.values()], value=first.name, label="Preset", elem_id="preset")
            with gr.Accordion("About this preset", open=False):
                note = gr.Markdown(_note(first))
            absent = gr.Markdown(models.absence(models.find(first.model)) or "", elem_id="absent")
            parts = {}
            with gr.Row():
                for name, hint in (("subject", "who or what"), ("character", "name, series")):
                    parts[name] = gr.Textbox(getattr(first, name), label=name.capitalize(), placeholder=hint, min_width=140)
            parts["general"] = gr.Textbox(first.general, label="General tags", lines=2)
            parts["quality"] = gr.Textbox(first.quality, label="Quality tags")
            prompt = gr.Textbox(_whole(first), label="Prompt", info="Put together from the parts above; change it as you like.", lines=3, elem_id="prompt")
            count_of_tokens = gr.Markdown(_tokens(_whole(first)), elem_id="tokens")
            negative = gr.Textbox(first.negative, label="Negative prompt", lines=1, max_lines=3)
            with gr.Row():
                sampler = gr.Dropdown(list(SAMPLERS), value=first.sampler, label="Sampler", min_width=140)
                steps = gr.Slider(1, limits.STEPS[1], first.steps, step=1, label="Steps", min_width=140)
            cfg = gr.Slider(*first.cfg_range, first.cfg, step=0.25, label="CFG")
            ratio = gr.Radio(list(RATIOS), value="1:1", label="Aspect ratio", elem_id="ratio")
            with gr.Row():
                width = gr.Slider(*first.size_range, first.width, step=first.size_step, label="Width", min_width=140, elem_id="width")
                height = gr.Slider(*first.size_range, first.height, step=first.size_step, label="Height", min_width=140, elem_id="height")
            with gr.Row():
                with gr.Column(min_width=140):
                    seed = gr.Number(asking.RANDOM, label="Seed", info="-1 takes a new one each time", precision=0, elem_id="seed")
                    with gr.Row():
                        again = gr.Button("Again", size="sm", min_width=60, elem_id="again")
                        anew = gr.Button("Random", size="sm", min_width=60)
                count = gr.Slider(*limits.COUNT, 1, step=1, label="Pictures", info="their seeds count up", min_width=140)
        with gr.Column(scale=6, min_width=320):
            with gr.Row():
                run = gr.Button("Generate", variant="primary", scale=3, elem_id="generate")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
            status = gr.Markdown("Ready.", elem_id="status")
            gallery = gr.Gallery(
                label="Pictures",
                columns=2,
                height=560,
                object_fit="contain",
                format="png",
                buttons=["download", "download_all", "fullscreen"],
                elem_id="gallery",
            )
            settings = gr.Textbox(label="Settings of the last picture", lines=3, max_lines=8, buttons=["copy"], interactive=False, elem_id="settings")
            last_seed = gr.State(asking.RANDOM)

    # The names are `Recipe`'s and `Request`'s, so that a value keeps its name from the preset to the picture.
    controls = {"negative": negative, "sampler": sampler, "steps": steps, "cfg": cfg, "width": width, "height": height}
    asked = {"preset": preset, "prompt": prompt, "seed": seed, "count": count, **controls}

    def fill(name: str) -> dict[Any, Any]:
        recipe = presets.recipes()[name]
        changed: dict[Any, Any] = {part: getattr(recipe, key) for key, part in parts.items()}
        changed |= {control: getattr(recipe, key) for key, control in controls.items()}
        sides = {"minimum": recipe.size_range[0], "maximum": recipe.size_range[1], "step": recipe.size_step}
        changed |= {width: gr.update(value=recipe.width, **sides), height: gr.update(value=recipe.height, **sides)}
        changed[cfg] = gr.update(value=recipe.cfg, minimum=recipe.cfg_range[0], maximum=recipe.cfg_range[1])
        return changed | {
            ratio: "1:1",
            prompt: _whole(recipe),
            note: _note(recipe),
            absent: models.absence(models.find(recipe.model)) or "",
            count_of_tokens: _tokens(_whole(recipe)),
        }

    quiet = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    preset.input(fill, preset, [*parts.values(), *controls.values(), ratio, prompt, note, absent, count_of_tokens], **quiet)
    for part in parts.values():  # while a person types, the last state counts
        part.input(_composed, [preset, *parts.values()], prompt, trigger_mode="always_last", **quiet)
    prompt.change(_tokens, prompt, count_of_tokens, **quiet)
    ratio.input(_sides, [preset, ratio], [width, height], trigger_mode="always_last", **quiet)
    again.click(lambda used: used, last_seed, seed, **quiet)
    anew.click(lambda: asking.RANDOM, None, seed, **quiet)
    making = run.click(
        _make,
        inputs_kwargs=asked,
        outputs=[gallery, status, settings, last_seed],
        validator=_validator(tuple(asked)),
        show_progress="hidden",
        concurrency_id="gpu",
        concurrency_limit=1,
        api_visibility="private",
    )
    stop.click(lambda: "Stopped. What was finished stays.", None, status, cancels=[making], **quiet)
    _endpoints()


def _make(**values: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Run the job for the page: (gallery, status, settings, last seed) after each event."""
    cells, folder = asking.cells(values), new_folder()
    seed = cells[0].request.seed
    done: list[str] = []
    begin = time.monotonic()
    yield [], "Waiting for the model …", "", seed
    for event in gpu.run(cells, previews=True):
        match event:
            case Step():
                place = f" · picture {event.pictures_done + 1} of {event.pictures}" if event.pictures > 1 else ""
                said = f"Step {event.step} of {event.steps}{place} · about {event.seconds_left:.0f} s left"
                yield [*done, *event.previews] if event.previews else gr.skip(), said, gr.skip(), gr.skip()
            case Picture():
                text = record.infotext(event.cell.request, models.find(event.cell.request.model))
                done.append(_saved(event, folder, text))
                yield list(done), f"Picture {len(done)} of {len(cells)} is finished.", text, gr.skip()
            case Failed():
                yield list(done), f"⚠️ {event.message}", gr.skip(), gr.skip()
                raise gr.Error(event.message)
    hints = " ".join(asking.advice(values))
    yield gr.skip(), f"{len(done)} picture{'s' * (len(done) > 1)} in {time.monotonic() - begin:.1f} s. {hints}", gr.skip(), gr.skip()


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
            files.append(_saved(event, folder, record.infotext(event.cell.request, models.find(event.cell.request.model))))
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


def _endpoints() -> None:
    """The named endpoints, on components that no page shows."""
    text, number = (lambda value=None: gr.Textbox(value, visible=False)), (lambda: gr.Number(visible=False))
    call, files, report = gr.Button(visible=False), gr.File(file_count="multiple", visible=False), gr.JSON(visible=False)
    asked = {"prompt": text(), "preset": text("nano"), "negative": text()}
    asked |= {name: number() for name in ("width", "height", "steps", "cfg", "seed", "count")}
    call.click(
        generate,
        inputs_kwargs=asked,
        outputs=[files, report],
        validator=_validator(tuple(asked)),
        concurrency_id="gpu",
        concurrency_limit=1,
        api_name="generate",
    )
    picture = gr.File(file_types=[".png", ".jpg", ".jpeg", ".webp"], visible=False)
    call.click(read_picture, inputs_kwargs={"picture": picture}, outputs=report, api_name="read_picture")


def _validator(names: tuple[str, ...]):
    """Gradio's check before the queue: the first problem of each field, said beside it."""

    def check(**values: Any) -> list[dict[str, Any]]:
        found = asking.problems(values)
        return [gr.validate(name not in found, found.get(name, "")) for name in names]

    return check


def _saved(event: Picture, folder: Path, text: str) -> str:
    file = folder / f"{event.index:02d}-{event.cell.request.seed}.png"
    record.save_png(event.image, file, text)
    return str(file)


def _composed(name: str, *words: str) -> str:
    return compose(presets.recipes()[name], **dict(zip(PARTS, words, strict=True)))


def _whole(recipe: Recipe) -> str:
    return compose(recipe, **{part: getattr(recipe, part) for part in PARTS})


def _note(recipe: Recipe) -> str:
    """What a person should know of the preset and its model."""
    model = models.find(recipe.model)
    return f"{recipe.help.strip()}\n\nLicence of the model: {model.licence}. {model.notice or ''}"


def _tokens(prompt: str) -> str:
    many = models.tokens(prompt[: limits.PROMPT])
    return f"{many} of {PLACES} tokens" + ("" if many <= PLACES else f" · ⚠️ the model reads only the first {PLACES}")


def _sides(name: str, ratio: str) -> tuple[int, int]:
    """The preset's area in another shape, in its steps and within its range."""
    recipe = presets.recipes()[name]
    (across, down), (low, high), step = RATIOS[ratio], recipe.size_range, recipe.size_step
    unit = (recipe.width * recipe.height / (across * down)) ** 0.5
    width, height = (min(high, max(low, round(side * unit / step) * step)) for side in (across, down))
    return width, height
