"""Chooses what `{a|b}` and `__wildcard__` of a prompt say in one picture, by its seed.

As the Dynamic Prompts extension reads them: an option or a line may begin with its weight, `3::red`, and
what is chosen may hold choices of its own. A wildcard is a `.txt` file of the folder `wildcards`, a choice
a line; blank lines and those that begin with `#` are none. Braces without a `|` stay text.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from core.schema.errors import UserError
from core.schema.limits import PROMPT_LENGTH
from core.system import paths

FOLDER = paths.WILDCARDS
MAX_FILES = 20_000
MAX_FILE_BYTES = 10 * 2**20
MAX_DEPTH = 16
"""Choices within what was chosen."""
MAX_CHOICES = 500
"""Choices of one text."""

PIECE = re.compile(r"[{}|]|__[\w*./][\w*. /\-]*?__|(?:(?!__[\w*./])[^{}|])+|_")
WEIGHT = re.compile(r"\s*([0-9]{1,6}(?:\.[0-9]{0,6})?)::")
COUNT = re.compile(r"\s*[0-9-]+\$\$")


@dataclass(frozen=True)
class Chosen:
    """A text after its choices."""

    text: str
    missing: tuple[str, ...]
    """The wildcards that are not there, as they are written; they stay in the text."""


def choose_text(text: str, seed: str) -> Chosen:
    """Return the text with a choice made everywhere; the same seed makes the same.

    Raises `UserError`, without its field, for choices that never end or are too many, and for
    `{2$$a|b}`, which asks for several at once.
    """
    if "{" not in text and "__" not in text:
        return Chosen(text, ())
    chooser = _Chooser(random.Random(seed))
    return Chosen(chooser.choose(text, 0), tuple(dict.fromkeys(chooser.missing)))


def list_wildcards() -> dict[str, Path]:
    """Return the files of wildcards by name: the path below the folder, without `.txt`."""
    found: dict[str, Path] = {}
    for file in FOLDER.rglob("*.txt"):
        found[file.relative_to(FOLDER).with_suffix("").as_posix()] = file
        if len(found) == MAX_FILES:
            break
    return dict(sorted(found.items()))


class _Chooser:
    """Makes the choices of one text."""

    def __init__(self, rng: random.Random):
        self.rng, self.missing = rng, list[str]()
        self.left = MAX_CHOICES
        self.files: Mapping[str, Path] | None = None

    def choose(self, text: str, depth: int) -> str:
        """Return the text with its choices made; `depth` is how many lead to it."""
        if depth > MAX_DEPTH and "|" not in text and "__" not in text:
            return text
        if depth > MAX_DEPTH:
            raise UserError(None, f"its choices lead to one another more than {MAX_DEPTH} times.")
        stack = [[""]]  # open braces, each with its options so far
        for piece in PIECE.findall(text):
            if piece == "{":
                stack.append([""])
            elif piece == "|" and len(stack) > 1:
                stack[-1].append("")
            elif piece == "}" and len(stack) > 1:
                options = stack.pop()
                whole = "{" + "|".join(options) + "}"
                stack[-1][-1] += whole if len(stack) > 1 else self._close(options, depth)
            elif piece.startswith("__") and len(stack) == 1:
                stack[-1][-1] += self._read_wildcard(piece, depth)
            else:
                stack[-1][-1] += piece
        while len(stack) > 1:  # braces that are not closed are text
            options = stack.pop()
            stack[-1][-1] += "{" + "|".join(options)
        if len(stack[0][0]) > PROMPT_LENGTH:
            raise UserError(None, f"with its choices, it is longer than {PROMPT_LENGTH:,} characters.")
        return stack[0][0]

    def _close(self, options: Sequence[str], depth: int) -> str:
        """Return what a pair of braces says. Only the option that is chosen is looked into."""
        if len(options) == 1:
            return "{" + self.choose(options[0], depth + 1) + "}"
        if COUNT.match(options[0]):
            raise UserError(None, f"{{{options[0][:40]}|… asks for several choices at once; use {{a|b}}.")
        return self.choose(self._pick(options), depth + 1)

    def _read_wildcard(self, name: str, depth: int) -> str:
        if self.files is None:
            self.files = list_wildcards()
        wanted = name[2:-2].strip()
        lines = [
            line.strip()
            for own, file in self.files.items()  # only a listed name becomes a path
            if own == wanted or ("*" in wanted and fnmatchcase(own, wanted))
            for line in _read_lines(file)
            if line.strip() and not line.lstrip().startswith("#") and len(line) <= PROMPT_LENGTH
        ]
        if not lines:
            self.missing.append(name)
            return name
        return self.choose(self._pick(lines), depth + 1)

    def _pick(self, options: Sequence[str]) -> str:
        """Pick an option by its weight, and return it without."""
        self.left -= 1
        if self.left < 0:
            raise UserError(None, f"it has more than {MAX_CHOICES} choices.")
        weights = [float(match[1]) if (match := WEIGHT.match(each)) else 1.0 for each in options]
        at = self.rng.random() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            if (at := at - weight) < 0:
                return WEIGHT.sub("", option, count=1)
        return WEIGHT.sub("", options[-1], count=1)


def _read_lines(file: Path) -> list[str]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            return []
        return file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:
        return []
