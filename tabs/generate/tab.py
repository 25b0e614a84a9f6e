"""The Generate tab: the controls of a preset, and pictures as they come."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from core.generate import outputs, request
from core.generate.notes import list_notes
from core.generate.tag_expander import append_tags
from core.models import catalogue
from core.runtime import gpu, torch_thread
from core.schema import limits, presets
from core.schema.errors import UserError
from core.schema.events import DownloadProgress, Failed, LoadProgress, Picture, Step
from core.schema.records import read_form
from core.schema.samplers import SAMPLERS, SCHEDULES
from core.schema.types import PromptPreset
from core.system.markdown import escape_markdown
from tabs.generate import gallery, history, lora_panel, model, prompt, settings, stages
from tabs.generate.send_buttons import wire_send_buttons
from tabs.server.call_wrapper import show_refusal
from tabs.server.page_files import create_folder, save_result
from tabs.shared import hub_fetch
from tabs.shared.checks import QUIET_OPTIONS, READ_OPTIONS, make_request_validator, translate_errors
from tabs.shared.handoff import GenerateHandoff
from tabs.shared.job_buttons import GPU_OPTIONS, build_job_buttons, wire_stop_button
from tabs.shared.model_choices import find_fitting_preset
from tabs.shared.updates import answer_by_name

PROMPT_PARTS = presets.PROMPT_PARTS
ASPECT_RATIOS = {
    "1:1": (1, 1),
    "2:3": (2, 3),
    "3:2": (3, 2),
    "3:4": (3, 4),
    "4:3": (4, 3),
    "9:16": (9, 16),
    "16:9": (16, 9),
}
INPUT_NAMES = (
    "preset",
    "model",
    "prompt",
    "negative",
    "sampler",
    "schedule",
    "steps",
    "cfg",
    "cfg_rescale",
    "width",
    "height",
    "seed",
    "count",
    "clip_skip",
    "lora_file",
    "lora_strength",
    *stages.CONTROL_NAMES,
)
"""What a job is made from: the fields of `PictureForm`, a stage's settings in pieces."""
MODEL_NAMES = ("model_note", *model.SETTING_NAMES)
"""The components that show what is known of the model and set for it."""
OUTPUT_NAMES = ("gallery", "made", "chosen", "status", "last_seed", "added")
"""The components that show a job."""
# While a person types, the last state counts.
LATEST_OPTIONS: dict[str, Any] = {**QUIET_OPTIONS, "trigger_mode": "always_last"}
CLEAR_TAGS_JS = "() => [{__type__: 'update', choices: [], value: []}]"
PROGRESS_LABELS = {"base": "Step", "hires": "Hires: step", "detail": "Details: step"}


def build_tab() -> GenerateHandoff:
    """Lay out the tab and connect it; call this inside a `gr.Tab`."""
    first = next(iter(presets.get_prompt_presets().values()))
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            shown = _build_controls(first)
        with gr.Column(scale=6, min_width=320):
            shown |= _build_results()
    filled = {name: shown[name] for name in _get_preset_values(first) if name in shown}
    load = _wire_settings(shown, filled)
    _wire_prompt(shown)
    _wire_picture_controls(shown)
    lora_panel.wire(shown)
    history.wire(shown, _wire_jobs(shown))
    gallery.wire(shown)
    sent = [
        wire_send_buttons(shown, place, shown[state], load, _load_settings)
        for place, state in (("gallery", "picture"), ("history", "history_chosen"))
    ]
    return GenerateHandoff(
        _load_settings,
        {name: shown[name] for name in (*filled, *MODEL_NAMES, "lora_file", "lora_strength")},
        shown["preset"],
        shown["settings_message"],
        tuple(sent),
    )


def _wire_settings(c: dict[str, Any], filled: dict[str, Any]) -> dict[str, Any]:
    """Connect presets and files of settings; `filled` is what they fill.

    Returns the options of an event that loads a file's settings.
    """

    def fill_preset(
        preset: PromptPreset, base: str, start: dict[str, str], texts: dict[str, str]
    ) -> dict[str, Any]:
        values, said = prompt.keep_texts(_get_preset_values(preset), start, texts)
        own = {name: values[name] for name in filled}
        return {"kept_texts": said, **own, **model.get_model_values(base, preset)}

    def choose_preset(preset: str, base: str, start: dict[str, str], **texts: str) -> dict[str, Any]:
        return fill_preset(presets.get_prompt_presets()[preset], base, start, texts)

    def choose_model(preset: str, base: str, start: dict[str, str], **texts: str) -> dict[str, Any]:
        if not base:
            return model.get_model_values(base, presets.get_prompt_preset(preset))
        fitting, said = find_fitting_preset(base)
        if fitting.name == preset:
            return {"kept_texts": said, **model.get_model_values(base, fitting)}
        values = fill_preset(fitting, base, start, texts)
        kept = f"{said} {values['kept_texts']}".strip()
        return {**values, "preset": fitting.name, "kept_texts": kept}

    def load_settings(file: str, name: str) -> dict[str, Any]:
        values, said = _load_settings(file, name)
        return {"settings_message": said, **{name: values[name] for name in shown if name in values}}

    shown = {**filled, **{name: c[name] for name in MODEL_NAMES}}
    fetched = model.wire_settings(c)
    for event, choose in (
        (c["preset"].input, choose_preset),
        (c["model"].input, choose_model),
        (fetched.then, choose_model),
    ):
        event(
            inputs_kwargs={
                "base": c["model"],
                **{name: c[name] for name in ("preset", "start", *prompt.TEXT_LABELS)},
            },
            **answer_by_name(choose, {"kept_texts": c["kept_texts"], **shown}),
            **READ_OPTIONS,
        )
    load = answer_by_name(load_settings, {"settings_message": c["settings_message"], **shown})
    for upload in (c["load"], c["dropped"]):
        upload.upload(inputs=[upload, c["preset"]], **load, **READ_OPTIONS)
    c["save_preset"].click(
        settings.save_preset,
        inputs_kwargs={name: c[name] for name in (*INPUT_NAMES, *PROMPT_PARTS, "title")},
        outputs=[c["preset_file"], c["settings_message"]],
        **QUIET_OPTIONS,
    )
    return load


def _wire_prompt(c: dict[str, Any]) -> None:
    """Connect the prompt, its parts and the count of its tokens."""
    c["insert"].click(
        prompt.insert_parts,
        inputs_kwargs={name: c[name] for name in ("preset", "prompt", "start", *PROMPT_PARTS)},
        outputs=[c["prompt"], c["start"]],
        **QUIET_OPTIONS,
    )
    # Suggested tags belong to the prompt that they were suggested for. The browser clears them: an
    # answer of the server could come after the next suggestions.
    gr.on(
        [c["prompt"].change, c["other_tags"].click],
        None,
        None,
        c["added"],
        js=CLEAR_TAGS_JS,
        **QUIET_OPTIONS,
    )
    # Embeddings, and LoRAs that may bring some, are read for it.
    c["prompt"].change(
        prompt.format_token_count, c["prompt"], c["tokens"], **{**READ_OPTIONS, "trigger_mode": "always_last"}
    )


def _wire_picture_controls(c: dict[str, Any]) -> None:
    """Connect aspect ratio and seed."""
    c["ratio"].input(
        _apply_aspect_ratio, [c["preset"], c["ratio"]], [c["width"], c["height"]], **LATEST_OPTIONS
    )
    c["reuse_seed"].click(lambda used: used, c["last_seed"], c["seed"], **QUIET_OPTIONS)
    c["random_seed"].click(lambda: request.RANDOM_SEED, None, c["seed"], **QUIET_OPTIONS)


def _wire_jobs(c: dict[str, Any]) -> Any:
    """Connect the buttons that suggest tags, make pictures and stop; return the event of the pictures."""
    c["add_tags"].click(
        _suggest_tags,
        inputs_kwargs={name: c[name] for name in INPUT_NAMES},
        outputs=[c["added"], c["status"]],
        validator=make_request_validator(INPUT_NAMES, stages.build_form_values),
        **{**GPU_OPTIONS, "trigger_mode": "once"},
    )
    making = c["run"].click(
        inputs_kwargs={name: c[name] for name in (*INPUT_NAMES, "added")},
        **answer_by_name(_generate_pictures, {name: c[name] for name in OUTPUT_NAMES}),
        validator=make_request_validator((*INPUT_NAMES, "added"), stages.build_form_values),
        **GPU_OPTIONS,
    )
    making.failure(lambda made: made, c["made"], c["gallery"], **QUIET_OPTIONS)
    wire_stop_button(
        c["stop"],
        [making],
        lambda made: ("Stopped. Finished images are kept.", made),
        c["made"],
        [c["status"], c["gallery"]],
    )
    return making


def _build_controls(preset: PromptPreset) -> dict[str, Any]:
    """Build the left side, filled from a preset: components by name."""
    c = _build_preset_controls(preset)
    c |= prompt.build_controls(preset)
    # Held in the page, which a restart of the app leaves as it is.
    c["start"] = gr.JSON(_get_preset_values(preset)["start"], visible=False)
    c |= _build_picture_controls(preset) | lora_panel.build_panel()
    return c | stages.build_controls(preset)


def _build_preset_controls(preset: PromptPreset) -> dict[str, Any]:
    """Build preset and model, and the panels to load and save settings: components by name."""
    c: dict[str, Any] = {}
    c["preset"] = gr.Dropdown(
        [(r.title, r.name) for r in presets.get_prompt_presets().values()],
        value=preset.name,
        label="Preset",
        elem_id="preset",
    )
    c["kept_texts"] = gr.Markdown(elem_id="kept-texts")
    c |= model.build_controls(preset)
    with gr.Accordion("About this preset", open=False):
        c["note"] = gr.Markdown(_describe_preset(preset))
    with gr.Accordion("Load or save settings", open=False):
        c["load"] = gr.File(
            label="Drop an image, preset or settings text",
            file_types=settings.SUFFIXES,
            height=110,
            elem_id="load",
        )
        with gr.Row():
            c["title"] = gr.Textbox(label="Preset name", placeholder="my recipe", min_width=140)
            c["save_preset"] = gr.Button("Save as preset", size="sm", min_width=120, elem_id="keep")
        c["preset_file"] = gr.File(label="Your preset", interactive=False, visible=False, elem_id="kept")
        gr.Markdown("You can also drop or paste it anywhere on this tab.")
    with gr.Column(elem_id="dropped"):  # shortcuts.html hides it, and puts there what is dropped or pasted
        c["dropped"] = gr.UploadButton("Load settings", file_types=settings.SUFFIXES)
    c["settings_message"] = gr.Markdown(elem_id="said")
    return c


def _build_picture_controls(preset: PromptPreset) -> dict[str, Any]:
    """Build sampler, size, seed and count, filled from a preset: components by name."""
    c: dict[str, Any] = {}
    with gr.Row():
        c["sampler"] = gr.Dropdown(list(SAMPLERS), value=preset.sampler, label="Sampler", min_width=140)
        c["schedule"] = gr.Dropdown(list(SCHEDULES), value=preset.schedule, label="Schedule", min_width=140)
    c["steps"] = gr.Slider(*limits.STEPS, preset.steps, step=1, label="Steps")
    with gr.Row():
        c["cfg"] = gr.Slider(*preset.cfg_range, preset.cfg, step=0.25, label="CFG scale", min_width=140)
        c["cfg_rescale"] = gr.Slider(
            0, 1, preset.cfg_rescale, step=0.05, label="CFG rescale", info="0 = off", min_width=140
        )
    c["ratio"] = gr.Radio(list(ASPECT_RATIOS), value="1:1", label="Aspect ratio", elem_id="ratio")
    with gr.Row():
        for side in ("width", "height"):
            c[side] = gr.Slider(
                *preset.size_range,
                getattr(preset, side),
                step=limits.SIDE_STEP,
                label=side.capitalize(),
                min_width=140,
                elem_id=side,
            )
    with gr.Row():
        with gr.Column(min_width=140):
            # As text, since a page's own numbers are exact only below 2^53.
            c["seed"] = gr.Textbox(
                str(request.RANDOM_SEED), label="Seed", info="-1 = random", max_lines=1, elem_id="seed"
            )
            with gr.Row():
                c["reuse_seed"] = gr.Button("Reuse seed", size="sm", min_width=60, elem_id="again")
                c["random_seed"] = gr.Button("Random seed", size="sm", min_width=60)
        c["count"] = gr.Slider(
            *limits.PICTURE_COUNT, 1, step=1, label="Batch count", info="seed, seed+1, …", min_width=140
        )
    info = "2 is SDXL's default; 1 uses the last layer"
    c["clip_skip"] = gr.Radio([2, 1], value=2, label="Clip skip", info=info)
    return c


def _build_results() -> dict[str, Any]:
    """Build the right side: components by name."""
    c = build_job_buttons("Generate", "generate", "stop")
    with gr.Row():
        info = "from DanTagGen; remove any you do not want"
        c["added"] = gr.Dropdown(
            [], value=[], multiselect=True, label="Suggested tags", info=info, scale=4, elem_id="added"
        )
        with gr.Column(min_width=100):
            c["add_tags"] = gr.Button("Suggest tags", size="sm", elem_id="add-tags")
            c["other_tags"] = gr.Button("Clear", size="sm")
    c["status"] = gr.Markdown("Ready.", elem_id="status")
    return c | gallery.build_panel() | history.build_panel()


def _get_preset_values(preset: PromptPreset) -> dict[str, Any]:
    """Return what choosing a preset changes: component name -> new value or update."""
    low, high = preset.size_range
    side: dict[str, Any] = {"minimum": low, "maximum": high}
    plain = ("negative", "sampler", "schedule", "steps", "cfg_rescale", *PROMPT_PARTS)
    values = {name: getattr(preset, name) for name in plain} | {
        "cfg": gr.update(value=preset.cfg, minimum=preset.cfg_range[0], maximum=preset.cfg_range[1]),
        "width": gr.update(value=preset.width, **side),
        "height": gr.update(value=preset.height, **side),
        "ratio": None if preset.width != preset.height else "1:1",
        "seed": gr.skip(),
        "clip_skip": 2,
        "preset": gr.skip(),
        "model": gr.skip(),
        "prompt": prompt.compose_start_prompt(preset),
        "tokens": prompt.format_token_count(prompt.compose_start_prompt(preset)),
        "note": _describe_preset(preset),
        **stages.get_stage_values(preset),
    }
    return values | {"start": {name: values[name] for name in prompt.TEXT_LABELS}}


def _load_settings(file: str, preset: str) -> tuple[dict[str, Any], str]:
    """Return what a file of settings puts into the controls, its model's own included, and what to say."""
    values, said = settings.load_settings(file, preset, _get_preset_values)
    if values:
        values |= model.choose_model(values["model"], presets.get_prompt_preset(values["preset"]))
    return values, said


def _suggest_tags(**values: Any) -> tuple[Any, str]:
    """Ask DanTagGen for tags, whether its switch is on or off.

    Returns the tags, as an update to choose from, and the status.
    """
    fields = stages.build_form_values({**values, "expand": True})
    return _suggest(read_form(request.PictureForm, fields))


def _suggest(form: request.PictureForm) -> tuple[Any, str]:
    """Return the tags that DanTagGen adds, as an update to choose from, and the status."""
    with translate_errors():
        expansion = torch_thread.run_on_torch_thread(request.expand_request, form)
    added = list(expansion.added)
    return gr.update(choices=added, value=added), f"{len(added)} tag{'s' * (len(added) != 1)} suggested."


def _generate_pictures(added: list[str], **values: Any) -> Iterator[dict[str, Any]]:
    """Run the job for the page, and yield after each event what changes of `OUTPUT_NAMES`.

    Until there is a picture, those of the job before stay.
    """
    with translate_errors():
        kept_in = outputs.find_outputs()
    yield {"chosen": None, "gallery": gr.update(selected_index=None)}
    form = request.resolve_seed(read_form(request.PictureForm, stages.build_form_values(values)))
    if form.expand and not added:
        yield {"status": "Adding tags …"}
        tags, _ = _suggest(form)
        added = tags["value"]
        yield {"status": f"Added: {escape_markdown(', '.join(added)) or 'nothing'}.", "added": tags}
    full = request.replace_prompt(form, append_tags(form.prompt, added))
    cells, folder = (
        request.build_cells(full, unexpanded_prompt=form.prompt if added else None),
        create_folder(),
    )
    done: list[str] = []
    copy: Path | None = None
    notes = list_notes(form, cells)
    begin = time.monotonic()
    yield {"status": f"Loading the model … {escape_markdown(' '.join(notes))}"}
    with translate_errors():
        for event in gpu.generate_on_gpu(cells, previews=True):
            match event:
                case DownloadProgress() | LoadProgress():
                    yield {"status": hub_fetch.describe_progress(event)}
                case Step():
                    place = (
                        f" · image {event.pictures_done + 1} of {event.pictures}"
                        if event.pictures > 1
                        else ""
                    )
                    said = (
                        f"{PROGRESS_LABELS[event.stage]} {event.step} of {event.steps}{place}"
                        f" · about {event.seconds_left:.0f} s left"
                    )
                    previews = {"gallery": [*done, *event.previews]} if event.previews else {}
                    yield {"status": said, **previews}
                case Picture():
                    file = Path(save_result(event, folder))
                    gallery.keep_before(event, file)
                    done.append(str(file))
                    copy, refused = outputs.keep_picture(file, event.cell.request, kept_in)
                    notes += [note for note in (*event.notes, *refused) if note not in notes]
                    yield {
                        "gallery": list(done),
                        "made": list(done),
                        "status": f"Image {len(done)} of {len(cells)} finished.",
                        "last_seed": cells[0].request.seed,
                    }
                case Failed():
                    yield {"status": show_refusal(UserError(None, event.message))}
                    raise gr.Error(event.message)
    hints = escape_markdown(" ".join(notes))
    images = f"{len(done)} image{'s' * (len(done) > 1)}"
    kept = f" Kept in {escape_markdown(str(copy.parent))}." if copy else ""
    yield {"status": f"Done: {images} in {time.monotonic() - begin:.1f} s.{kept} {hints}"}


def _describe_preset(preset: PromptPreset) -> str:
    """Return what a person should know of the preset and its model."""
    base = catalogue.find_model(preset.model)
    return f"{preset.help.strip()}\n\nLicence of the model: {base.licence}. {base.notice or ''}"


def _apply_aspect_ratio(name: str, ratio: str) -> tuple[int, int]:
    """Return width and height in pixels: the preset's area in another shape.

    They are in the preset's steps and within its range.
    """
    recipe = presets.get_prompt_presets()[name]
    (across, down), (low, high), step = ASPECT_RATIOS[ratio], recipe.size_range, recipe.size_step
    unit = (recipe.width * recipe.height / (across * down)) ** 0.5
    width, height = (min(high, max(low, round(side * unit / step) * step)) for side in (across, down))
    return width, height
