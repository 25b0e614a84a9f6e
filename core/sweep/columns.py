"""Make or reuse columns of cells, those of one strength or point, and measure them as they come."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from core.generate.picture_file import save_picture
from core.schema import limits
from core.schema.errors import UserError
from core.schema.events import Event, Failed, Features, Picture, ReferenceFeatures, Step
from core.schema.types import Cell, Request
from core.sweep import cell_cache
from core.sweep.gauge import Column, Gauge, TagScores
from core.sweep.knees import HELD_RANGES, LEAST_GAINS
from core.sweep.measure import Item, Yardstick
from core.sweep.plan import SweepPlan
from core.sweep.resample import Curve
from core.system import disk

TOUCH_SECONDS = limits.HOUR / 6
"""Seconds between two times that a study marks its cells as in use."""
Make = Callable[..., Iterator[Event]]
"""Makes pictures or probes, as `core.runtime.gpu.generate_on_gpu`.

(cells, extractor, pictures, probe) -> events
"""


class ColumnStudy:
    """Columns under way: their pictures and measures at any time, whether finished or stopped.

    A column has a number, `strength`: 0 is the column of reference.
    """

    def __init__(self, plan: SweepPlan):
        self.plan = plan
        self.prompts: tuple[str, ...] = plan.prompts
        """The prompts so far: a sweep that looks at its verdict early begins with the first few."""
        self.strengths = list(plan.strengths)
        self.pictures: dict[tuple[float, Item], Path] = {}
        self.features: dict[tuple[float, Item], Features] = {}
        self.columns: dict[float, Column] = {}
        """Strength -> what was measured. Only strengths whose pictures are complete."""
        self.gauge: Gauge | None = None
        """What measures the columns; `None` until the pictures of strength 0 are complete."""
        self.unet_calls = 0
        self.cells_found = 0
        """Cells that were in the cache already."""
        self.seconds = 0.0
        self.reference_features: list[Features] = []
        """Features of the reference pictures."""
        self._last_touch = time.monotonic()

    def build_request(self, strength: float, item: Item) -> Request:
        """Return the request that makes a cell."""
        raise NotImplementedError

    def _find_trigger_tags(self, scores: Sequence[TagScores]) -> list[str]:
        """Return the tags that the trigger stands for, from the scores of the pictures of strength 0."""
        raise NotImplementedError

    @property
    def items(self) -> list[Item]:
        """A prompt and a seed for each picture of a strength, so far."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.plan.seeds]

    @property
    def yardstick(self) -> Yardstick:
        """The yardstick of the measures, from the pictures at strength 0, which must be measured."""
        assert self.gauge is not None
        return self.gauge.yardstick

    @property
    def unmeasured(self) -> dict[str, str]:
        """Measure -> why it is missing."""
        return dict(self.gauge.unmeasured) if self.gauge else {}

    def touch_cells(self) -> None:
        """Mark the study's cells as in use, at most once per `TOUCH_SECONDS`.

        Otherwise cells would expire in a study that takes longer than they are kept.
        """
        if time.monotonic() - self._last_touch >= TOUCH_SECONDS:
            self._last_touch = time.monotonic()
            for file in self.pictures.values():
                cell_cache.touch_cell(file.stem, self.plan.feature_extractor)

    @contextmanager
    def _account(self) -> Iterator[None]:
        """Count the seconds of the work, and say what it means when there is no disk for it."""
        disk.check_free_disk(cell_cache.FOLDER)
        begin = time.monotonic()
        try:
            yield
        except FileNotFoundError as error:
            if not Path(str(error.filename)).is_relative_to(cell_cache.FOLDER):
                raise
            raise UserError("disk", cell_cache.CELLS_GONE) from error
        finally:
            self.seconds += time.monotonic() - begin

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
                self.pictures[place], self.features[place] = cell_cache.picture_path(names[place]), seen
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
                    self.pictures[place], self.features[place] = self._save_cell(names[place], event), seen
                    self._measure_columns()
            self.touch_cells()
            yield event
            if isinstance(event, Failed):
                return
        self._measure_columns()

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

    def _measure_columns(self) -> None:
        """Measure the strengths whose pictures are complete.

        This starts once those of strength 0 are complete and the features of the references are
        known.
        """
        if len(self.reference_features) < len(self.plan.references) or len(self.plan.seeds) < 2:
            return
        for strength in [0.0, *self.strengths]:
            places = [(strength, item) for item in self.items]
            if strength in self.columns or not all(place in self.features for place in places):
                continue
            looks = [self.features[place] for place in places]
            files = [self.pictures[place] for place in places]
            if strength == 0:
                self.gauge = Gauge(
                    self.plan.settings.model,
                    self.items,
                    looks,
                    files,
                    self.reference_features,
                    self._find_trigger_tags,
                )
            if self.gauge is None:
                return
            self.columns[strength] = self.gauge.measure_column(looks, files)
            if strength:  # once measured, the levels need not stay in memory
                for place, look in zip(places, looks, strict=True):
                    self.features[place] = replace(look, levels=(), vae_roundtrip=None)

    def build_curves(self) -> dict[str, Curve]:
        """Return the measures that count for the verdict, as far as there are values of them."""
        curves = {name: self.build_curve(name, self.strengths) for name in (*LEAST_GAINS, *HELD_RANGES)}
        return {name: curve for name, curve in curves.items() if not np.isnan(curve).all()}

    def build_curve(self, name: str, strengths: Sequence[float]) -> Curve:
        """Return a measure, (strengths, prompts, seeds), NaN where there is no value."""
        columns = [self.columns[strength].values[name] for strength in strengths]
        return np.array(columns).reshape(len(columns), len(self.prompts), len(self.plan.seeds))

    @property
    def noise_floors(self) -> np.ndarray:
        """The effect of a VAE round trip, which changes nothing visible, (prompts, seeds)."""
        floors = [self.yardstick.noise_floors.get(item, np.nan) for item in self.items]
        return np.array(floors).reshape(len(self.prompts), len(self.plan.seeds))
