"""Run a transfer study: a sweep for each pair of LoRA and base model.

Each model is loaded once. Afterwards styles are compared over the whole table.
"""

import hashlib
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from core.generate.features import VAE
from core.lora import apply as lora
from core.models import bases, files, loader
from core.schema.errors import UserError
from core.schema.events import Event, Failed, Features, ModelLoaded
from core.sweep import cell_cache, measure, study
from core.sweep.measure import Item
from core.sweep.plan import SweepPlan
from core.sweep.study import Make
from core.system.concurrency import drain
from core.transfer.judge import HomeBaseline, Judgement, judge_pair
from core.transfer.plan import TransferLora, TransferPlan

PAIR_MEASURES = ("effect", "composition", "prompt", "detail", "saturation")
"""What a pair's sweep measures against its own strength 0.

`TransferStudy` adds `style` and `own_style`.
"""
PairKey = tuple[str, str]
"""The name of a row (a LoRA), and that of a model."""


@dataclass
class TransferPair:
    """A LoRA on a base model."""

    row: TransferLora
    model: str
    sweep: study.SweepStudy
    failure: str | None = None
    """Why the pair's pictures could not be made, or no longer be measured."""
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    """Measure -> (strengths, items); NaN where there is no value."""
    judgement: Judgement | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every strength is measured and nothing failed."""
        return self.failure is None and all(
            strength in self.sweep.measurements for strength in self.sweep.strengths
        )


class TransferStudy:
    """A transfer study under way: its results at any time, whether it is finished or stopped."""

    def __init__(self, plan: TransferPlan):
        self.plan = plan
        self.strengths = list(plan.strengths)
        self.pairs: dict[PairKey, TransferPair] = {
            (row.name, model): TransferPair(row, model, study.SweepStudy(self._build_sweep(row, model)))
            for model in self._order_models()
            for row in plan.loras
        }
        self.unmeasured: dict[str, str] = {}
        """Measure -> why it is missing in some of the pairs."""
        self.model_loads: list[str] = []
        """The models that were loaded, in order."""
        self.gpu_unavailable = ""
        """Why no GPU is available any more; empty otherwise."""
        self.seconds = 0.0

    def run(self, make: Make) -> Generator[Event, None, None]:
        """Make the missing pictures, yielding `Step`s and `Picture`s as they come.

        A pair that cannot be made records why, and the next one begins. Closing the generator stops
        the work.
        """
        begin = time.monotonic()
        try:
            for model in self._order_models():
                yield from self._run_model(model, make)
            self._judge_pairs()
        finally:
            self.seconds += time.monotonic() - begin

    @property
    def items(self) -> list[Item]:
        """The (prompt, seed) pairs, the same for every pair of a LoRA and a model."""
        return next(iter(self.pairs.values())).sweep.items

    @property
    def unet_calls(self) -> int:
        """Calls of the U-Net so far, over all pairs."""
        return sum(pair.sweep.unet_calls for pair in self.pairs.values())

    def count_done(self) -> tuple[int, int]:
        """Return how many pictures are finished, and how many there are in all.

        Strength 0 counts once per model.
        """
        zero = {
            (model, item)
            for (_, model), pair in self.pairs.items()
            for item in self.items
            if (0.0, item) in pair.sweep.pictures
        }
        worn = sum(strength != 0 for pair in self.pairs.values() for strength, _ in pair.sweep.pictures)
        each = len(self.items) * (1 + len(self.plan.loras) * (len(self.strengths) - 1))
        return len(zero) + worn, each * len(self.plan.models)

    def _order_models(self) -> list[str]:
        """Return the models with the loaded one first, so that each is loaded once."""
        return sorted(self.plan.models, key=lambda name: name != bases.get_loaded_name())

    def _build_sweep(self, row: TransferLora, model: str) -> SweepPlan:
        settings = replace(self.plan.settings, model=model)
        axes = {"prompts": self.plan.prompts, "seeds": self.plan.seeds, "strengths": self.plan.strengths}
        return SweepPlan(
            lora=row.lora,
            settings=settings,
            feature_extractor=self.plan.feature_extractor,
            references=row.references,
            **axes,
        )

    def _run_model(self, model: str, make: Make) -> Generator[Event, None, None]:
        missing = ""
        seen: dict[tuple[str, ...], list[Features]] = {}
        for row in self.plan.loras:
            pair = self.pairs[row.name, model]
            if missing or self.gpu_unavailable:  # unavailable: do not ask again
                pair.failure = missing or self.gpu_unavailable
                continue
            try:
                _check_family(row, model)
                # Rows with the same references share their features, extracted once per model.
                pair.sweep.reference_features = seen.setdefault(row.references, pair.sweep.reference_features)
                for event in pair.sweep.run(make):
                    for other in self.pairs.values():
                        other.sweep.touch_cells()
                    if isinstance(event, Failed):
                        pair.failure = event.message
                        self.gpu_unavailable = event.message if event.gpu_unavailable else ""
                    else:
                        yield event
                    if isinstance(event, ModelLoaded):
                        self.model_loads.append(event.model)
            except UserError as error:
                pair.failure = str(error)
            except FileNotFoundError as error:
                pair.failure = f"lora: {Path(str(error.filename)).name} no longer exists."
            if pair.failure:
                seen.pop(row.references, None)
            if pair.failure and pair.failure.startswith("model:"):
                missing = pair.failure

    # --- measuring -----------------------------------------------------------------------------

    def _judge_pairs(self) -> None:
        for pair in self.pairs.values():
            if pair.is_complete:
                with _record_failure(pair):
                    own_style = self._measure_own_style(pair)
                    pair.curves = {
                        name: np.stack(
                            [pair.sweep.measurements[strength][name] for strength in self.strengths]
                        )
                        for name in PAIR_MEASURES
                    }
                    pair.curves["own_style"] = own_style
                self.unmeasured |= {
                    name: why for name, why in pair.sweep.unmeasured.items() if name in PAIR_MEASURES
                }
        for row in self.plan.loras:
            home = self._find_home(row)
            for model in self.plan.models:
                pair = self.pairs[row.name, model]
                if pair.curves:
                    with _record_failure(pair):
                        pair.curves["style"] = self._measure_style(pair, home)
                        pair.judgement = judge_pair(
                            self.strengths,
                            pair.curves,
                            pair.sweep.yardstick.noise_floor,
                            len(self.plan.seeds),
                            self._build_baseline(row, home),
                        )

    def _find_home(self, row: TransferLora) -> TransferPair | None:
        """Return the pair that defines a row's strength: the same LoRA on its home model.

        A file with another alpha is still the same LoRA. `None` if that pair is missing or was not
        measured.
        """
        first = next(
            other
            for other in self.plan.loras
            if self._matrix_hashes[other.name] == self._matrix_hashes[row.name]
            and other.home_model == row.home_model
        )
        pair = self.pairs.get((first.name, row.home_model or ""))
        return pair if pair is not None and pair.curves else None

    def _build_baseline(self, row: TransferLora, home: TransferPair | None) -> HomeBaseline | None:
        """Return what a row's pairs are compared with, or `None` without a home."""
        if home is None:
            return None
        at = self.strengths.index(self.find_home_strength(home))
        style = self._measure_style(home, home)
        return HomeBaseline(
            strength=self.strengths[at],
            effect=home.curves["effect"][at],
            gain=style[at] - style[self.strengths.index(0.0)],
        )

    def find_home_strength(self, home: TransferPair) -> float:
        """Return the strength that a LoRA has at home: the one its sweep recommends, or 1.

        The nearest tried strength to the recommended one; without a 1, the greatest.
        """
        verdict = home.sweep.verdict
        if verdict is not None and verdict.recommended is not None:
            return min(
                self.strengths,
                key=lambda strength: abs(strength - verdict.recommended),  # type: ignore[operator]
            )
        return 1.0 if 1.0 in self.strengths else self.strengths[-1]

    def _measure_style(self, pair: TransferPair, home: TransferPair | None) -> np.ndarray:
        """Return how much of the trained style a pair has, (strengths, items).

        It is the likeness to the row's training set, 0 to 1; without one, how far the style goes in
        the direction that it takes at home.
        """
        yard = (home or pair).sweep.yardstick
        if pair.row.references:
            wanted = pair.sweep.reference_features
            return np.array(
                [
                    [
                        measure.style(self._load_features(pair, strength, item), wanted, yard)
                        for item in self.items
                    ]
                    for strength in self.strengths
                ]
            )
        if home is None or not self._has_same_extractor(pair.model, home.model):
            if home is not None:
                self.unmeasured["style"] = (
                    f"{pair.model} and {home.model} have different VAEs: "
                    "choose another feature extractor to compare their images."
                )
            return np.full((len(self.strengths), len(self.items)), np.nan)
        wanted = self._collect_shifts(home, self.find_home_strength(home), yard)
        return np.array(
            [
                measure.shift_projection(self._collect_shifts(pair, strength, yard), wanted)
                for strength in self.strengths
            ]
        )

    def _collect_shifts(
        self, pair: TransferPair, strength: float, yardstick: measure.Yardstick
    ) -> np.ndarray:
        """Return in which direction each picture's style moved from strength 0, (items, width)."""
        both = [[self._load_features(pair, at, item).levels for at in (strength, 0.0)] for item in self.items]
        return np.stack([measure.style_shift(worn, plain, yardstick.scales) for worn, plain in both])

    def _measure_own_style(self, pair: TransferPair) -> np.ndarray:
        """Return how much a base's pictures keep its own style, (strengths, items).

        It is their likeness to those of strength 0, divided by the likeness of these among
        themselves.
        """
        own = [self._load_features(pair, 0.0, item) for item in self.items]
        others = [[each for j, each in enumerate(own) if j != i] for i in range(len(own))]
        looks = [
            [self._load_features(pair, strength, item) for item in self.items] for strength in self.strengths
        ]
        kept = np.array(
            [
                [measure.style(look, others[i], pair.sweep.yardstick) for i, look in enumerate(row)]
                for row in looks
            ]
        )
        return kept / kept[self.strengths.index(0.0)]

    def _load_features(self, pair: TransferPair, strength: float, item: Item) -> Features:
        found = cell_cache.load_features(
            cell_cache.hash_request(pair.sweep.build_request(strength, item)), self.plan.feature_extractor
        )
        if found is None:
            raise UserError("disk", cell_cache.CELLS_GONE)
        return found

    def _has_same_extractor(self, one: str, other: str) -> bool:
        if self.plan.feature_extractor != VAE or one == other:
            return True
        first, second = (
            drain(loader.hash_parts(model, files.fetch_model_files(model))).get("vae")
            for model in map(bases.find_model, (one, other))
        )
        return first is not None and first == second

    @cached_property
    def _matrix_hashes(self) -> dict[str, str]:
        """Row -> what tells its matrices from those of other rows, whatever their alpha."""
        return {row.name: f"{row.lora.blocks} {_hash_matrices(row.lora.path)}" for row in self.plan.loras}


@contextmanager
def _record_failure(pair: TransferPair) -> Iterator[None]:
    """Record a `UserError` as the pair's failure, and drop its curves."""
    try:
        yield
    except UserError as error:
        pair.failure, pair.curves = str(error), {}


def _check_family(row: TransferLora, model: str) -> None:
    family = lora.get_lora_file(row.lora.path).family
    if not bases.find_model(model).fits(family):
        raise UserError("lora", f"{Path(row.lora.path).name} is made for {family}, which {model} is not.")


def _hash_matrices(path: str) -> str:
    try:
        found = lora.get_lora_file(path)
    except UserError:  # reported when the LoRA is applied
        return path
    tensors, made = found.load_tensors(), hashlib.sha256()
    for module in sorted(found.modules, key=lambda module: (module.component, module.name)):
        for part, key in sorted(module.keys.items()):
            made.update(f"{module.component} {module.name} {part}".encode())
            made.update(tensors[key].float().numpy().tobytes())
    return made.hexdigest()
