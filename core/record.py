"""Request <-> A1111 infotext in a PNG, and JSON.

A1111's infotext (`modules/infotext_utils.py`) is the prompt, `Negative prompt: ` and the negative
when there is one, and a last line of settings, `Steps: 25, Sampler: Euler a, ...`; both texts may
span lines. Texts are stripped at both ends, as A1111 strips them, and `\\r\\n` is read as `\\n`: a `Request`
whose texts are so already comes back equal. Both records are plain data, so `dataclasses.asdict` is their JSON.
"""

import json
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from core.limits import FORBIDDEN
from core.types import Model, Request, UserError

VERSION = "0.1.0"
CHARACTERS = 100_000  # of a whole infotext
PIXELS = 64_000_000
NEGATIVE = "Negative prompt:"

FIELDS = {"Model": "model", "Sampler": "sampler", "Size": "size", "Steps": "steps", "CFG scale": "cfg", "Seed": "seed"}
NUMBERS = {  # wide, as pictures of other tools are read, too; `core.limits` says what can be made here
    "width": (int, 1, 16384),
    "height": (int, 1, 16384),
    "steps": (int, 1, 1000),
    "cfg": (float, 0, 100),
    "seed": (int, 0, 2**64 - 1),
}
# A1111's; where one ends in another, the longer comes first.
SCHEDULES = ("Karras", "Polyexponential", "Exponential", "SGM Uniform", "Uniform", "KL Optimal", "Align Your Steps", "Simple", "Normal", "DDIM", "Beta")

# A1111's regex, with two differences. A match begins only at the line's start or after a comma and strings
# are possessive, so that no text takes more than linear time. And JSON, which Civitai writes without
# quotes, stays in one piece; it holds no backslash outside its strings, again for linear time.
STRING = r'"(?:\\.|[^"\\])*+"'
SETTING = re.compile(
    rf"""(?:^|(?<=,))\s*
    (\w[\w\ \-/]+):\s*
    ({STRING} | \{{(?:{STRING}|[^{{}}"\\])*+\}} | \[(?:{STRING}|[^\[\]"\\])*+\] | [^,]*)
    \s*(?:,|$)""",
    re.VERBOSE,
)
# A1111 quotes the first three only. What begins like a quote or JSON would be taken for it when read.
QUOTED = re.compile(r'[,:\n]|^["{\[]')


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an infotext says."""

    fields: dict[str, Any]
    """By the names of `Request`; a field that the text does not tell is left out, prompt and negative never are."""
    unused: dict[str, str]
    """The other settings, by A1111's names."""


def infotext(request: Request, model: Model | None = None, extra: dict[str, str] | None = None) -> str:
    """The request as A1111 writes it, ready for Civitai and for `read`.

    `model` adds the commit of its weights. `extra` adds settings such as `Lora hashes`; a key is two
    or more letters, digits, blanks, `-` and `/`. Raises `UserError` for what `read` would refuse.
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
        "Prompt lines": str(len(lines)) if any(line.startswith(NEGATIVE) for line in lines) else "",
        **(extra or {}),
        "Sweetspot": VERSION,
    }
    last = ", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items() if value)
    text = "\n".join(part for part in (prompt, negative and f"{NEGATIVE} {negative}", last) if part)
    _check(text)
    return text


def read(text: str) -> Reading:
    """What an infotext of ours, A1111, Forge or Civitai says.

    The negative begins at the first line that starts with `Negative prompt:`, unless our own setting
    `Prompt lines` names a later one. Raises `UserError` for a text that is torn, too long, holds control
    characters, ends without a line of settings or has a number out of range.
    """
    _check(text)
    *lines, last = text.strip().replace("\r\n", "\n").split("\n")
    settings = _settings(last)
    cuts = [number for number, line in enumerate(lines) if line.startswith(NEGATIVE)] + [len(lines)]
    cut = int(settings.pop("Prompt lines")) if settings.get("Prompt lines", "") in map(str, cuts) else cuts[0]
    prompt = "\n".join(lines[:cut]).strip()
    negative = "\n".join(lines[cut:]).removeprefix(NEGATIVE).strip()
    return Reading(fields={"prompt": prompt, "negative": negative, **_fields(settings)}, unused=settings)


def save_png(image: Image.Image, file: Path, text: str) -> None:
    """Write the picture with `text` as A1111 does. `file` is whole at any time: the old one, then the new one."""
    info = PngInfo()
    info.add_text("parameters", text)  # tEXt where Latin-1 can hold it, iTXt otherwise
    unfinished = file.with_name(f".{uuid4().hex}.tmp")
    try:
        with unfinished.open("xb") as out:
            image.save(out, format="PNG", pnginfo=info)
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def read_picture(file: Path) -> Reading:
    """What the infotext in a PNG, JPEG or WebP file says; the pixels are not decoded.

    Raises `UserError` for a file that is none of these, is larger than 64 megapixels or has no
    settings, and as `read` does.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > PIXELS:
                raise Image.DecompressionBombError
            text = image.info.get("parameters") if image.format == "PNG" else _user_comment(image)
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher
        raise UserError(f"{file.name}: the picture is too large; up to {PIXELS // 10**6} megapixels are read.") from error
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise UserError(f"{file.name}: it cannot be read as a PNG, JPEG or WebP picture.") from error
    if not text:
        raise UserError(f"{file.name}: the picture holds no settings; it takes one as it was saved, not a screenshot or a copy from a chat.")
    return read(text)


def _check(text: str) -> None:
    if len(text) > CHARACTERS:
        raise UserError(f"settings: {len(text):,} characters are too many; up to {CHARACTERS:,} are read.")
    if found := FORBIDDEN.search(text):
        raise UserError(f"settings: the character U+{ord(found[0]):04X} is not allowed; only text and line breaks are.")


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if QUOTED.search(value) else value


def _settings(line: str) -> dict[str, str]:
    """The line's settings; of two with one name the first, as the tools write their own before foreign ones."""
    matches = SETTING.findall(line)
    if len(matches) < 3:  # A1111's rule
        raise UserError("settings: the last line has none; it takes a line such as 'Steps: 25, Sampler: Euler a, Seed: 1'.")
    settings: dict[str, str] = {}
    for key, value in matches:
        try:
            value = json.loads(value) if value.startswith('"') else value.strip()
        except ValueError as error:
            raise UserError(f"settings: {key[:40]} is torn: its quoted text is not whole.") from error
        _check(value)  # quoted text can spell what is not allowed
        settings.setdefault(key, value)
    return settings


def _fields(settings: dict[str, str]) -> dict[str, str | int | float]:
    """Take the fields of a `Request` out of `settings`."""
    found = {field: settings.pop(key) for key, field in FIELDS.items() if settings.get(key)}
    if "size" in found:
        found["width"], _, found["height"] = found.pop("size").partition("x")
    if "sampler" in found and (schedule := settings.pop("Schedule type", "")) not in ("", "Automatic"):
        found["sampler"] += f" {schedule}"
    return {field: _number(field, value) if field in NUMBERS else value for field, value in found.items()}


def _number(field: str, text: str) -> int | float:
    kind, low, high = NUMBERS[field]
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:  # true for NaN
        raise UserError(f"{field}: {text[:40]!r} is not allowed; it takes a {'whole ' if kind is int else ''}number from {low} to {high}.")
    return number


def _user_comment(image: Image.Image) -> str:
    """EXIF's UserComment: eight bytes that name the encoding, then the text."""
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if not isinstance(comment, bytes):
        return ""
    encoding, text = comment[:8], comment[8:]
    if encoding != b"UNICODE\0":
        return text.decode().strip("\0")
    # UTF-16, mostly without a mark: the zero bytes of its many ASCII characters tell the order.
    big_endian = text[::2].count(0) >= text[1::2].count(0)
    return text.decode("utf-16-be" if big_endian else "utf-16-le").strip("\0\ufeff")
