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
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from core.schema.bounds import FORBIDDEN_CHARACTERS
from core.schema.errors import UserError
from core.schema.types import Detail, Grain, Hires, Model, Request

VERSION = "0.1.0"
MAX_CHARACTERS = 100_000  # of a whole infotext
NEGATIVE_PREFIX = "Negative prompt:"

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
    "Sweetspot clip skip": "clip_skip",
}
# Wide, as pictures of other tools are read, too; `core.schema.limits` bounds what can be made here.
NUMBER_RANGES = {
    "width": (int, 1, 16384),
    "height": (int, 1, 16384),
    "steps": (int, 1, 1000),
    "cfg": (float, 0, 100),
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

# A1111's regex, with two differences. A match begins only at the line's start or after a comma
# and strings are possessive, so that no text takes more than linear time. And JSON, which Civitai
# writes without quotes, stays in one piece; it holds no backslash outside its strings, again for
# linear time.
STRING_PATTERN = r'"(?:\\.|[^"\\])*+"'
SETTING_PATTERN = re.compile(
    rf"""(?:^|(?<=,))\s*
    (\w[\w\ \-/]+):\s*
    ({STRING_PATTERN} | \{{(?:{STRING_PATTERN}|[^{{}}"\\])*+\}} | """
    rf"""\[(?:{STRING_PATTERN}|[^\[\]"\\])*+\] | [^,]*)
    \s*(?:,|$)""",
    re.VERBOSE,
)
# A1111 quotes for the first three only. A value that begins like a quote or JSON is read as one.
NEEDS_QUOTES = re.compile(r'[,:\n]|^["{\[]')


@dataclass(frozen=True, kw_only=True)
class ParsedInfotext:
    """What an infotext contains."""

    fields: dict[str, Any]
    """Values by the names of `Request`'s fields. A field that the text does not give is left out;
    prompt and negative are always there."""
    unused: dict[str, str]
    """The other settings, by A1111's names."""


def create_infotext(request: Request, model: Model | None = None, extra: dict[str, str] | None = None) -> str:
    """Return the request as A1111 writes it, ready for Civitai and for `parse_infotext`.

    `model` adds the commit of its weights. `extra` adds settings such as `Lora hashes`; a key is
    two or more letters, digits, blanks, `-` and `/`. Raises `UserError` for what `parse_infotext`
    would refuse.
    """
    prompt, negative = request.prompt.strip(), request.negative.strip()
    lines = prompt.split("\n")
    schedule = next((name for name in SCHEDULES if request.sampler.endswith(f" {name}")), "")
    settings = {
        "Steps": str(request.steps),
        "Sampler": request.sampler.removesuffix(schedule).strip(),
        "Schedule type": schedule,
        "CFG scale": repr(float(request.cfg)).removesuffix(".0"),
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
        **(extra or {}),
        "Sweetspot": VERSION,
    }
    last = ", ".join(f"{key}: {_quote_value(value)}" for key, value in settings.items() if value)
    text = "\n".join(part for part in (prompt, negative and f"{NEGATIVE_PREFIX} {negative}", last) if part)
    _check_infotext(text)
    return text


def parse_infotext(text: str) -> ParsedInfotext:
    """Parse an infotext written by this studio, A1111, Forge or Civitai.

    The negative begins at the first line that starts with `Negative prompt:`, unless the studio's
    own setting `Prompt lines` names a later one. Raises `UserError` for a text that is incomplete,
    too long, holds control characters, ends without a line of settings or has a number out of
    range.
    """
    _check_infotext(text)
    *lines, last = text.strip().replace("\r\n", "\n").split("\n")
    settings = _parse_settings(last)
    cuts = [number for number, line in enumerate(lines) if line.startswith(NEGATIVE_PREFIX)] + [len(lines)]
    cut = int(settings.pop("Prompt lines")) if settings.get("Prompt lines", "") in map(str, cuts) else cuts[0]
    prompt = "\n".join(lines[:cut]).strip()
    negative = "\n".join(lines[cut:]).removeprefix(NEGATIVE_PREFIX).strip()
    return ParsedInfotext(
        fields={"prompt": prompt, "negative": negative, **_take_fields(settings)}, unused=settings
    )


def _check_infotext(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            "settings", f"{len(text):,} characters are too many; the limit is {MAX_CHARACTERS:,}."
        )
    if found := FORBIDDEN_CHARACTERS.search(text):
        raise UserError(
            "settings", f"the character U+{ord(found[0]):04X} is not valid; only text and line breaks are."
        )


def _quote_value(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if NEEDS_QUOTES.search(value) else value


def _parse_settings(line: str) -> dict[str, str]:
    """Return the settings of the last line.

    Of two with the same name the first counts, as the tools write their own before foreign ones.
    """
    matches = SETTING_PATTERN.findall(line)
    if len(matches) < 3:  # A1111's rule
        raise UserError(
            "settings", "the last line has none. Use a line such as 'Steps: 25, Sampler: Euler a, Seed: 1'."
        )
    settings: dict[str, str] = {}
    for key, value in matches:
        try:
            value = json.loads(value) if value.startswith('"') else value.strip()
        except ValueError as error:
            raise UserError("settings", f"{key[:40]} is incomplete: its quoted text does not end.") from error
        _check_infotext(value)  # quoted text can escape characters that are not allowed
        settings.setdefault(key, value)
    return settings


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


def _take_stages(settings: dict[str, str]) -> dict[str, dict[str, Any]]:
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
        found[name] = {
            field: _convert_setting(hints[field], f"{name}.{field}", text) for field, text in said.items()
        }
    return found


def _convert_setting(hint: Any, field: str, text: str) -> Any:
    """Convert a setting's text to its type; `int | None` is an int, since `None` is not written."""
    kind = next(part for part in (get_args(hint) or (hint,)) if part is not type(None))
    try:
        value = {"True": True, "False": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise UserError(field, f"{text[:40]!r} is not valid here.") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(field, f"{text[:40]!r} is not valid here.")
    return value


def _take_fields(settings: dict[str, str]) -> dict[str, Any]:
    """Move the fields of a `Request` out of `settings`."""
    found = {field: settings.pop(key) for key, field in FIELDS.items() if settings.get(key)}
    if "size" in found:
        found["width"], _, found["height"] = found.pop("size").partition("x")
    if "sampler" in found and (schedule := settings.pop("Schedule type", "")) not in ("", "Automatic"):
        found["sampler"] += f" {schedule}"
    if "DTG prompt" in settings:
        found["expanded"] = settings.pop("DTG prompt")
    numbers = {
        field: _parse_field_number(field, value) if field in NUMBER_RANGES else value
        for field, value in found.items()
    }
    return {**numbers, **_take_stages(settings)}


def _parse_field_number(field: str, text: str) -> int | float:
    kind, low, high = NUMBER_RANGES[field]
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:  # true for NaN
        raise UserError(
            field,
            f"{text[:40]!r} is not valid. Use a {'whole ' if kind is int else ''}number "
            f"from {low} to {high}.",
        )
    return number
