"""Captions by a tagger, and the tools of a table of captions: count, replace, advise.

The rule that the advice is about: what is in the pictures but not in their captions goes into the trigger.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack

from PIL import Image

from core.caption import Tagger
from core.data.dataset import Dataset, Sample, with_captions
from core.expand import patterns
from core.types import UserError

GENERAL, CHARACTER = 0, 4
"""Numbers in `Tagger.categories`. Ratings and whatever else there is say nothing of what a picture shows."""
SURE = 0.85
"""Least probability of a character, as is customary: taggers see known ones in strangers."""
BATCH = 4  # pictures in memory
NAMES = 8  # tags that a sentence names


def tagged(dataset: Dataset, tagger: Tagger, *, threshold: float = 0.35, trigger: str = "", drop: Sequence[str] = (), keep_existing: bool = True) -> Dataset:
    """Captions of what the tagger sees: the trigger, then tags of at least `threshold`, the most probable first.

    Tags that match one of `drop`, words or patterns as in `core.expand.patterns`, are left out. Regularisation pictures get no
    trigger. With `keep_existing`, as usual, a picture that has a caption keeps it as it is. Raises `UserError` for a threshold or pattern
    that is not allowed.
    """
    if not (isinstance(threshold, int | float) and 0 < threshold <= 1):  # false for NaN
        raise UserError(f"threshold: {threshold!r:.40} is not allowed; it takes a number above 0, up to 1.")
    try:
        dropped = patterns(drop)
    except UserError as error:
        raise UserError(f"drop: {str(error).removeprefix('ban: ')}") from error
    least = {GENERAL: threshold, CHARACTER: max(threshold, SURE)}
    captions = {}
    untold = [sample for sample in dataset.samples if not (keep_existing and sample.caption)]
    for start in range(0, len(untold), BATCH):
        batch = untold[start : start + BATCH]
        with ExitStack() as stack:
            found = tagger.read([stack.enter_context(Image.open(dataset.folder / sample.file)) for sample in batch])
        for sample, seen in zip(batch, found, strict=True):
            tags = [tag for tag, sure in sorted(seen.items(), key=lambda item: -item[1]) if sure >= least.get(tagger.categories[tag], 2)]
            tags = [tag for tag in tags if not any(pattern.match(tag) for pattern in dropped)]
            first = [] if sample.regularisation else tags_of(trigger)
            captions[sample.file] = ", ".join(dict.fromkeys(first + tags))
    return with_captions(dataset, captions)


def tags_of(caption: str) -> list[str]:
    """The tags of all its lines, in order."""
    return [tag for part in caption.replace("\n", ",").split(",") if (tag := part.strip())]


def counts(dataset: Dataset) -> dict[str, int]:
    """Tag -> in how many captions it stands, the most frequent first; regularisation pictures do not count."""
    return dict(Counter(tag for sample in _trained(dataset) for tag in dict.fromkeys(tags_of(sample.caption))).most_common())


def _trained(dataset: Dataset) -> list[Sample]:
    return [sample for sample in dataset.samples if not sample.regularisation]


def replaced(dataset: Dataset, search: str, replacement: str, *, whole: bool = True) -> Dataset:
    """Captions with `replacement` for each tag that is `search`, or, if not `whole`, for that text wherever it stands.

    Nothing for a replacement takes it out; no tag comes to stand in a line twice. Raises `UserError` for an empty search and
    for captions that become too long.
    """
    if not search.strip():
        raise UserError("search: it is empty; it takes a tag, or a piece of text.")

    def changed(line: str) -> str:
        if not whole:
            return line.replace(search, replacement)
        tags = tags_of(line)
        if search.strip() not in tags:
            return line
        return ", ".join(dict.fromkeys(new for tag in tags for new in (tags_of(replacement) if tag == search.strip() else [tag])))

    captions = {sample.file: "\n".join(changed(line) for line in sample.caption.split("\n")) for sample in dataset.samples}
    return with_captions(dataset, captions)


def advice(dataset: Dataset, trigger: str, known: Collection[str] = ()) -> list[str]:
    """What the captions will teach that may not be meant. `known` are tags that mean something to the base model, such as a tagger's."""
    trained, called, found, said = _trained(dataset), tags_of(trigger), counts(dataset), []
    if empty := sum(not sample.caption for sample in trained):
        said.append(f"{empty} of {len(trained)} pictures have no caption: all that they show goes into {'the trigger' if called else 'every prompt'}.")
    if not called:
        said.append("There is no trigger: what is in the pictures but not in their captions goes into every prompt.")
        return said
    if ordinary := [tag for tag in called if tag.replace("_", " ").lower() in known]:
        said.append(f"The trigger {ordinary[0]!r} is an ordinary tag, which the model draws already; a word without a meaning is told apart better.")
    if everywhere := [tag for tag, count in found.items() if count == len(trained) > 1 and tag not in called]:
        names = ", ".join(everywhere[:NAMES]) + (" …" if len(everywhere) > NAMES else "")
        said.append(f"On every caption: {names}. These are learned by their own names, not by the trigger; take out what belongs to it.")
    return said
