"""Splits a settings text as A1111 writes it: prompt, negative, and a line of settings.

What cannot be understood is lost by itself, and named; the rest of the text is read.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from core.schema.bounds import FORBIDDEN_CHARACTERS
from core.schema.errors import UserError

MAX_CHARACTERS = 100_000  # of a whole text
MAX_LOST = 20
"""Things of a text that are named as lost."""
NEGATIVE_PREFIX = "Negative prompt:"
SIGNS = ("Steps", "Sampler", "Seed", "Size")
"""A line without one of these is no line of settings, however many colons it has."""

# A1111's regex, with three differences. A match begins only at the line's start or after a comma
# and strings are possessive, so that no text takes more than linear time. JSON, which Civitai
# writes without quotes, stays in one piece; it holds no backslash outside its strings, again for
# linear time. And `7,5`, as some countries write numbers, is one value.
STRING_PATTERN = r'"(?:\\.|[^"\\])*+"'
SETTING_PATTERN = re.compile(
    rf"""(?:^|(?<=,))\s*
    (\w[\w\ \-/]+):\s*
    ({STRING_PATTERN} | \{{(?:{STRING_PATTERN}|[^{{}}"\\])*+\}} | """
    rf"""\[(?:{STRING_PATTERN}|[^\[\]"\\])*+\] | \d++,\d++(?=,|$) | [^,]*)
    \s*(?:,|$)""",
    re.VERBOSE,
)
FIRST_SETTING = re.compile(r"(?:^|(?<=\s))Steps: *\d")
"""Where the settings begin in a text of one line."""


@dataclass(frozen=True, kw_only=True)
class SettingsText:
    """What a tool wrote about a picture, in A1111's words."""

    prompt: str
    negative: str
    settings: dict[str, str]
    """By A1111's names, or by the tool's own where A1111 has none."""
    tool: str = "A1111"
    loras: tuple[dict[str, Any], ...] = ()
    """The LoRAs that the prompt does not name as tags, as `/generate` takes them."""
    lost: tuple[str, ...] = ()
    """A sentence for each part that cannot be read."""


def split_settings_text(text: str) -> SettingsText:
    """Split the text.

    The settings are its last line that has some; lines after it add theirs. The negative begins at
    the first line that starts with `Negative prompt:`, unless the studio's own setting
    `Prompt lines` names a later one. Raises `UserError` for a text that is too long, holds control
    characters or has no settings.
    """
    check_text(text)
    lines = text.strip().replace("\r\n", "\n").split("\n")
    place, begin, settings, lost = _find_settings(lines)
    head = [*lines[:place], *_part_negative(lines[place][:begin])]
    cuts = [number for number, line in enumerate(head) if line.startswith(NEGATIVE_PREFIX)] + [len(head)]
    cut = int(settings.pop("Prompt lines")) if settings.get("Prompt lines", "") in map(str, cuts) else cuts[0]
    return SettingsText(
        prompt="\n".join(head[:cut]).strip(),
        negative="\n".join(head[cut:]).removeprefix(NEGATIVE_PREFIX).strip(),
        settings=settings,
        lost=tuple(lost[:MAX_LOST]),
    )


def check_text(text: str) -> None:
    """Raise `UserError` for a text that is too long or holds control characters."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            "settings", f"{len(text):,} characters are too many; the limit is {MAX_CHARACTERS:,}."
        )
    if found := FORBIDDEN_CHARACTERS.search(text):
        raise UserError(
            "settings", f"the character U+{ord(found[0]):04X} is not valid; only text and line breaks are."
        )


def _find_settings(lines: list[str]) -> tuple[int, int, dict[str, str], list[str]]:
    """Return the line of settings, where in it they begin, the settings, and what is lost.

    Settings of later lines are among them.
    """
    later: dict[str, str] = {}
    lost: list[str] = []
    for number in reversed(range(len(lines))):
        begin = _find_first_setting(lines[number])
        settings, torn = _parse_line(lines[number][begin:])
        lost += torn
        if len(settings) + len(torn) >= 3 and any(sign in settings for sign in SIGNS):  # 3: A1111's rule
            return number, begin, later | settings, lost
        if lines[number].strip() and not settings and not torn:
            lost.append(f"The line {lines[number].strip()[:40]!r} after the settings is not understood.")
        later = settings | later
    raise UserError(
        "settings", "the last line has none. Use a line such as 'Steps: 25, Sampler: Euler a, Seed: 1'."
    )


def _find_first_setting(line: str) -> int:
    """Return where the settings begin; some of Civitai's lines begin with the prompt."""
    if SETTING_PATTERN.match(line) and any(match[1] == "Steps" for match in SETTING_PATTERN.finditer(line)):
        return 0
    found = FIRST_SETTING.search(line)
    return found.start() if found else 0


def _part_negative(text: str) -> list[str]:
    """Return the prompt and the negative that stand before the settings of one line, as lines."""
    prompt, mark, negative = text.partition(NEGATIVE_PREFIX)
    return [part for part in (prompt, mark + negative) if part]


def _parse_line(line: str) -> tuple[dict[str, str], list[str]]:
    """Return the settings of a line, and a sentence for each that is torn.

    Of two with the same name the first counts, as the tools write their own before foreign ones.
    """
    settings: dict[str, str] = {}
    torn = []
    for key, value in SETTING_PATTERN.findall(line):
        try:
            settings.setdefault(key, json.loads(value) if value.startswith('"') else value.strip())
        except ValueError:
            torn.append(f"{key[:40]} is incomplete: its quoted text does not end.")
    return settings, torn
