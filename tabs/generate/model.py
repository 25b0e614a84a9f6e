"""The base model of Generate: the list, what a person sets for a model, and what to know of it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from safetensors import SafetensorError

from core.models import bases, catalogue, file_kind, files, tools
from core.models.model_settings import get_settings, save_settings
from core.schema import presets
from core.schema.errors import UserError
from core.schema.types import Model, PromptPreset
from core.system.device import is_space
from core.system.markdown import escape_markdown
from tabs.shared import hub_fetch
from tabs.shared.checks import WRITE_OPTIONS, translate_errors
from tabs.shared.model_choices import PRESET_MODEL, list_model_choices, list_optional_models, name_model
from tabs.shared.updates import refresh_choices

SETTING_NAMES = ("vae", "prediction_type", "donor")
"""What a person sets for a model, by the names of `ModelSettings` and of the controls."""


def build_controls(preset: PromptPreset) -> dict[str, Any]:
    """Build the list of models and the panel of a model's settings: components by name."""
    c: dict[str, Any] = {}
    c["model"] = gr.Dropdown(
        list_optional_models(),
        value=PRESET_MODEL,
        label="Model",
        info="a new file in models/checkpoints is here without a restart",
        elem_id="model",
    )
    c["model_note"] = gr.Markdown(describe_model(preset.model), elem_id="absent")
    with gr.Accordion("VAE, prediction, download", open=False):
        with gr.Column(visible=not is_space()):
            c["vae"] = gr.Dropdown(_list_vaes(), value="", label="VAE", elem_id="model-vae")
            c["prediction_type"] = gr.Dropdown(
                _list_predictions(), value="", label="The model predicts", elem_id="model-prediction"
            )
            c["donor"] = gr.Dropdown(
                _list_donors(), value="", label="Missing VAE and text encoders from", elem_id="model-donor"
            )
        c["model_hub"] = hub_fetch.build_base_box("generate-base")
    return c


def wire_settings(c: dict[str, Any]) -> Any:
    """Connect the lists that grow while the app runs, and the settings, which are kept at once.

    Returns the event of a model that came from the Hub.
    """
    refresh_choices(c["model"].focus, c["model"], list_optional_models)
    refresh_choices(c["vae"].focus, c["vae"], _list_vaes)
    refresh_choices(c["donor"].focus, c["donor"], _list_donors)
    for name in SETTING_NAMES:
        c[name].input(
            _make_keeper(name), [c["model"], c["preset"], c[name]], c["model_note"], **WRITE_OPTIONS
        )
    return hub_fetch.wire(c["model_hub"], _fetch_base, c["model"])


def _fetch_base(hub_id: str, selected: str) -> Iterator[tuple[str, Any]]:
    yield from hub_fetch.fetch_base_to_choice(hub_id, selected, list_optional_models)


def get_model_values(model: str, preset: PromptPreset) -> dict[str, Any]:
    """Return what the page shows for a model, or for the preset's where none is chosen, by name."""
    name = name_model(model, preset.name)
    chosen = {each: getattr(get_settings(name), each) or "" for each in SETTING_NAMES}
    lists = {"vae": _list_vaes(), "prediction_type": _list_predictions(), "donor": _list_donors()}
    return {
        "model_note": describe_model(name),
        **{
            each: gr.update(choices=_keep_choice(lists[each], value), value=value)
            for each, value in chosen.items()
        },
    }


def choose_model(model: str, preset: PromptPreset) -> dict[str, Any]:
    """Return what the page shows once a model is chosen for a person, the choice included.

    The list of the page may be older than the model's file, and Gradio would refuse the choice.
    """
    choices = _keep_choice(list_optional_models(), model)
    return {"model": gr.update(choices=choices, value=model), **get_model_values(model, preset)}


def describe_model(name: str) -> str:
    """Return what a person should know of a model before the first picture."""
    with translate_errors():
        model = catalogue.find_model(name)
        if absence := bases.describe_absence(model):
            return absence
        said = [] if model.name in presets.get_models() else [_describe_file(model)]
        said += [_describe_vae(model.vae)] if model.vae else []
    return " ".join(said)


def _describe_file(model: Model) -> str:
    """Return what the header of a model's file says: what it predicts, or why it cannot be opened."""
    source = files.fetch_model_files(model)
    try:
        if not source.is_dir() and (obstacle := file_kind.find_obstacle(source)):
            return f"{escape_markdown(model.title)} {obstacle}."
        prediction = files.find_prediction(model, source)
        missing = {} if source.is_dir() else file_kind.find_missing_parts(source)
        if source.is_dir():
            files.check_configs(source, model)
            files.check_weights(source, model)
    except UserError as error:
        return f"{escape_markdown(error.sentence)}."
    except (OSError, ValueError, SafetensorError):
        return f"{escape_markdown(model.title)} cannot be read as a .safetensors file. Download it again."
    if model.vae:
        missing.pop("vae", None)
    lacks = " and ".join(dict.fromkeys(missing.values()))
    zero = " down to zero signal" if prediction.zero_snr else ""
    said = f"It predicts {'v' if prediction.type == 'v_prediction' else 'epsilon'}{zero}."
    if lacks and model.donor:
        return f"{said} It lacks {lacks}: taken from {escape_markdown(model.donor)}."
    return f"{said} It lacks {lacks}: choose below where to take that from." if lacks else said


def _describe_vae(vae: str) -> str:
    """Return which VAE is set for a model, and why it cannot be opened where that is so."""
    name, own = escape_markdown(Path(vae).name), tools.list_owner_files("vae").get(vae)
    try:
        obstacle = own and file_kind.find_vae_obstacle(own)
    except SafetensorError:
        obstacle = "cannot be read as a .safetensors file. Use another"
    return f"The VAE {name} {obstacle}." if obstacle else f"VAE: {name}."


def _make_keeper(setting: str) -> Callable[[str, str, str], str]:
    """Return a function that keeps one setting of the model, and describes the model.

    The others stay: the page may still show those of the model that was chosen before.
    """

    def keep_setting(model: str, preset: str, value: str) -> str:
        name = name_model(model, preset)
        with translate_errors():
            save_settings(name, replace(get_settings(name), **{setting: value or None}))
        return describe_model(name)

    return keep_setting


def _list_vaes() -> list[tuple[str, str]]:
    return [("the model's own", ""), *((name, name) for name in tools.list_tools("vae"))]


def _list_predictions() -> list[tuple[str, str]]:
    return [("what the file says", ""), ("epsilon", "epsilon"), ("v", "v_prediction")]


def _list_donors() -> list[tuple[str, str]]:
    return [("no other model", ""), *list_model_choices()]


def _keep_choice(choices: list[tuple[str, str]], value: str) -> list[tuple[str, str]]:
    """Return the choices with a value that is no longer among them, which Gradio would refuse."""
    return choices if value in {each for _, each in choices} else [*choices, (value, value)]
