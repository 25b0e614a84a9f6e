"""Run a transfer study: a sweep for each pair of LoRA and base model, compared with the LoRA's home.

Homes come first, until the LoRA's strength there is found. Then each pair's range grows until it bears a
verdict, or can grow no further.
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
from core.schema import limits
from core.schema.errors import UserError
from core.schema.events import Event, Failed, Features, ModelLoaded
from core.sweep import cell_cache, measure, study
from core.sweep.columns import Make
from core.sweep.decide import MIN_PROMPTS
from core.sweep.measure import Item
from core.sweep.plan import SweepPlan
from core.sweep.resample import Curve
from core.sweep.strengths import FIRST_STRENGTHS
from core.system.concurrency import drain
from core.transfer.judge import (
    HomeBaseline,
    Judgement,
    find_home_strength,
    judge_pair,
    judge_unmeasured,
)
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
    is_finished: bool = False
    """Whether nothing more is made of it."""
    failure: str | None = None
    """Why the pair's pictures could not be made, or no longer be measured."""
    strengths: list[float] = field(default_factory=list)
    """The strengths of the curves, rising."""
    curves: dict[str, Curve] = field(default_factory=dict)
    """Measure -> (strengths, prompts, seeds); NaN where there is no value."""
    home_strength: float | None = None
    """Of a LoRA on its home model: the strength that it has there; `None` until it is found."""
    judgement: Judgement | None = None


class TransferStudy:
    """A transfer study under way: its results at any time, whether it is finished or stopped."""

    def __init__(self, plan: TransferPlan):
        self.plan = plan
        self.pairs: dict[PairKey, TransferPair] = {
            (row.name, model): TransferPair(row, model, study.SweepStudy(self._build_sweep(row, model)))
            for model in plan.models
            for row in plan.loras
        }
        self.unmeasured: dict[str, str] = {}
        """Measure -> why it is missing in some of the pairs."""
        self.model_loads: list[str] = []
        """The models that were loaded, in order."""
        self.gpu_unavailable = ""
        """Why no GPU is available any more; empty otherwise."""
        self.seconds = 0.0
        self._missing_models: dict[str, str] = {}
        """Model -> why it cannot be loaded."""
        self._reference_features: dict[tuple[str, tuple[str, ...]], list[Features]] = {}
        """Features of references by model; rows with the same references share them."""

    def run(self, make: Make) -> Generator[Event, None, None]:
        """Make the missing pictures, yielding `Step`s and `Picture`s as they come.

        A pair that cannot be made records why, and the next one begins. Closing the generator stops
        the work.
        """
        begin = time.monotonic()
        try:
            while pair := self._find_next_pair():
                yield from self._run_pair(pair, make)
                pair.is_finished = True
        finally:
            self.seconds += time.monotonic() - begin

    @property
    def items(self) -> list[Item]:
        """The (prompt, seed) pairs, the same for every pair of a LoRA and a model."""
        return next(iter(self.pairs.values())).sweep.items

    @property
    def strengths(self) -> list[float]:
        """All strengths of any pair so far, rising, including 0."""
        return sorted({strength for pair in self.pairs.values() for strength in pair.sweep.strengths})

    @property
    def unet_calls(self) -> int:
        """Calls of the U-Net so far, over all pairs."""
        return sum(pair.sweep.unet_calls for pair in self.pairs.values())

    def count_done(self) -> tuple[int, int]:
        """Return how many pictures are finished, and how many there are in all so far.

        Strength 0 counts once per model.
        """
        zero = {
            (model, item)
            for (_, model), pair in self.pairs.items()
            for item in self.items
            if (0.0, item) in pair.sweep.pictures
        }
        worn = sum(strength != 0 for pair in self.pairs.values() for strength, _ in pair.sweep.pictures)
        columns = len(self.plan.models) + sum(
            len(pair.sweep.strengths or range(FIRST_STRENGTHS)) - 1 for pair in self.pairs.values()
        )
        return len(zero) + worn, len(self.items) * columns

    def get_own_strength(self, row: TransferLora) -> float | None:
        """Return the strength that a row has on its home model; `None` where it was not found."""
        own = self.pairs.get((row.name, row.home_model or ""))
        return own.home_strength if own else None

    # --- making --------------------------------------------------------------------------------

    def _build_sweep(self, row: TransferLora, model: str) -> SweepPlan:
        settings = replace(self.plan.settings, model=model)
        axes = {"prompts": self.plan.prompts, "seeds": self.plan.seeds, "strengths": self.plan.strengths}
        return SweepPlan(
            lora=row.lora,
            settings=settings,
            feature_extractor=self.plan.feature_extractor,
            references=row.references,
            limit=self.plan.limit,
            **axes,
        )

    def _find_next_pair(self) -> TransferPair | None:
        """Return a pair whose home is finished, on the loaded model if there is one."""
        ready = [
            pair
            for pair in self.pairs.values()
            if not pair.is_finished
            and (
                pair.model == pair.row.home_model
                or all(home.is_finished for home in self._list_homes(pair.row))
            )
        ]
        loaded = bases.get_loaded_name()
        return next((pair for pair in ready if pair.model == loaded), next(iter(ready), None))

    def _run_pair(self, pair: TransferPair, make: Make) -> Iterator[Event]:
        """Make a pair, and more strengths of it as long as they are needed for a verdict."""
        pair.failure = self._missing_models.get(pair.model) or self.gpu_unavailable or None
        if pair.failure:  # do not ask again
            return
        shared = (pair.model, pair.row.references)
        pair.sweep.reference_features = self._reference_features.get(shared, [])
        with _record_failure(pair):
            _check_family(pair.row, pair.model)
            steps = pair.sweep.run(make)
            while True:
                yield from self._forward(pair, steps)
                if pair.failure:
                    break
                if not (more := self._judge(pair)):
                    self._reference_features[shared] = pair.sweep.reference_features
                    break
                steps = pair.sweep.go_on(make, more)
        if pair.failure and pair.failure.startswith("model:"):
            self._missing_models[pair.model] = pair.failure

    def _forward(self, pair: TransferPair, steps: Iterator[Event]) -> Iterator[Event]:
        """Yield the events of a pair's sweep but failures, which are recorded."""
        for event in steps:
            for other in self.pairs.values():
                other.sweep.touch_cells()
            if isinstance(event, Failed):
                pair.failure = event.message
                self.gpu_unavailable = event.message if event.gpu_unavailable else ""
            else:
                yield event
            if isinstance(event, ModelLoaded):
                self.model_loads.append(event.model)

    # --- measuring -----------------------------------------------------------------------------

    def _judge(self, pair: TransferPair) -> list[float]:
        """Measure and judge what is made of a pair; return the strengths that it needs next."""
        sweep = pair.sweep
        self.unmeasured |= {name: why for name, why in sweep.unmeasured.items() if name in PAIR_MEASURES}
        if sweep.verdict is None:
            return []
        if not sweep.columns:  # of one seed, or because a probe found no strength worth a picture
            pair.judgement = judge_unmeasured(sweep.verdict)
            return []
        pair.strengths = list(sweep.strengths)
        pair.curves = {name: sweep.build_curve(name, pair.strengths) for name in PAIR_MEASURES}
        pair.curves["own_style"] = self._measure_own_style(pair)
        further: list[float] = []
        if pair.model == pair.row.home_model and len(self.plan.prompts) >= MIN_PROMPTS:
            pair.home_strength, further = find_home_strength(
                pair.strengths, sweep.build_curves(), sweep.verdict
            )
        home = next((each for each in self._list_homes(pair.row) if each.home_strength is not None), None)
        pair.curves["style"] = self._measure_style(pair, home)
        baseline = _build_baseline(home) if home else self._explain_no_home(pair.row)
        pair.judgement = judge_pair(pair.strengths, pair.curves, sweep.verdict, baseline)
        own = self.get_own_strength(pair.row)
        wanted = {*further, *pair.judgement.further, *([own] if own is not None else [])}
        return self._fit_limit(pair, sorted(wanted - set(pair.strengths)))

    def _fit_limit(self, pair: TransferPair, strengths: list[float]) -> list[float]:
        """Return as many of the strengths as a study may have; a pair that misses some says so."""
        room = (limits.TRANSFER_CELLS - self.count_done()[1]) // len(self.items)
        if room < len(strengths) and pair.judgement is not None and pair.judgement.verdict is None:
            lacks = f"More strengths would tell, but a study has {limits.TRANSFER_CELLS:,} images at most."
            pair.judgement = replace(pair.judgement, lacks=lacks)
        return strengths[: max(0, room)]

    def _list_homes(self, row: TransferLora) -> list[TransferPair]:
        """Return the pairs that can tell a row's strength at home: its LoRA on its home model.

        A file with another alpha is still the same LoRA.
        """
        return [
            pair
            for (name, model), pair in self.pairs.items()
            if model == row.home_model
            and pair.row.home_model == row.home_model
            and self._matrix_hashes[name] == self._matrix_hashes[row.name]
        ]

    def _explain_no_home(self, row: TransferLora) -> str:
        """Return why there is nothing to compare a row's pairs with."""
        if row.home_model is None:
            return "Its home model is not known, so there is nothing to compare with: name it."
        home = next(iter(self._list_homes(row)))
        verdict = home.sweep.verdict
        why = (
            [home.failure]
            if home.failure
            else [verdict.why, verdict.surer]
            if verdict
            else ["it was not made."]
        )
        return " ".join(
            [f"Its strength on its home model, {row.home_model}, was not found:", *filter(None, why)]
        )

    def _measure_style(self, pair: TransferPair, home: TransferPair | None) -> np.ndarray:
        """Return how much of the trained style a pair has, (strengths, prompts, seeds).

        It is the likeness to the row's training set, 0 to 1; without one, how far the style goes in
        the direction that it takes at home.
        """
        yard, shape = (home or pair).sweep.yardstick, pair.curves["effect"].shape
        if pair.row.references:
            wanted = pair.sweep.reference_features
            found = [
                [
                    measure.style(self._load_features(pair, strength, item), wanted, yard)
                    for item in self.items
                ]
                for strength in pair.strengths
            ]
            return np.reshape(found, shape)
        if home is None or home.home_strength is None or not self._has_same_extractor(pair.model, home.model):
            if home is not None:
                self.unmeasured["style"] = (
                    f"{pair.model} and {home.model} have different VAEs: "
                    "choose another feature extractor to compare their images."
                )
            return np.full(shape, np.nan)
        shifts = self._collect_shifts(home, home.home_strength, yard)
        along = [
            measure.shift_projection(self._collect_shifts(pair, strength, yard), shifts)
            for strength in pair.strengths
        ]
        return np.reshape(along, shape)

    def _collect_shifts(
        self, pair: TransferPair, strength: float, yardstick: measure.Yardstick
    ) -> np.ndarray:
        """Return in which direction each picture's style moved from strength 0, (items, width)."""
        both = [[self._load_features(pair, at, item).levels for at in (strength, 0.0)] for item in self.items]
        return np.stack([measure.style_shift(worn, plain, yardstick.scales) for worn, plain in both])

    def _measure_own_style(self, pair: TransferPair) -> np.ndarray:
        """Return how much a base's pictures keep its own style, (strengths, prompts, seeds).

        It is their likeness to those of strength 0, divided by the likeness of these among
        themselves.
        """
        own = [self._load_features(pair, 0.0, item) for item in self.items]
        others = [[each for j, each in enumerate(own) if j != i] for i in range(len(own))]
        looks = [
            [self._load_features(pair, strength, item) for item in self.items] for strength in pair.strengths
        ]
        kept = np.array(
            [
                [measure.style(look, others[i], pair.sweep.yardstick) for i, look in enumerate(row)]
                for row in looks
            ]
        )
        return np.reshape(kept / kept[pair.strengths.index(0.0)], pair.curves["effect"].shape)

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


def _build_baseline(home: TransferPair) -> HomeBaseline:
    assert home.home_strength is not None
    at, zero = (home.strengths.index(strength) for strength in (home.home_strength, 0.0))
    style = home.curves["style"]
    return HomeBaseline(
        strength=home.home_strength, effect=home.curves["effect"][at], gain=style[at] - style[zero]
    )


@contextmanager
def _record_failure(pair: TransferPair) -> Iterator[None]:
    """Record an error that a person can do something about as the pair's failure."""
    try:
        yield
    except UserError as error:
        pair.failure = str(error)
    except FileNotFoundError as error:
        pair.failure = f"lora: {Path(str(error.filename)).name} no longer exists."


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
