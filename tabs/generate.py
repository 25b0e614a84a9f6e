"""The Generate tab: a preset's controls, and pictures as they come."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from core import asking, gpu, limits, models, presets, shelf
from core.events import Failed, Fetch, Opening, Picture, Step
from core.expand import with_tags
from core.markdown import plain, warned
from core.samplers import SAMPLERS
from core.types import Recipe
from tabs import brought, prompt, settings, stages
from tabs.files import new_folder, save
from tabs.widgets import LOOKS, sentences, validator

PARTS = presets.PARTS
RATIOS = {"1:1": (1, 1), "2:3": (2, 3), "3:2": (3, 2), "3:4": (3, 4), "4:3": (4, 3), "9:16": (9, 16), "16:9": (16, 9)}
ASKED = (
    "preset",
    "prompt",
    "negative",
    "sampler",
    "steps",
    "cfg",
    "width",
    "height",
    "seed",
    "count",
    "clip_skip",
    "lora_file",
    "lora_strength",
    *stages.NAMES,
)
"""What a job is made from: the names of `Request`'s fields, from the preset to the picture; a stage's in pieces."""
MADE = ("gallery", "made", "status", "settings", "last_seed", "added", "compare")
"""What shows a job. `made` holds the gallery's pictures without previews: what stays after a Stop or an error."""
FORGET = "() => [{__type__: 'update', choices: [], value: []}]"
STAGES = {"base": "Step", "hires": "Hires: step", "detail": "Details: step"}


class Opened(NamedTuple):
    """How another tab puts a picture's settings into this one."""

    read: Callable[[str, str], tuple[dict[str, Any], str]]
    """(file, preset) -> values by name, and what to say."""
    names: list[str]
    components: list[Any]
    """By `names`."""
    preset: Any
    said: Any


def tab() -> Opened:
    """Lay out the tab and wire it; call inside a `gr.Tab`."""
    first = next(iter(presets.recipes().values()))
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            shown = _controls(first)
        with gr.Column(scale=6, min_width=320):
            shown |= _results()
    quiet = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    latest = {**quiet, "trigger_mode": "always_last"}  # while a person types, the last state counts
    filled = [name for name in _filled(first) if name in shown]
    fill = [shown[name] for name in filled]

    def chosen(preset: str, start: dict[str, str], **texts: str) -> list[Any]:
        values, said = prompt.keep_texts(_filled(presets.recipes()[preset]), start, texts)
        return [said, *(values[name] for name in filled)]

    def loaded(file: str, name: str) -> list[Any]:
        values, said = settings.loaded(file, name, _filled)
        return [said, *(values.get(name, gr.skip()) for name in filled)]

    page_texts = {name: shown[name] for name in ("preset", "start", *prompt.TEXTS)}
    shown["preset"].input(chosen, inputs_kwargs=page_texts, outputs=[shown["kept_texts"], *fill], **quiet)
    shown["load"].upload(loaded, [shown["load"], shown["preset"]], [shown["said"], *fill], **LOOKS)
    shown["keep"].click(
        settings.saved, inputs_kwargs={name: shown[name] for name in (*ASKED, *PARTS, "title")}, outputs=[shown["kept"], shown["said"]], **quiet
    )
    inserted = {name: shown[name] for name in ("preset", "prompt", "start", *PARTS)}
    shown["insert"].click(prompt.insert, inputs_kwargs=inserted, outputs=[shown["prompt"], shown["start"]], **quiet)
    # Tags that were added belong to the prompt they were added to. In the page itself: an answer could come after the next ones.
    gr.on([shown["prompt"].change, shown["other_tags"].click], None, None, shown["added"], js=FORGET, **quiet)
    shown["prompt"].change(prompt.tokens, shown["prompt"], shown["tokens"], **latest)
    shown["ratio"].input(_sides, [shown["preset"], shown["ratio"]], [shown["width"], shown["height"]], **latest)
    shown["again"].click(lambda used: used, shown["last_seed"], shown["seed"], **quiet)
    shown["anew"].click(lambda: asking.RANDOM, None, shown["seed"], **quiet)
    brought.wire(shown, brought.into_file, shown["lora_file"])
    shown["shelf"].input(lambda text, name: f"{text} <lora:{name}:1>", [shown["prompt"], shown["shelf"]], shown["prompt"], **quiet)
    job: dict[str, Any] = {"validator": validator(ASKED, stages.said), "concurrency_id": "gpu", "concurrency_limit": 1, "api_visibility": "private"}
    shown["add_tags"].click(
        _tags, inputs_kwargs={name: shown[name] for name in ASKED}, outputs=[shown["added"], shown["status"]], show_progress="hidden", **job
    )
    making = shown["run"].click(
        _make,
        inputs_kwargs={name: shown[name] for name in (*ASKED, "added")},
        outputs=[shown[name] for name in MADE],
        show_progress="hidden",
        **{**job, "validator": validator((*ASKED, "added"), stages.said), "trigger_mode": "multiple"},  # as in tabs/sweep.py
    )
    making.failure(lambda made: made, shown["made"], shown["gallery"], **quiet)
    stopped = {
        "fn": lambda made: ("Stopped. What was finished stays.", made),
        "inputs": shown["made"],
        "outputs": [shown["status"], shown["gallery"]],
    }
    # Said twice: a step that was on its way to the page may arrive behind the first.
    shown["stop"].click(**stopped, cancels=[making], **quiet).then(**stopped, **quiet)
    names = [*filled, "lora_file", "lora_strength"]
    return Opened(lambda file, name: settings.loaded(file, name, _filled), names, [shown[name] for name in names], shown["preset"], shown["said"])


def _controls(first: Recipe) -> dict[str, Any]:
    """The left side, filled from a recipe: components by name."""
    c: dict[str, Any] = {}
    c["preset"] = gr.Dropdown([(r.title, r.name) for r in presets.recipes().values()], value=first.name, label="Preset", elem_id="preset")
    c["kept_texts"] = gr.Markdown(elem_id="kept-texts")
    with gr.Accordion("About this preset", open=False):
        c["note"] = gr.Markdown(_note(first))
    with gr.Accordion("Load or save settings", open=False):
        c["load"] = gr.File(label="Drop a picture or a saved preset", file_types=[*settings.PICTURES, settings.PRESET], height=110, elem_id="load")
        with gr.Row():
            c["title"] = gr.Textbox(label="Name of your preset", placeholder="my recipe", min_width=140)
            c["keep"] = gr.Button("Save these settings", size="sm", min_width=120, elem_id="keep")
        c["kept"] = gr.File(label="Your preset", interactive=False, visible=False, elem_id="kept")
        c["said"] = gr.Markdown(elem_id="said")
    c["absent"] = gr.Markdown(_absent(first), elem_id="absent")
    c |= prompt.controls(first)
    c["start"] = gr.JSON(_filled(first)["start"], visible=False)  # in the page, which a restart of the studio leaves as it is
    with gr.Row():
        c["sampler"] = gr.Dropdown(list(SAMPLERS), value=first.sampler, label="Sampler", min_width=140)
        c["steps"] = gr.Slider(*limits.STEPS, first.steps, step=1, label="Steps", min_width=140)
    c["cfg"] = gr.Slider(*first.cfg_range, first.cfg, step=0.25, label="CFG")
    c["ratio"] = gr.Radio(list(RATIOS), value="1:1", label="Aspect ratio", elem_id="ratio")
    with gr.Row():
        c["width"] = gr.Slider(*first.size_range, first.width, step=first.size_step, label="Width", min_width=140, elem_id="width")
        c["height"] = gr.Slider(*first.size_range, first.height, step=first.size_step, label="Height", min_width=140, elem_id="height")
    with gr.Row():
        with gr.Column(min_width=140):
            c["seed"] = gr.Number(asking.RANDOM, label="Seed", info="-1 takes a new one each time", precision=0, elem_id="seed")
            with gr.Row():
                c["again"] = gr.Button("Again", size="sm", min_width=60, elem_id="again")
                c["anew"] = gr.Button("Random", size="sm", min_width=60)
        c["count"] = gr.Slider(*limits.COUNT, 1, step=1, label="Pictures", info="their seeds count up", min_width=140)
    info = "2 is how SDXL was made; 1 reads the text encoders' last layer"
    c["clip_skip"] = gr.Radio([2, 1], value=2, label="Clip skip", info=info)
    with gr.Accordion("LoRA", open=False):
        info = f"{limits.STRENGTH[0]:g} to {limits.STRENGTH[1]:g}; the file's own alpha counts"
        c["lora_file"] = gr.File(label="A LoRA of your own", file_types=[".safetensors"], height=110, elem_id="lora")
        c["lora_strength"] = gr.Slider(*limits.STRENGTH, 1, step=0.05, label="Strength", info=info)
        c["shelf"] = gr.Dropdown(shelf.names(), value=None, label="Or one from the shelf", info="goes into the prompt as <lora:name:strength>")
        c |= brought.lora_box("generate-hub")
    return c | stages.controls(first)


def _results() -> dict[str, Any]:
    """The right side: components by name."""
    c: dict[str, Any] = {}
    with gr.Row():
        c["run"] = gr.Button("Generate", variant="primary", scale=3, elem_id="generate")
        c["stop"] = gr.Button("Stop", variant="stop", elem_id="stop")
    with gr.Row():
        info = "what DanTagGen added to the prompt; take away what you do not want"
        c["added"] = gr.Dropdown([], value=[], multiselect=True, label="Added tags", info=info, scale=4, elem_id="added")
        with gr.Column(min_width=100):
            c["add_tags"] = gr.Button("Add tags now", size="sm", elem_id="add-tags")
            c["other_tags"] = gr.Button("Forget them", size="sm")
    c["status"] = gr.Markdown("Ready.", elem_id="status")
    look = {"columns": 2, "height": "max-content", "object_fit": "contain", "format": "png"}  # webp would drop the settings
    c["gallery"] = gr.Gallery(label="Pictures", buttons=["download", "download_all", "fullscreen"], elem_id="gallery", **look)
    c["compare"] = gr.ImageSlider(label="Before and after hires and details", visible=False, interactive=False, elem_id="compare")
    c["settings"] = gr.Textbox(label="Settings of the last picture", lines=3, max_lines=8, buttons=["copy"], interactive=False, elem_id="settings")
    c["last_seed"] = gr.State(asking.RANDOM)
    c["made"] = gr.State([])
    return c


def _filled(recipe: Recipe) -> dict[str, Any]:
    """What choosing a preset changes: component name -> new value or update."""
    low, high = recipe.size_range
    side: dict[str, Any] = {"minimum": low, "maximum": high, "step": recipe.size_step}
    plain = ("negative", "sampler", "steps", *PARTS)
    values = {name: getattr(recipe, name) for name in plain} | {
        "cfg": gr.update(value=recipe.cfg, minimum=recipe.cfg_range[0], maximum=recipe.cfg_range[1]),
        "width": gr.update(value=recipe.width, **side),
        "height": gr.update(value=recipe.height, **side),
        "ratio": None if recipe.width != recipe.height else "1:1",
        "seed": gr.skip(),
        "clip_skip": 2,
        "preset": gr.skip(),
        "prompt": prompt.whole(recipe),
        "tokens": prompt.tokens(prompt.whole(recipe)),
        "note": _note(recipe),
        "absent": _absent(recipe),
        **stages.filled(recipe),
    }
    return values | {"start": {name: values[name] for name in prompt.TEXTS}}


def _tags(**values: Any) -> tuple[Any, str]:
    """Ask DanTagGen, whatever its switch says: the added tags to choose from, and the status."""
    with sentences():
        found = gpu.lane(asking.expanded, {**stages.said(values), "expand": True})
    added = list(found.added)
    return gr.update(choices=added, value=added), f"{len(added)} tags to add; take away what you do not want."


def _make(added: list[str], **values: Any) -> Iterator[tuple[Any, ...]]:
    """Run the job for the page: what `MADE` shows after each event. Until there is a picture, those from before stay."""
    skip = gr.skip()
    values, text = asking.settled(stages.said(values)), values["prompt"]
    if values["expand"] and not added:
        yield _shown(status="Adding tags …")
        tags, _ = _tags(**values)
        added = tags["value"]
        yield _shown(status=f"Added: {plain(', '.join(added)) or 'nothing'}.", added=tags)
    values["prompt"] = with_tags(text, added)
    cells, folder = asking.cells(values, expanded=text if added else None), new_folder()
    done: list[str] = []
    notes: list[str] = []
    begin = time.monotonic()
    yield _shown(status="Waiting for the model …")
    with sentences():
        for event in gpu.run(cells, previews=True):
            match event:
                case Fetch() | Opening():
                    yield _shown(status=brought.arrived(event))
                case Step():
                    place = f" · picture {event.pictures_done + 1} of {event.pictures}" if event.pictures > 1 else ""
                    said = f"{STAGES[event.stage]} {event.step} of {event.steps}{place} · about {event.seconds_left:.0f} s left"
                    yield _shown(gallery=[*done, *event.previews] if event.previews else skip, status=said)
                case Picture():
                    file, settings_text = save(event, folder)
                    done.append(file)
                    notes += [note for note in event.notes if note not in notes]
                    pair = (event.before.resize(event.image.size), event.image) if event.before else None
                    yield _shown(
                        gallery=list(done),
                        made=list(done),
                        status=f"Picture {len(done)} of {len(cells)} is finished.",
                        settings=settings_text,
                        last_seed=cells[0].request.seed,
                        compare=gr.update(value=pair, visible=pair is not None),
                    )
                case Failed():
                    yield _shown(status=warned(event.message))
                    raise gr.Error(event.message)
    hints = plain(" ".join(asking.advice(values) + notes))
    yield _shown(status=f"{len(done)} picture{'s' * (len(done) > 1)} in {time.monotonic() - begin:.1f} s. {hints}")


def _shown(**updates: Any) -> tuple[Any, ...]:
    """What `MADE` shows, by name; what is not named stays."""
    return tuple(updates.get(name, gr.skip()) for name in MADE)


def _note(recipe: Recipe) -> str:
    """What a person should know of the preset and its model."""
    model = models.find(recipe.model)
    return f"{recipe.help.strip()}\n\nLicence of the model: {model.licence}. {model.notice or ''}"


def _absent(recipe: Recipe) -> str:
    return models.absence(models.find(recipe.model)) or ""


def _sides(name: str, ratio: str) -> tuple[int, int]:
    """The preset's area in another shape, in its steps and within its range."""
    recipe = presets.recipes()[name]
    (across, down), (low, high), step = RATIOS[ratio], recipe.size_range, recipe.size_step
    unit = (recipe.width * recipe.height / (across * down)) ** 0.5
    width, height = (min(high, max(low, round(side * unit / step) * step)) for side in (across, down))
    return width, height
