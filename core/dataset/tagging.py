"""Captions by a tagger, and tools for a table of captions: count, replace, advise.

The rule behind the advice: what is in the pictures but not in their captions goes into the trigger.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

from PIL import Image

from core.dataset.dataset import Dataset, Sample, replace_captions
from core.models.tagger import CHARACTER, GENERAL, Tagger
from core.prompts.tag_patterns import compile_patterns
from core.schema.bounds import format_value, is_number
from core.schema.errors import UserError

CHARACTER_THRESHOLD = 0.85
"""Least probability of a character, the usual value: taggers see known characters in strangers."""
BATCH_SIZE = 4  # pictures in memory at once
MAX_LISTED_TAGS = 8  # tags that one sentence names
MAX_TRIGGER_LENGTH = 200  # characters


def check_trigger(said: Any) -> str:
    """Return a trigger without blanks at its ends; `None` stands for none.

    Raises `UserError` for anything but one short line.
    """
    if said is None:
        return ""
    if not isinstance(said, str) or len(said) > MAX_TRIGGER_LENGTH or not said.isprintable():
        raise UserError(
            "trigger",
            f"{format_value(said)} is not valid. Use one line of up to {MAX_TRIGGER_LENGTH} characters.",
        )
    return said.strip()


def check_caption_options(
    threshold: Any, trigger: Any, drop: Sequence[str]
) -> tuple[str, list[re.Pattern[str]]]:
    """Return the trigger and the patterns of dropped tags, as `tag_dataset` takes its options.

    Raises `UserError` for an option that is not allowed.
    """
    if not is_number(threshold) or not 0 < threshold <= 1:  # NaN is not
        raise UserError(
            "threshold", f"{format_value(threshold)} is not valid. Use a number above 0, up to 1."
        )
    try:
        return check_trigger(trigger), compile_patterns(drop)
    except UserError as error:
        raise UserError("drop" if error.field == "ban" else error.field, error.sentence) from error


def tag_dataset(
    dataset: Dataset,
    tagger: Tagger,
    *,
    threshold: float = 0.35,
    trigger: str = "",
    drop: Sequence[str] = (),
    keep_existing: bool = True,
) -> Dataset:
    """Caption pictures with the trigger, then the tags that the tagger finds most probable.

    A tag needs a probability of at least `threshold`; the most probable come first. Leaves out tags
    that match one of `drop`, words or patterns as in `core.prompts.tag_patterns.compile_patterns`.
    Regularisation pictures get no trigger. With `keep_existing`, the default, a picture that has a
    caption keeps it. Raises `UserError` for a threshold, trigger or pattern that is not allowed.
    """
    trigger, dropped = check_caption_options(threshold, trigger, drop)
    least = {GENERAL: threshold, CHARACTER: max(threshold, CHARACTER_THRESHOLD)}
    captions = {}
    untold = [sample for sample in dataset.samples if not (keep_existing and sample.caption)]
    for start in range(0, len(untold), BATCH_SIZE):
        batch = untold[start : start + BATCH_SIZE]
        with ExitStack() as stack:
            found = tagger.read_tags(
                [stack.enter_context(Image.open(dataset.folder / sample.file)) for sample in batch]
            )
        for sample, seen in zip(batch, found, strict=True):
            tags = [
                tag
                for tag, sure in sorted(seen.items(), key=lambda item: -item[1])
                if sure >= least.get(tagger.categories[tag], 2)
            ]
            tags = [tag for tag in tags if not any(pattern.match(tag) for pattern in dropped)]
            first = [] if sample.regularisation else split_tags(trigger)
            captions[sample.file] = ", ".join(dict.fromkeys(first + tags))
    return replace_captions(dataset, captions)


def split_tags(caption: str) -> list[str]:
    """Return the tags of all lines of a caption, in order."""
    return [tag for part in caption.replace("\n", ",").split(",") if (tag := part.strip())]


def count_tags(dataset: Dataset) -> dict[str, int]:
    """Return tag -> how many captions contain it, the most frequent first.

    Regularisation pictures do not count.
    """
    return dict(
        Counter(
            tag
            for sample in _select_training_samples(dataset)
            for tag in dict.fromkeys(split_tags(sample.caption))
        ).most_common()
    )


def _select_training_samples(dataset: Dataset) -> list[Sample]:
    return [sample for sample in dataset.samples if not sample.regularisation]


def replace_tag(dataset: Dataset, search: str, replacement: str, *, whole_tag: bool = True) -> Dataset:
    """Replace each tag that is `search`, or, without `whole_tag`, that text wherever it stands.

    An empty replacement removes it; where whole tags are replaced, no tag ends up twice in a line.
    Raises `UserError` for an empty search and for captions that become too long.
    """
    if not search.strip():
        raise UserError("search", "enter a tag or a piece of text to search for.")

    def replace_in_line(line: str) -> str:
        if not whole_tag:
            return line.replace(search, replacement)
        tags = split_tags(line)
        if search.strip() not in tags:
            return line
        return ", ".join(
            dict.fromkeys(
                new for tag in tags for new in (split_tags(replacement) if tag == search.strip() else [tag])
            )
        )

    captions = {
        sample.file: "\n".join(replace_in_line(line) for line in sample.caption.split("\n"))
        for sample in dataset.samples
    }
    return replace_captions(dataset, captions)


def advise_captions(dataset: Dataset, trigger: str, known_tags: Collection[str] = ()) -> list[str]:
    """List what the captions will teach that may not be meant.

    `known_tags` are tags that mean something to the base model, such as a tagger's.
    """
    trained, called, found, said = (
        _select_training_samples(dataset),
        split_tags(trigger),
        count_tags(dataset),
        [],
    )
    if empty := sum(not sample.caption for sample in trained):
        said.append(
            f"{empty} of {len(trained)} images have no caption: "
            f"everything in them goes into {'the trigger word' if called else 'every prompt'}."
        )
    if not called:
        said.append("No trigger word: anything not captioned will affect every prompt.")
        return said
    if ordinary := [tag for tag in called if tag.replace("_", " ").lower() in known_tags]:
        said.append(
            f"The trigger word {ordinary[0]!r} is an ordinary tag that the model already knows; "
            "a made-up word is easier to tell apart."
        )
    if everywhere := [tag for tag, count in found.items() if count == len(trained) > 1 and tag not in called]:
        names = ", ".join(everywhere[:MAX_LISTED_TAGS]) + (" …" if len(everywhere) > MAX_LISTED_TAGS else "")
        said.append(
            f"In every caption: {names}. These are learned under their own names, not under the "
            "trigger word; remove what belongs to it."
        )
    return said
