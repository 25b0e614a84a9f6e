"""A caption as one training step sees it: kohya's shuffling, dropout and wildcards, drawn from a generator that is handed in.

Draws come in the order of `process_caption` of kohya-ss/sd-scripts, so the same seed makes the same caption as there.
"""

import random
import re
from dataclasses import dataclass

from core.types import UserError

OPEN, CLOSE = "\x02", "\x03"
"""Stand for doubled braces while wildcards are chosen; no caption holds control characters."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How captions vary from step to step; as it stands, not at all. Raises `UserError` for a value that is not allowed."""

    shuffle: bool = False
    """Whether the tags come in another order each time."""
    keep_tokens: int = 0
    """So many tags at the front are neither shuffled nor dropped."""
    keep_separator: str = ""
    """Divides tags that are kept in front, tags that vary and tags that are kept behind; in a caption with it `keep_tokens` does not count."""
    separator: str = ","
    """Stands between tags."""
    secondary_separator: str = ""
    """Stands between tags that move and drop as one, and becomes `separator` in the end."""
    tag_dropout: float = 0.0
    """The chance of each tag to be left out."""
    caption_dropout: float = 0.0
    """The chance of the whole caption to be left out."""
    caption_dropout_every: int = 0
    """In every so many epochs there are no captions; 0 for never."""
    prefix: str = ""
    """Goes before each caption with a space, and is varied with it."""
    suffix: str = ""
    """Goes behind it."""
    wildcard: bool = False
    """Whether `{a|b}` stands for one of its parts and a caption for one of its lines; if not, the first line counts."""

    def __post_init__(self) -> None:
        for name in ("tag_dropout", "caption_dropout"):
            if type(chance := getattr(self, name)) not in (int, float) or not 0 <= chance <= 1:
                raise UserError(f"wording.{name}: {chance!r:.40} is not allowed; it takes a number from 0 to 1.")
        for name in ("keep_tokens", "caption_dropout_every"):
            if type(count := getattr(self, name)) is not int or count < 0:
                raise UserError(f"wording.{name}: {count!r:.40} is not allowed; it takes a whole number from 0.")
        if not self.separator:
            raise UserError("wording.separator: it is empty; it takes what stands between tags.")


def varied(caption: str, how: Wording, chance: random.Random, epoch: int = 1) -> str:
    """The caption for one step of that epoch, the first of which is 1."""
    caption = f"{how.prefix} {caption}" if how.prefix else caption
    caption = f"{caption} {how.suffix}" if how.suffix else caption
    if how.caption_dropout > 0 and chance.random() < how.caption_dropout:
        return ""
    if how.caption_dropout_every > 0 and epoch % how.caption_dropout_every == 0:
        return ""
    caption = _chosen(caption, chance) if how.wildcard else caption.split("\n")[0]
    if how.shuffle or how.tag_dropout > 0:
        front, tags, back = _parts(caption, how)
        if how.shuffle:
            chance.shuffle(tags)
        if how.tag_dropout > 0:
            tags = [tag for tag in tags if chance.random() >= how.tag_dropout]
        caption = ", ".join(front + tags + back)  # whatever the separator was
    return caption.replace(how.secondary_separator, how.separator) if how.secondary_separator else caption


def _chosen(caption: str, chance: random.Random) -> str:
    """One of the lines, and in it one of the parts of each `{a|b}`; doubled braces are braces."""
    if "\n" in caption:
        caption = chance.choice(caption.split("\n"))
    caption = caption.replace("{{", OPEN).replace("}}", CLOSE)
    end = caption.rfind("}") + 1  # behind it each brace would be sought an end for, up to the last character
    caption = re.sub(r"\{([^}]+)\}", lambda found: chance.choice(found[1].split("|")), caption[:end]) + caption[end:]
    return caption.replace(OPEN, "{").replace(CLOSE, "}")


def _parts(caption: str, how: Wording) -> tuple[list[str], list[str], list[str]]:
    """The tags that stay in front, those that vary, and those that stay behind."""
    if how.keep_separator and how.keep_separator in caption:
        parts = [[tag for part in text.split(how.separator) if (tag := part.strip())] for text in caption.split(how.keep_separator, 2)]
        return parts[0], parts[1], parts[2] if len(parts) == 3 else []
    tags = [part.strip() for part in caption.strip().split(how.separator)]
    return tags[: how.keep_tokens], tags[how.keep_tokens :], []
