"""LoRAs over base models: a sweep for each pair, each model loaded once; then styles compared over the whole table."""

import hashlib
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from core import cells, lora, measure, modelfiles, models, opening, sweep
from core.aside import drain
from core.events import Event, Failed, Loaded, Look
from core.features import VAE
from core.sweep import Item
from core.transfer.judge import Home, Judged, judged
from core.types import Row, Sweep, Transfer, UserError

MEASURES = ("effect", "composition", "prompt", "detail", "saturation")
"""What a pair's sweep measures against its own strength 0; `style` and `own_style` are added here."""
Place = tuple[str, str]
"""A row's name and a model's."""


@dataclass
class Pair:
    """A LoRA on a base model."""

    row: Row
    model: str
    sweep: sweep.Study
    failed: str | None = None
    """Why it was not made."""
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    """Measure -> (strengths, items); NaN where there is none."""
    judged: Judged | None = None

    @property
    def is_whole(self) -> bool:
        return self.failed is None and all(strength in self.sweep.measured for strength in self.sweep.strengths)


class Study:
    """A transfer study under way: what is there of it at any time, finished or stopped."""

    def __init__(self, plan: Transfer):
        self.plan = plan
        self.strengths = list(plan.strengths)
        self.pairs: dict[Place, Pair] = {
            (row.name, model): Pair(row, model, sweep.Study(self._sweep(row, model))) for model in self._order() for row in plan.rows
        }
        self.unmeasured: dict[str, str] = {}
        """Measure -> why there is none, wherever it is missing."""
        self.loads: list[str] = []
        """The models that were loaded, in order."""
        self.unlent = ""
        """Why no GPU is lent any more."""
        self.seconds = 0.0

    def run(self) -> Generator[Event, None, None]:
        """Make what is missing: `Step`s and `Picture`s as they come. A pair that cannot be made says why and the next one begins; closing it stops the work."""
        begin = time.monotonic()
        try:
            for model in self._order():
                yield from self._column(model)
            self._judge()
        finally:
            self.seconds += time.monotonic() - begin

    @property
    def items(self) -> list[Item]:
        return next(iter(self.pairs.values())).sweep.items

    @property
    def unet_calls(self) -> int:
        return sum(pair.sweep.unet_calls for pair in self.pairs.values())

    def done(self) -> tuple[int, int]:
        """Pictures that are there, and all of them; strength 0 counts once a model."""
        zero = {(model, item) for (_, model), pair in self.pairs.items() for item in self.items if (0.0, item) in pair.sweep.pictures}
        worn = sum(strength != 0 for pair in self.pairs.values() for strength, _ in pair.sweep.pictures)
        each = len(self.items) * (1 + len(self.plan.rows) * (len(self.strengths) - 1))
        return len(zero) + worn, each * len(self.plan.models)

    def _order(self) -> list[str]:
        """The model that is loaded comes first, so that each is loaded once."""
        return sorted(self.plan.models, key=lambda name: name != models.loaded())

    def _sweep(self, row: Row, model: str) -> Sweep:
        settings = replace(self.plan.settings, model=model)
        axes = {"prompts": self.plan.prompts, "seeds": self.plan.seeds, "strengths": self.plan.strengths}
        return Sweep(lora=row.lora, settings=settings, eye=self.plan.eye, references=row.references, **axes)

    def _column(self, model: str) -> Generator[Event, None, None]:
        missing = ""
        seen: dict[tuple[str, ...], list[Look]] = {}
        for row in self.plan.rows:
            pair = self.pairs[row.name, model]
            if missing or self.unlent:  # the model or the GPU cannot be had: it is not asked for again
                pair.failed = missing or self.unlent
                continue
            try:
                _check_family(row, model)
                pair.sweep.wanted = seen.setdefault(row.references, pair.sweep.wanted)  # pictures are looked at once a model
                for event in pair.sweep.run():
                    for other in self.pairs.values():
                        other.sweep.hold()
                    if isinstance(event, Failed):
                        pair.failed = event.message
                        self.unlent = event.message if event.unlent else ""
                    else:
                        yield event
                    if isinstance(event, Loaded):
                        self.loads.append(event.model)
            except UserError as error:
                pair.failed = str(error)
            except FileNotFoundError as error:
                pair.failed = f"lora: {Path(str(error.filename)).name} is no longer there."
            if pair.failed:
                seen.pop(row.references, None)
            if pair.failed and pair.failed.startswith("model:"):
                missing = pair.failed

    # --- measuring -----------------------------------------------------------------------------

    def _judge(self) -> None:
        for pair in self.pairs.values():
            if pair.is_whole:
                with _failing(pair):
                    own_style = self._own_style(pair)
                    pair.curves = {name: np.stack([pair.sweep.measured[strength][name] for strength in self.strengths]) for name in MEASURES}
                    pair.curves["own_style"] = own_style
                self.unmeasured |= {name: why for name, why in pair.sweep.unmeasured.items() if name in MEASURES}
        for row in self.plan.rows:
            home = self._home(row)
            for model in self.plan.models:
                pair = self.pairs[row.name, model]
                if pair.curves:
                    with _failing(pair):
                        pair.curves["style"] = self._style(pair, home)
                        pair.judged = judged(self.strengths, pair.curves, pair.sweep.yard.floor, len(self.plan.seeds), self._told(row, home))

    def _home(self, row: Row) -> Pair | None:
        """Where a row's strength is counted: the pair of the same LoRA with its home; with another alpha it is still the same LoRA."""
        first = next(other for other in self.plan.rows if self._matrices[other.name] == self._matrices[row.name] and other.home == row.home)
        pair = self.pairs.get((first.name, row.home or ""))
        return pair if pair is not None and pair.curves else None

    def _told(self, row: Row, home: Pair | None) -> Home | None:
        """What a pair is held against."""
        if home is None:
            return None
        at = self.strengths.index(self.home_strength(home))
        style = self._style(home, home)
        return Home(strength=self.strengths[at], effect=home.curves["effect"][at], gain=style[at] - style[self.strengths.index(0.0)])

    def home_strength(self, home: Pair) -> float:
        """The strength that a LoRA has at home: what its sweep recommends, or 1."""
        verdict = home.sweep.verdict
        if verdict is not None and verdict.recommended is not None:
            return min(self.strengths, key=lambda strength: abs(strength - verdict.recommended))  # type: ignore[operator]
        return 1.0 if 1.0 in self.strengths else self.strengths[-1]

    def _style(self, pair: Pair, home: Pair | None) -> np.ndarray:
        """The trained style, (strengths, items): likeness to the row's training set, 0 to 1; without one, how far it goes the way that it goes at home."""
        yard = (home or pair).sweep.yard
        if pair.row.references:
            wanted = pair.sweep.wanted
            return np.array([[measure.style(self._look(pair, strength, item), wanted, yard) for item in self.items] for strength in self.strengths])
        if home is None or not self._same_eye(pair.model, home.model):
            if home is not None:
                self.unmeasured["style"] = f"{pair.model} and {home.model} have other VAEs: choose another eye to compare what they make."
            return np.full((len(self.strengths), len(self.items)), np.nan)
        wanted = self._shifts(home, self.home_strength(home), yard)
        return np.array([measure.followed(self._shifts(pair, strength, yard), wanted) for strength in self.strengths])

    def _shifts(self, pair: Pair, strength: float, yard: measure.Yardstick) -> np.ndarray:
        """Which way each picture's style went from strength 0, (items, width)."""
        both = [[self._look(pair, at, item).levels for at in (strength, 0.0)] for item in self.items]
        return np.stack([measure.style_shift(worn, plain, yard.scales) for worn, plain in both])

    def _own_style(self, pair: Pair) -> np.ndarray:
        """How much a base's pictures stay its own in style: their likeness to those of strength 0, over what these have among themselves."""
        own = [self._look(pair, 0.0, item) for item in self.items]
        others = [[each for j, each in enumerate(own) if j != i] for i in range(len(own))]
        looks = [[self._look(pair, strength, item) for item in self.items] for strength in self.strengths]
        kept = np.array([[measure.style(look, others[i], pair.sweep.yard) for i, look in enumerate(row)] for row in looks])
        return kept / kept[self.strengths.index(0.0)]

    def _look(self, pair: Pair, strength: float, item: Item) -> Look:
        found = cells.look(cells.key(pair.sweep.request(strength, item)), self.plan.eye)
        if found is None:
            raise UserError(cells.SWEPT)
        return found

    def _same_eye(self, one: str, other: str) -> bool:
        if self.plan.eye != VAE or one == other:
            return True
        first, second = (drain(opening.digests(model, modelfiles.folder(model))).get("vae") for model in map(models.find, (one, other)))
        return first is not None and first == second

    @cached_property
    def _matrices(self) -> dict[str, str]:
        """Row -> what tells its matrices from others', whatever their alpha."""
        return {row.name: f"{row.lora.blocks} {_matrices(row.lora.path)}" for row in self.plan.rows}


@contextmanager
def _failing(pair: Pair) -> Iterator[None]:
    """What cannot be told of a pair any more is why it failed."""
    try:
        yield
    except UserError as error:
        pair.failed, pair.curves = str(error), {}


def _check_family(row: Row, model: str) -> None:
    family = lora.file(row.lora.path).family
    if family in ("nano", "SDXL") and (family == "nano") != (models.find(model).native_size == 128):
        raise UserError(f"lora: {Path(row.lora.path).name} is made for {family}, which {model} is not.")


def _matrices(path: str) -> str:
    try:
        found = lora.file(path)
    except UserError:  # said where it is put on
        return path
    tensors, made = found.tensors(), hashlib.sha256()
    for module in sorted(found.modules, key=lambda module: (module.component, module.name)):
        for part, key in sorted(module.keys.items()):
            made.update(f"{module.component} {module.name} {part}".encode())
            made.update(tensors[key].float().numpy().tobytes())
    return made.hexdigest()
