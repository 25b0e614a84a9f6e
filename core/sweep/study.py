"""Run a sweep: one LoRA over strengths, prompts and seeds.

Cells are made or taken from the cache, measured as they come, and decided upon.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from core.generate.features import PARTS_PER_SIDE
from core.generate.picture_file import save_picture
from core.generate.probe import CAUGHT_SHARES, Probe
from core.generate.stages import details
from core.lora import apply as lora
from core.models import bases, embedding_library, lora_library, tools
from core.models.measured_strengths import MeasuredStrength, record_strength
from core.models.preset_match import find_preset
from core.models.tagger import CHARACTER, GENERAL, Tagger
from core.prompts.conditioning import resolve_prompt
from core.prompts.embeddings import select_embeddings
from core.prompts.grammar import Span
from core.schema import limits
from core.schema.errors import UserError
from core.schema.events import Event, Failed, Features, ModelChange, Picture, ReferenceFeatures, Step
from core.schema.types import Cell, Request
from core.sweep import cell_cache, measure
from core.sweep.character import Character, describe_character
from core.sweep.decide import LEVEL, LOOK_LEVEL, decide_verdict, is_settled
from core.sweep.knees import HELD_RANGES, LEAST_GAINS
from core.sweep.measure import Item
from core.sweep.pace import record_pace
from core.sweep.plan import NO_LORA, SweepPlan
from core.sweep.resample import Curve
from core.sweep.strengths import SEARCHED_CHANGES, explain_no_strengths, extend_strengths, place_strengths
from core.sweep.verdict import Verdict
from core.system import disk
from core.system.tensor_files import calculate_sha256

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
TRIGGER_SHARE = 0.5
"""A tag belongs to the trigger if it has at least this share of the count of the LoRA's most frequent tag."""
PROBED_PICTURES = 4
"""Pictures of which a probe asks single calls again: of different prompts, where there are so many."""
TOUCH_SECONDS = limits.HOUR / 6
"""Seconds between two times that a study marks its cells as in use."""
Make = Callable[..., Iterator[Event]]
"""Makes pictures or probes, as `core.runtime.gpu.generate_on_gpu`.

(cells, extractor, pictures, probe) -> events
"""


class SweepStudy:
    """A sweep under way: its results at any time, whether it is finished or stopped."""

    def __init__(self, plan: SweepPlan):
        self.plan = plan
        self.sha256 = calculate_sha256(Path(plan.lora.path)) if plan.lora != NO_LORA else ""
        """Hash of the LoRA's file, so that the measurements stay with it."""
        self._lora_name = lora_library.find_name(Path(plan.lora.path))  # the library is listed once
        self.prompts: tuple[str, ...] = plan.prompts
        """The prompts so far: a sweep that looks at its verdict early begins with the first few."""
        self.strengths = list(plan.strengths)
        self.changes: dict[float, float] = {}
        """Strength -> how much it changes single calls of the model, as a probe found; empty without one."""
        self.pictures: dict[tuple[float, Item], Path] = {}
        self.features: dict[tuple[float, Item], Features] = {}
        self.measurements: dict[float, dict[str, np.ndarray]] = {}
        """Strength -> measure -> a number for each item, NaN where there is none.

        Only strengths whose pictures are complete.
        """
        self.style_shifts: dict[tuple[float, Item], np.ndarray] = {}
        """Shift of each measured picture's style from strength 0, in seed units, (width,)."""
        self.tag_scores: dict[tuple[float, Item], np.ndarray] = {}
        """Probability of each of `tags` in each measured picture, (tags,) in float16."""
        self.tags: list[str] = []
        """The tagger's tags that say what a picture shows; empty without a tagger."""
        self.verdict: Verdict | None = None
        self.unmeasured: dict[str, str] = {}
        """Measure -> why it is missing."""
        self.unet_calls = 0
        self.cells_found = 0
        """Cells that were in the cache already."""
        self.seconds = 0.0
        self._last_touch = time.monotonic()
        self.reference_features: list[Features] = []
        """Features of the reference pictures."""

    def run(self, make: Make) -> Generator[Event, None, None]:
        """Make the missing cells, yielding `Step`s and `Picture`s as they come.

        A plan without strengths gets them from a probe first; if that finds no strength worth a picture, the
        verdict says so and no picture is made. Ends with `Failed` when a job fails. Closing the generator
        stops the work.

        Raises `UserError` if the disk has no room, or had so little that cells were deleted
        meanwhile.
        """
        with self._account():
            if not self.strengths:
                yield from self._find_strengths(make)
            if not self.strengths:
                return
            for many in self.plan.looks or (len(self.plan.prompts),):
                self._take_prompts(many)
                yield from self._run_columns(make, _order_coarse_first(self.strengths))
                self.verdict = self._decide() if self._is_complete() else None
                while self._goes_on() and (further := self._find_further()):
                    yield from self._add_strengths(make, further)
                if self.verdict is None or is_settled(self.verdict):
                    break
            if self.verdict and self.plan.refine and (between := self._find_midpoints()):
                yield from self._add_strengths(make, between)
            if self.verdict:
                self._record_strength()

    def go_on(self, make: Make, strengths: Sequence[float]) -> Generator[Event, None, None]:
        """Add strengths after `run`, which yields and raises the same."""
        with self._account():
            yield from self._add_strengths(make, strengths)
            if self.verdict:
                self._record_strength()

    def _add_strengths(self, make: Make, strengths: Sequence[float]) -> Iterator[Event]:
        self.strengths = sorted({*self.strengths, *strengths})
        yield from self._run_columns(make, strengths)
        self.verdict = self._decide() if self._is_complete() else None

    @contextmanager
    def _account(self) -> Iterator[None]:
        """Count the seconds of the work, and say what it means when there is no disk for it."""
        disk.check_free_disk(cell_cache.FOLDER)
        begin, before = time.monotonic(), len(self.pictures) - self.cells_found
        try:
            yield
        except FileNotFoundError as error:
            if not Path(str(error.filename)).is_relative_to(cell_cache.FOLDER):
                raise
            raise UserError("disk", cell_cache.CELLS_GONE) from error
        finally:
            spent = time.monotonic() - begin
            self.seconds += spent
            asked = self.plan.settings
            pixel_steps = asked.width * asked.height * asked.steps
            made = len(self.pictures) - self.cells_found - before
            record_pace(asked.model, pixel_steps, made, spent)

    def _find_further(self) -> list[float]:
        """Return strengths to try beyond the last one; none where no more are allowed."""
        room = max(0, limits.SWEEP_CELLS // len(self.items) - len(self.strengths))
        return extend_strengths(self.strengths, self.plan.limit)[:room]

    def build_request(self, strength: float, item: Item) -> Request:
        """Return the request that makes a cell.

        At strength 0 it does not mention the LoRA, so that every sweep shares the cell.
        """
        use = replace(self.plan.lora, strength=strength)
        prompt, loras = item[0], (use,) if strength else ()
        texts, shared = (prompt, self.plan.settings.negative), self.plan.settings.embeddings
        bundled = embedding_library.find_bundled_embeddings(texts, loras)
        return replace(
            self.plan.settings,
            seed=item[1],
            prompt=f"{prompt} {lora_library.format_lora_tag(use, self._lora_name)}" if loras else prompt,
            loras=loras,
            embeddings=select_embeddings(texts, (*bundled, *shared)),
        )

    def touch_cells(self) -> None:
        """Mark the study's cells as in use, at most once per `TOUCH_SECONDS`.

        Otherwise cells would expire in a study that takes longer than they are kept.
        """
        if time.monotonic() - self._last_touch >= TOUCH_SECONDS:
            self._last_touch = time.monotonic()
            for file in self.pictures.values():
                cell_cache.touch_cell(file.stem, self.plan.feature_extractor)

    @property
    def items(self) -> list[Item]:
        """A prompt and a seed for each picture of a strength, so far."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.plan.seeds]

    def _take_prompts(self, many: int) -> None:
        """Begin with the first prompts, or go on with more: all is measured anew, by their yardstick."""
        self.prompts = self.plan.prompts[:many]
        self.measurements = {}
        for name in ("yardstick", "_tags_at_zero", "_faces", "_trigger_tags"):
            self.__dict__.pop(name, None)

    def _find_strengths(self, make: Make) -> Iterator[Event]:
        """Fill in the strengths of a first pass by a probe, or the verdict that none is worth a picture."""
        items = [(prompt, seed) for seed in self.plan.seeds for prompt in self.plan.prompts]
        asked = tuple(self.build_request(self.plan.limit, item) for item in items[:PROBED_PICTURES])
        probe = Probe(requests=asked, changes=SEARCHED_CHANGES)
        key = cell_cache.hash_probe(probe)
        found = cell_cache.load_changes(key)
        if not found:
            for event in make([], feature_extractor=self.plan.feature_extractor, probe=probe):
                match event:
                    case ModelChange():
                        found[event.strength] = event.change
                        self.unet_calls += len(asked) * len(CAUGHT_SHARES)
                    case Step():
                        self.unet_calls += 1
                yield event
                if isinstance(event, Failed):
                    return
            cell_cache.save_changes(key, found)
        self.changes = found
        if why := explain_no_strengths(found):
            unseen = max(found.values()) < SEARCHED_CHANGES[0]
            self.verdict = Verdict(answer="no change" if unseen else "breaks", intervals={}, why=why)
        else:
            self.strengths = place_strengths(found)

    def _goes_on(self) -> bool:
        """Whether strengths that were found go on beyond the last one: rather until something breaks."""
        return not self.plan.strengths and self.verdict is not None and self.verdict.answer == "rising"

    def _is_complete(self) -> bool:
        return all((strength, item) in self.pictures for strength in self.strengths for item in self.items)

    def _run_columns(self, make: Make, strengths: Sequence[float]) -> Iterator[Event]:
        asked = [(strength, item) for strength in strengths for item in self.items]
        made = sum(place in self.pictures for place in asked)
        names = {place: cell_cache.hash_request(self.build_request(*place)) for place in asked}
        missing = []
        for place in asked:
            if (seen := cell_cache.load_features(names[place], self.plan.feature_extractor)) is None:
                missing.append(place)
            else:
                self._add_cell(place, cell_cache.picture_path(names[place]), seen)
        self.cells_found += len(asked) - len(missing) - made
        self._measure_columns()
        wanted = (
            [self._open_reference(file) for file in self.plan.references]
            if not self.reference_features
            else []
        )
        if not missing and wanted:
            missing = asked[:1]  # only a job gives reference features: make one cell again
        if not missing:
            return
        jobs = [
            Cell(label=f"strength {strength:g}, seed {item[1]}", request=self.build_request(strength, item))
            for strength, item in missing
        ]
        for event in make(jobs, feature_extractor=self.plan.feature_extractor, pictures=wanted):
            match event:
                case ReferenceFeatures():
                    self.reference_features.append(event.features)
                case Step():
                    self.unet_calls += 1
                case Picture(features=Features() as seen):
                    place = missing[event.index]
                    self._add_cell(place, self._save_cell(names[place], event), seen)
                    self._measure_columns()
            self.touch_cells()
            yield event
            if isinstance(event, Failed):
                return
        self._measure_columns()

    def _add_cell(self, place: tuple[float, Item], file: Path, features: Features) -> None:
        self.pictures[place], self.features[place] = file, features

    def _save_cell(self, name: str, event: Picture) -> Path:
        request, file = event.cell.request, cell_cache.picture_path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_picture(event.image, request, file)
        assert event.features is not None
        cell_cache.save_features(name, self.plan.feature_extractor, event.features)
        return file

    def _open_reference(self, file: str) -> Image.Image:
        with Image.open(file) as picture:
            return ImageOps.fit(
                ImageOps.exif_transpose(picture).convert("RGB"),
                (self.plan.settings.width, self.plan.settings.height),
            )

    # --- measuring -----------------------------------------------------------------------------

    def _measure_columns(self) -> None:
        """Measure the strengths whose pictures are complete.

        This starts once those of strength 0 are complete and the features of the references are
        known.
        """
        if len(self.reference_features) < len(self.plan.references):
            return
        for strength in [0.0, *self.strengths]:
            whole = all((strength, item) in self.features for item in self.items)
            if (
                whole
                and strength not in self.measurements
                and len(self.plan.seeds) > 1
                and (strength == 0 or 0.0 in self.measurements)
            ):
                self.measurements[strength] = self._measure_column(strength)
                if strength:  # once measured, the levels need not stay in memory
                    for item in self.items:
                        self.features[strength, item] = replace(
                            self.features[strength, item], levels=(), vae_roundtrip=None
                        )

    def _measure_column(self, strength: float) -> dict[str, np.ndarray]:
        yard, read_at_zero, read, boxes = (
            self.yardstick,
            self._tags_at_zero,
            self._read_tags(strength),
            self._faces,
        )
        column: dict[str, list[float]] = {name: [] for name in MEASURES}
        for i, item in enumerate(self.items):
            look, base = self.features[strength, item], self.features[0.0, item]
            with (
                Image.open(self.pictures[strength, item]) as picture,
                Image.open(self.pictures[0.0, item]) as at_zero,
            ):
                column["detail"].append(measure.detail(picture, at_zero))
            column["effect"].append(measure.effect(look, base, yard))
            shift = measure.style_shift(look.levels, base.levels, yard.scales) / yard.style_unit
            self.style_shifts[strength, item] = shift
            if read:
                self.tag_scores[strength, item] = np.array([read[i][tag] for tag in self.tags], np.float16)
            column["style"].append(
                measure.style(look, self.reference_features, yard) if self.reference_features else np.nan
            )
            column["composition"].append(measure.composition(look, base))
            share = (
                measure.prompt(read[i], read_at_zero[i], self._extract_tags(item[0]))
                if read and read_at_zero
                else None
            )
            column["prompt"].append(np.nan if share is None else share)
            column["saturation"].append(measure.saturation(look, yard))
            column["trigger"].append(
                float(np.mean([read[i][tag] for tag in self._trigger_tags]))
                if read and self._trigger_tags
                else np.nan
            )
            face = boxes[i]
            column["effect_face"].append(
                measure.effect(look, base, yard, face) if face is not None else np.nan
            )
            column["effect_background"].append(
                measure.effect(look, base, yard, 1 - face) if face is not None else np.nan
            )
        return {name: np.array(values, float) for name, values in column.items()}

    @cached_property
    def yardstick(self) -> measure.Yardstick:
        """The yardstick of the measures, from the features at strength 0."""
        return measure.build_yardstick({item: self.features[0.0, item] for item in self.items})

    @cached_property
    def _tags_at_zero(self) -> list[dict[str, float]] | None:
        return self._read_tags(0.0)

    @cached_property
    def _trigger_tags(self) -> list[str]:
        """The tags that the trigger stands for: of most training pictures, but of few without the LoRA."""
        counts, read = lora.get_lora_file(self.plan.lora.path).tags, self._tags_at_zero
        if not read or not counts:
            return []
        least = TRIGGER_SHARE * max(counts.values())
        usual = {tag.replace("_", " ") for tag, count in counts.items() if count >= least}
        return [
            tag
            for tag in sorted(usual & read[0].keys())
            if np.mean([each[tag] for each in read]) < measure.TAG_THRESHOLD
        ]

    def _read_tags(self, strength: float) -> list[dict[str, float]] | None:
        """Return the tags of each picture of a column, or `None` if the model has no tagger."""
        name = bases.find_model(self.plan.settings.model).tagger
        try:
            if name is None:
                raise UserError(
                    None,
                    f"No tagger is available for {self.plan.settings.model}, "
                    "so prompt following was not measured.",
                )
            tagger = _load_tagger(tools.fetch_tool("tagger", name))
        except UserError as error:
            self.unmeasured["prompt"] = str(error)
            return None
        self.tags = [tag for tag in tagger.tags if tagger.categories[tag] in (GENERAL, CHARACTER)]
        return tagger.read_tags(
            [Image.open(self.pictures[strength, item]).convert("RGB") for item in self.items]
        )

    @cached_property
    def _faces(self) -> list[np.ndarray | None]:
        """Return for each item how much of each part of its strength-0 picture is face.

        `None` where no face is found.
        """
        found: list[np.ndarray | None] = []
        try:
            finder, _ = details.find_detector(find_preset(self.plan.settings.model).detail.detector)
        except UserError as error:
            self.unmeasured["effect_face"] = self.unmeasured["effect_background"] = str(error)
            return [None] * len(self.items)
        for item in self.items:
            with Image.open(self.pictures[0.0, item]) as picture:
                boxes = [each.box for each in finder.find(picture.convert("RGB"), 0.3)]
                found.append(measure.box_coverage(boxes, picture.size, PARTS_PER_SIDE) if boxes else None)
        return found

    def _extract_tags(self, prompt: str) -> list[str]:
        text = "".join(part.text for part in resolve_prompt(prompt) if isinstance(part, Span))
        return [tag.strip().replace("_", " ") for tag in text.split(",") if tag.strip()]

    # --- deciding ------------------------------------------------------------------------------

    def _decide(self) -> Verdict:
        if len(self.plan.seeds) < 2:  # nothing is measured
            nothing = np.zeros((len(self.strengths), len(self.prompts), 1))
            return decide_verdict(self.strengths, {"effect": nothing}, nothing[0])
        return decide_verdict(self.strengths, self.build_curves(), self.noise_floors, self.level)

    def build_curves(self) -> dict[str, Curve]:
        """Return the measures that count for the verdict, as far as there are values of them."""
        curves = {name: self.build_curve(name, self.strengths) for name in (*LEAST_GAINS, *HELD_RANGES)}
        return {name: curve for name, curve in curves.items() if not np.isnan(curve).all()}

    @property
    def level(self) -> float:
        """The share of the draws that a claim needs."""
        return LOOK_LEVEL if len(self.plan.looks) > 1 else LEVEL

    def build_curve(self, name: str, strengths: Sequence[float]) -> Curve:
        """Return a measure, (strengths, prompts, seeds), NaN where there is no value."""
        columns = [self.measurements[strength][name] for strength in strengths]
        return np.array(columns).reshape(len(columns), len(self.prompts), len(self.plan.seeds))

    @property
    def noise_floors(self) -> np.ndarray:
        """The effect of a VAE round trip, which changes nothing visible, (prompts, seeds)."""
        floors = [self.yardstick.noise_floors.get(item, np.nan) for item in self.items]
        return np.array(floors).reshape(len(self.prompts), len(self.plan.seeds))

    def find_character(self) -> Character | None:
        """Return what the LoRA is at the strength tried nearest the recommended one; `None` without one."""
        if self.verdict is None or (recommended := self.verdict.recommended) is None:
            return None
        tried = min(filter(None, self.measurements), key=lambda strength: abs(strength - recommended))

        def gather(kept: dict[tuple[float, Item], np.ndarray], strength: float) -> np.ndarray:
            rows = np.stack([kept[strength, item] for item in self.items])
            return rows.reshape(-1, len(self.plan.seeds), rows.shape[1])

        scores = [gather(self.tag_scores, strength) for strength in (0.0, tried)] if self.tags else []
        return describe_character(tried, gather(self.style_shifts, tried), self.tags, *scores)

    def _record_strength(self) -> None:
        """Keep the sweet spot for the LoRA library, if there is one and the whole LoRA was swept."""
        if (
            self.verdict
            and self.verdict.sweet_spot
            and self.verdict.recommended
            and not self.plan.lora.blocks
        ):
            found = self.find_character()
            record_strength(
                Path(self.plan.lora.path),
                MeasuredStrength(
                    model=self.plan.settings.model,
                    recommended=self.verdict.recommended,
                    interval=self.verdict.sweet_spot,
                    action=found and found.action,
                    consistency=found and found.consistency,
                ),
            )

    def _find_midpoints(self) -> list[float]:
        """Return midpoints next to onset, both ends of the sweet spot and breakdown."""
        assert self.verdict is not None
        knees = [
            knee
            for knee in (self.verdict.onset, *(self.verdict.sweet_spot or ()), self.verdict.breakdown)
            if knee is not None
        ]
        steps = [
            (a, b)
            for a, b in zip(self.strengths, self.strengths[1:], strict=False)
            if a in knees or b in knees
        ]
        found = {round((a + b) / 2, 4) for a, b in steps}
        room = max(0, limits.SWEEP_CELLS // len(self.items) - len(self.strengths))
        return sorted(found)[:room]


def _order_coarse_first(strengths: Sequence[float]) -> list[float]:
    """Order the strengths as 0, the end, then halves, quarters and so on.

    So the curve spans the range early and fills up.
    """
    order, step = [0.0, strengths[-1], strengths[0]], 1 << max(0, len(strengths) - 1).bit_length()
    while step := step // 2:
        order += strengths[::step]
    return list(dict.fromkeys(order))


@cache
def _load_tagger(folder: Path) -> Tagger:
    return Tagger(folder)
