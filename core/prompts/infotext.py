"""Converts a `Request` to A1111's infotext and back.

A1111's infotext (`modules/infotext_utils.py`) is the prompt, `Negative prompt: ` and the negative
if there is one, and a last line of settings, `Steps: 25, Sampler: Euler a, ...`; both texts may
span lines. Texts are stripped at both ends, as A1111 strips them, and `\\r\\n` is read as `\\n`: a
`Request` whose texts have that form already comes back equal. Both records are plain data, so
`dataclasses.asdict` gives their JSON.
"""

import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from core.prompts.dialects import translate_settings
from core.prompts.settings_text import NEGATIVE_PREFIX, SIGNS, SettingsText, check_text, split_settings_text
from core.schema.bounds import FORBIDDEN_CHARACTERS
from core.schema.errors import UserError
from core.schema.samplers import AUTOMATIC
from core.schema.types import Detail, Grain, Hires, Model, Request

VERSION = "0.2.0"

# Stage -> A1111's key (the studio's own if A1111 has none) -> the record's field.
# The first key shows that the stage is there.
STAGE_KEYS: dict[str, tuple[Any, dict[str, str]]] = {
    "hires": (
        Hires,
        {
            "Hires upscaler": "upscaler",
            "Hires upscale": "factor",
            "Denoising strength": "denoise",
            "Hires steps": "steps",
            "Hires smooth": "smooth",
            "Hires prompt": "prompt",
            "Hires negative prompt": "negative",
            "Hires sampler": "sampler",
            "Hires schedule type": "schedule",
            "Hires CFG Scale": "cfg",  # Forge's; A1111 has none
        },
    ),
    "detail": (
        Detail,
        {
            "ADetailer model": "detector",
            "ADetailer prompt": "prompt",
            "ADetailer negative prompt": "negative",
            "ADetailer confidence": "confidence",
            "ADetailer mask only top k largest": "largest",
            "ADetailer mask min ratio": "least",
            "ADetailer mask max ratio": "most",
            "ADetailer dilate erode": "dilate",
            "ADetailer mask blur": "blur",
            "ADetailer inpaint padding": "padding",
            "ADetailer denoising strength": "denoise",
            "ADetailer steps": "steps",
        },
    ),
    "grain": (
        Grain,
        {"Grain": "amount", "Grain size": "size", "Grain monochrome": "monochrome", "Grain blur": "blur"},
    ),
}
FIELDS = {
    "Model": "model",
    "Sampler": "sampler",
    "Size": "size",
    "Steps": "steps",
    "CFG scale": "cfg",
    "Seed": "seed",
    "RescaleCFG": "cfg_rescale",
    "Sweetspot clip skip": "clip_skip",
}
# Wide, as pictures of other tools are read, too; `core.schema.limits` bounds what can be made here.
NUMBER_RANGES = {
    "width": (int, 1, 16384),
    "height": (int, 1, 16384),
    "steps": (int, 1, 1000),
    "cfg": (float, 0, 100),
    "cfg_rescale": (float, 0, 1),
    "seed": (int, 0, 2**64 - 1),
    "clip_skip": (int, 1, 2),
}
# A1111's schedules; if one ends in another, the longer comes first.
SCHEDULES = (
    "Karras",
    "Polyexponential",
    "Exponential",
    "SGM Uniform",
    "Uniform",
    "KL Optimal",
    "Align Your Steps",
    "Simple",
    "Normal",
    "DDIM",
    "Beta",
)

# A1111 quotes for the first three only. A value that begins like a quote or JSON is read as one.
NEEDS_QUOTES = re.compile(r'[,:\n]|^["{\[]')


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a picture or a settings text says of how it was made."""

    fields: dict[str, Any]
    """Values by the names of `Request`'s fields. A field that the text does not give is left out;
    prompt and negative are always there."""
    unused: dict[str, str]
    """The other settings, by A1111's names."""
    tool: str
    """The tool that wrote it, such as `ComfyUI`; `A1111` if the text does not tell."""
    loras: tuple[dict[str, Any], ...] = ()
    """The LoRAs that the prompt does not name as tags, as `/generate` takes them."""
    lost: tuple[str, ...] = ()
    """A sentence for each value that cannot be read."""


def create_infotext(request: Request, model: Model | None = None, extra: dict[str, str] | None = None) -> str:
    """Return the request as A1111 writes it, ready for Civitai and for `parse_infotext`.

    `model` adds the commit of its weights. `extra` adds settings such as `Lora hashes`; a key is
    two or more letters, digits, blanks, `-` and `/`. Raises `UserError` for what `parse_infotext`
    would refuse.
    """
    prompt, negative = request.prompt.strip(), request.negative.strip()
    lines = prompt.split("\n")
    settings = {
        "Steps": str(request.steps),
        "Sampler": request.sampler,
        "Schedule type": "" if request.schedule == AUTOMATIC else request.schedule,
        "CFG scale": _format_value(request.cfg),
        "RescaleCFG": _format_value(request.cfg_rescale) if request.cfg_rescale else "",
        "Seed": str(request.seed),
        "Size": f"{request.width}x{request.height}",
        "Model hash": "",  # keeps A1111's place for the one in `extra`
        "Model": request.model,
        "Model revision": (model and model.revision) or "",
        # Only this tells such a line of the prompt from the start of the negative; A1111 cannot.
        "Prompt lines": str(len(lines)) if any(line.startswith(NEGATIVE_PREFIX) for line in lines) else "",
        # A1111's own clip skip means something else; with SDXL it is ignored.
        "Sweetspot clip skip": "1" if request.clip_skip == 1 else "",
        **_format_stages(request),
        "Template": request.template or "",  # as Dynamic Prompts writes it
        "Negative Template": request.negative_template or "",
        **(extra or {}),
        "Sweetspot": VERSION,
    }
    last = ", ".join(f"{key}: {_quote_value(value)}" for key, value in settings.items() if value)
    text = "\n".join(part for part in (prompt, negative and f"{NEGATIVE_PREFIX} {negative}", last) if part)
    check_text(text)
    return text


def parse_infotext(text: str) -> Reading:
    """Parse an infotext written by this studio, A1111 or another tool that writes as A1111 does.

    A value that cannot be used is lost by itself. Raises `UserError` for a text that is too long,
    holds control characters or has no settings.
    """
    return convert_settings(translate_settings(split_settings_text(text)))


def convert_settings(text: SettingsText) -> Reading:
    """Turn a tool's settings, in A1111's words, into the fields of a `Request`."""
    check_text(text.prompt)
    check_text(text.negative)
    if not any(text.settings.get(sign) for sign in SIGNS):
        raise UserError("settings", f"{text.tool} wrote no steps, sampler, seed or size into this image.")
    settings, lost = {}, list(text.lost)
    for key, value in text.settings.items():
        try:
            check_text(key)
            check_text(value)  # JSON and quoted text can escape characters that are not allowed
        except UserError as error:
            lost.append(f"{FORBIDDEN_CHARACTERS.sub('', key[:40])}: {error.sentence}")
        else:
            settings[key] = value
    fields = {"prompt": text.prompt, "negative": text.negative, **_take_fields(settings, lost)}
    return Reading(
        fields=fields, unused=settings, tool=text.tool, loras=text.loras, lost=tuple(dict.fromkeys(lost))
    )


def _quote_value(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if NEEDS_QUOTES.search(value) else value


def _format_stages(request: Request) -> dict[str, str]:
    """Return the settings of the stages that are on.

    Empty texts and numbers that are not set are left out.
    """
    found = {}
    for name, (_, keys) in STAGE_KEYS.items():
        if (stage := getattr(request, name)) is not None:
            values = {key: getattr(stage, field) for key, field in keys.items()}
            found |= {
                key: _format_value(value)
                for key, value in values.items()
                if value is not None and value != ""
            }
    if request.expanded is not None:
        found["DTG prompt"] = request.expanded
    return found


def _format_value(value: Any) -> str:
    return str(value) if isinstance(value, str | bool | int) else repr(float(value)).removesuffix(".0")


def _take_stages(settings: dict[str, str], lost: list[str]) -> dict[str, dict[str, Any]]:
    """Move the settings of each stage out of `settings`, into tables by the record's fields.

    A setting that the text leaves out, as A1111 leaves out its defaults, gets the record's own
    default. Other tools' upscalers and detectors keep their names; using one reports whether it is
    here.
    """
    found = {}
    for name, (kind, keys) in STAGE_KEYS.items():
        if next(iter(keys)) not in settings:
            continue
        hints = get_type_hints(kind)
        said = {field: settings.pop(key) for key, field in keys.items() if settings.get(key)}
        found[name] = {}
        for field, text in said.items():
            try:
                found[name][field] = _convert_setting(hints[field], text)
            except ValueError:
                lost.append(f"{name}.{field}: {text[:40]!r} is not valid here.")
    return found


def _convert_setting(hint: Any, text: str) -> Any:
    """Convert a setting's text to its type; `int | None` is an int, since `None` is not written.

    Raises `ValueError` for any other text.
    """
    kind = next(part for part in (get_args(hint) or (hint,)) if part is not type(None))
    if kind is bool and text not in ("True", "False"):
        raise ValueError
    return text == "True" if kind is bool else text if kind is str else _convert_number(kind, text)


def _convert_number(kind: type, text: str) -> int | float:
    """Convert a number as any tool writes it: 20, 20.0, 7,5. Raises `ValueError` for any other text."""
    if kind is int:
        with suppress(ValueError):
            return int(text)  # 64 bits are more than a float holds
    number = float(text.replace(",", "."))
    if not math.isfinite(number) or kind(number) != number:
        raise ValueError
    return kind(number)


def _take_fields(settings: dict[str, str], lost: list[str]) -> dict[str, Any]:
    """Move the fields of a `Request` out of `settings`; a value that is not valid is added to `lost`."""
    found: dict[str, Any] = {field: settings.pop(key) for key, field in FIELDS.items() if settings.get(key)}
    if "size" in found:
        found["width"], _, found["height"] = found.pop("size").partition("x")
    if "sampler" in found:
        named = next((name for name in SCHEDULES if found["sampler"].endswith(f" {name}")), "")
        schedule = settings.pop("Schedule type", "") or named or AUTOMATIC
        found["sampler"] = found["sampler"].removesuffix(f" {named}")
        if settings.get("Sweetspot") == "0.1.0":  # its spacing was diffusers'
            schedule = "Sweetspot 0.1 Karras" if schedule == "Karras" else "Sweetspot 0.1"
        found["schedule"] = "Normal" if schedule == "Uniform" else schedule  # two names of one in A1111
    if "DTG prompt" in settings:
        found["expanded"] = settings.pop("DTG prompt")
    for field in [field for field in NUMBER_RANGES if field in found]:
        kind, low, high = NUMBER_RANGES[field]
        text = found.pop(field)
        with suppress(ValueError):
            if low <= (number := _convert_number(kind, text)) <= high:
                found[field] = number
        if field not in found:
            whole = "whole " if kind is int else ""
            lost.append(f"{field}: {text[:40]!r} is not valid. Use a {whole}number from {low} to {high}.")
    if ("width" in found) != ("height" in found):  # one side says nothing of the picture's shape
        found = {field: value for field, value in found.items() if field not in ("width", "height")}
    return {**found, **_take_stages(settings, lost)}
