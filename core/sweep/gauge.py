"""Measure columns of pictures, those of one strength or point, against the column of reference.

What another seed changes in the column of reference is the unit of every distance.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from core.generate.features import PARTS_PER_SIDE
from core.generate.stages import details
from core.lora import apply as lora
from core.models import bases, tools
from core.models.preset_match import find_preset
from core.models.tagger import CHARACTER, GENERAL, Tagger
from core.prompts.conditioning import resolve_prompt
from core.prompts.grammar import Span
from core.schema.errors import UserError
from core.schema.events import Features
from core.sweep import measure
from core.sweep.measure import Item

MEASURES = (
    "effect",
    "style",
    "trigger",
    "composition",
    "prompt",
    "detail",
    "saturation",
    "effect_face",
    "effect_background",
)
USUAL_SHARE = 0.5
"""A tag is usual if it has at least this share of the count of the LoRA's most frequent tag."""
MIN_FACE = 0.3
"""Confidence from which a detected face counts."""

TagScores = Mapping[str, float]
"""Tag -> its probability in a picture, as the tagger reads it."""
FindTriggerTags = Callable[[Sequence[TagScores]], list[str]]
"""Scores of each picture of reference -> the tags that the trigger stands for."""


@dataclass(frozen=True, eq=False)
class Column:
    """What was measured of the pictures of one strength or point, a row for each item."""

    values: Mapping[str, np.ndarray]
    """Measure -> (items,), NaN where there is no value."""
    style_shifts: np.ndarray
    """How far each picture's style lies from its reference's, in seed units, (items, width)."""
    tag_scores: np.ndarray
    """Probability of each of the gauge's tags, (items, tags) in float16."""


class Gauge:
    """Measures columns of the same items against their column of reference."""

    def __init__(
        self,
        model: str,
        items: Sequence[Item],
        features: Sequence[Features],
        files: Sequence[Path],
        wanted: Sequence[Features],
        find_trigger_tags: FindTriggerTags,
    ):
        """Take the pictures of reference, `features` and `files`, one for each item.

        At least one prompt must have two seeds. `wanted` are the features of reference images of the style
        that is wanted, if there are any; `model` says which tagger and detector look at the pictures.
        """
        self.unmeasured: dict[str, str] = {}
        """Measure -> why it is missing."""
        self.yardstick = measure.build_yardstick(dict(zip(items, features, strict=True)))
        self._items, self._features, self._files, self._wanted = items, features, files, wanted
        self._tagger = self._find_tagger(model)
        self.tags = (
            [tag for tag in self._tagger.tags if self._tagger.categories[tag] in (GENERAL, CHARACTER)]
            if self._tagger
            else []
        )
        """The tagger's tags that say what a picture shows; empty without a tagger."""
        self._scores = self._read_tags(files)
        self._trigger_tags = find_trigger_tags(self._scores) if self._tagger else []
        self._faces = self._find_faces(model)

    def measure_column(self, features: Sequence[Features], files: Sequence[Path]) -> Column:
        """Measure the pictures of a column, one for each item."""
        scores = self._read_tags(files)
        rows = [
            self._measure_picture(i, look, file, scores[i] if scores else {})
            for i, (look, file) in enumerate(zip(features, files, strict=True))
        ]
        shifts = [
            measure.style_shift(look.levels, base.levels, self.yardstick.scales) / self.yardstick.style_unit
            for look, base in zip(features, self._features, strict=True)
        ]
        return Column(
            {name: np.array([row.get(name, np.nan) for row in rows], float) for name in MEASURES},
            np.stack(shifts),
            np.array([[read[tag] for tag in self.tags] for read in scores], np.float16),
        )

    def _measure_picture(self, i: int, look: Features, file: Path, scores: TagScores) -> dict[str, float]:
        """Return the measures of the i-th item's picture, without those that it has no value of."""
        base, yard = self._features[i], self.yardstick
        found = {
            "effect": measure.effect(look, base, yard),
            "composition": measure.composition(look, base),
            "saturation": measure.saturation(look, yard),
        }
        with Image.open(file) as picture, Image.open(self._files[i]) as reference:
            found["detail"] = measure.detail(picture, reference)
        if self._wanted:
            found["style"] = measure.style(look, self._wanted, yard)
        if scores:
            share = measure.prompt(scores, self._scores[i], extract_tags(self._items[i][0]))
            found |= {} if share is None else {"prompt": share}
        if self._trigger_tags:
            found["trigger"] = float(np.mean([scores[tag] for tag in self._trigger_tags]))
        if (face := self._faces[i]) is not None:
            found["effect_face"] = measure.effect(look, base, yard, face)
            found["effect_background"] = measure.effect(look, base, yard, 1 - face)
        return found

    def _find_tagger(self, model: str) -> Tagger | None:
        name = bases.find_model(model).tagger
        try:
            if name is None:
                raise UserError(
                    None, f"No tagger is available for {model}, so prompt following was not measured."
                )
            return _load_tagger(tools.fetch_tool("tagger", name))
        except UserError as error:
            self.unmeasured["prompt"] = str(error)
            return None

    def _read_tags(self, files: Sequence[Path]) -> list[dict[str, float]]:
        """Return the scores of each picture; empty without a tagger."""
        if self._tagger is None:
            return []
        return self._tagger.read_tags([Image.open(file).convert("RGB") for file in files])

    def _find_faces(self, model: str) -> list[np.ndarray | None]:
        """Return for each picture of reference how much of each part is face; `None` where there is none."""
        found: list[np.ndarray | None] = []
        try:
            finder, _ = details.find_detector(find_preset(model).detail.detector)
        except UserError as error:
            self.unmeasured["effect_face"] = self.unmeasured["effect_background"] = str(error)
            return [None] * len(self._items)
        for file in self._files:
            with Image.open(file) as picture:
                boxes = [each.box for each in finder.find(picture.convert("RGB"), MIN_FACE)]
                found.append(measure.box_coverage(boxes, picture.size, PARTS_PER_SIDE) if boxes else None)
        return found


def extract_tags(prompt: str) -> list[str]:
    """Return the tags that a prompt names, without weights."""
    text = "".join(part.text for part in resolve_prompt(prompt) if isinstance(part, Span))
    return [tag.strip().replace("_", " ") for tag in text.split(",") if tag.strip()]


def list_usual_tags(lora_path: str) -> set[str]:
    """Return the tags that most of a LoRA's training pictures have, as its file tells."""
    counts = lora.get_lora_file(lora_path).tags
    least = USUAL_SHARE * max(counts.values(), default=0)
    return {tag.replace("_", " ") for tag, count in counts.items() if count >= least}


@cache
def _load_tagger(folder: Path) -> Tagger:
    return Tagger(folder)
