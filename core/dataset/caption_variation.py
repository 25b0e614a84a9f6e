"""Varies a caption for one training step: kohya's shuffling, dropout and wildcards.

Draws from a given generator in the order of `process_caption` of kohya-ss/sd-scripts, so that the
same seed makes the same caption as there.
"""

import random
import re
from dataclasses import dataclass

from core.schema.errors import UserError

OPEN_BRACE, CLOSE_BRACE = "\x02", "\x03"
"""Stand for doubled braces while wildcards are chosen; no caption holds control characters."""


@dataclass(frozen=True, kw_only=True)
class CaptionVariation:
    """How captions vary from step to step; the defaults vary nothing.

    Raises `UserError` for a value that is not allowed.
    """

    shuffle: bool = False
    """Whether the tags come in another order each time."""
    keep_tokens: int = 0
    """This many tags at the front are neither shuffled nor dropped."""
    keep_separator: str = ""
    """Divides tags that are kept in front, tags that vary and tags that are kept behind; in a
    caption that has it, `keep_tokens` does not count."""
    separator: str = ","
    """Stands between tags."""
    secondary_separator: str = ""
    """Stands between tags that move and drop as one, and becomes `separator` in the end."""
    tag_dropout: float = 0.0
    """The chance of each tag to be left out."""
    caption_dropout: float = 0.0
    """The chance of the whole caption to be left out."""
    caption_dropout_every: int = 0
    """Every epoch whose number is a multiple of this has no captions; 0 for never."""
    prefix: str = ""
    """Goes before each caption with a space, and varies with it."""
    suffix: str = ""
    """Goes after each caption with a space, and varies with it."""
    wildcard: bool = False
    """Whether `{a|b}` stands for one of its parts and a caption for one of its lines; if not, the
    first line counts."""

    def __post_init__(self) -> None:
        for name in ("tag_dropout", "caption_dropout"):
            if type(chance := getattr(self, name)) not in (int, float) or not 0 <= chance <= 1:
                raise UserError(f"wording.{name}", f"{chance!r:.40} is not valid. Use a number from 0 to 1.")
        for name in ("keep_tokens", "caption_dropout_every"):
            if type(count := getattr(self, name)) is not int or count < 0:
                raise UserError(f"wording.{name}", f"{count!r:.40} is not valid. Use a whole number from 0.")
        if not self.separator:
            raise UserError("wording.separator", "it is empty; use the text that goes between tags.")


def vary_caption(caption: str, variation: CaptionVariation, rng: random.Random, epoch: int = 1) -> str:
    """Return the caption for one step of an epoch; epochs count from 1."""
    caption = f"{variation.prefix} {caption}" if variation.prefix else caption
    caption = f"{caption} {variation.suffix}" if variation.suffix else caption
    if variation.caption_dropout > 0 and rng.random() < variation.caption_dropout:
        return ""
    if variation.caption_dropout_every > 0 and epoch % variation.caption_dropout_every == 0:
        return ""
    caption = _choose_wildcards(caption, rng) if variation.wildcard else caption.split("\n")[0]
    if variation.shuffle or variation.tag_dropout > 0:
        front, tags, back = _split_tags(caption, variation)
        if variation.shuffle:
            rng.shuffle(tags)
        if variation.tag_dropout > 0:
            tags = [tag for tag in tags if rng.random() >= variation.tag_dropout]
        caption = ", ".join(front + tags + back)  # whatever the separator was
    return (
        caption.replace(variation.secondary_separator, variation.separator)
        if variation.secondary_separator
        else caption
    )


def _choose_wildcards(caption: str, rng: random.Random) -> str:
    """Choose one of the lines, and in it one of the parts of each `{a|b}`.

    Doubled braces are braces.
    """
    if "\n" in caption:
        caption = rng.choice(caption.split("\n"))
    caption = caption.replace("{{", OPEN_BRACE).replace("}}", CLOSE_BRACE)
    # After the last `}` the pattern would search the rest of the text for the end of each brace.
    end = caption.rfind("}") + 1
    caption = (
        re.sub(r"\{([^}]+)\}", lambda found: rng.choice(found[1].split("|")), caption[:end]) + caption[end:]
    )
    return caption.replace(OPEN_BRACE, "{").replace(CLOSE_BRACE, "}")


def _split_tags(caption: str, variation: CaptionVariation) -> tuple[list[str], list[str], list[str]]:
    """Return the tags that stay in front, those that vary, and those that stay behind."""
    if variation.keep_separator and variation.keep_separator in caption:
        parts = [
            [tag for part in text.split(variation.separator) if (tag := part.strip())]
            for text in caption.split(variation.keep_separator, 2)
        ]
        return parts[0], parts[1], parts[2] if len(parts) == 3 else []
    tags = [part.strip() for part in caption.strip().split(variation.separator)]
    return tags[: variation.keep_tokens], tags[variation.keep_tokens :], []
