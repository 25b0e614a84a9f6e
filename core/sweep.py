"""One LoRA over strengths, prompts and seeds: cells made or found, measured as they come, and decided upon."""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from core import cells, details, gpu, limits, measure, models, presets, record, room, shelf, tools
from core.caption import Tagger
from core.decide import HOLDS, Verdict, decide
from core.digest import content
from core.encode import said
from core.events import Event, Failed, Look, Picture, Seen, Step
from core.features import PARTS
from core.infotext import infotext
from core.prompts import Span
from core.types import Cell, Request, Sweep, UserError

MEASURES = ("effect", "style", "composition", "prompt", "detail", "saturation", "effect_face", "effect_background")
HELD_SECONDS = limits.HOUR / 6
"""Between two times that a study says which cells it uses."""
Item = tuple[str, int]
"""A prompt and a seed."""


class Study:
    """A sweep under way: what is there of it at any time, finished or stopped."""

    def __init__(self, plan: Sweep):
        self.plan = plan
        self.sha256 = content(Path(plan.lora.path))
        """Of the LoRA, so that what was measured stays with it."""
        self.items: list[Item] = [(prompt, seed) for prompt in plan.prompts for seed in plan.seeds]
        self.strengths = list(plan.strengths)
        self.pictures: dict[tuple[float, Item], Path] = {}
        self.looks: dict[tuple[float, Item], Look] = {}
        self.measured: dict[float, dict[str, np.ndarray]] = {}
        """Strength -> measure -> a number for each item, NaN where there is none; only strengths that are whole."""
        self.verdict: Verdict | None = None
        self.unmeasured: dict[str, str] = {}
        """Measure -> why there is none."""
        self.unet_calls = 0
        self.found = 0
        """Cells that were there already."""
        self.seconds = 0.0
        self._held = time.monotonic()
        self.wanted: list[Look] = []
        """Of the reference pictures."""

    def run(self) -> Generator[Event, None, None]:
        """Make what is missing: `Step`s and `Picture`s as they come; ends with `Failed` when a job fails. Closing it stops the work.

        Raises `UserError` where the disk has no room for it, or had none so that cells were swept away meanwhile.
        """
        room.check(cells.FOLDER)
        begin = time.monotonic()
        try:
            yield from self._columns(_coarse_first(self.strengths))
            if self._whole():
                self.verdict = self._decided()
                if self.plan.refine and (between := self._between()):
                    self.strengths = sorted({*self.strengths, *between})
                    yield from self._columns(between)
                    self.verdict = self._decided() if self._whole() else None
        except FileNotFoundError as error:
            if not Path(str(error.filename)).is_relative_to(cells.FOLDER):
                raise
            raise UserError(cells.SWEPT) from error
        finally:
            self.seconds += time.monotonic() - begin

    def request(self, strength: float, item: Item) -> Request:
        """What a cell is made from; strength 0 knows nothing of the LoRA, so that every sweep shares it."""
        use = replace(self.plan.lora, strength=strength)
        worn = {"prompt": f"{item[0]} {shelf.tag(use)}", "loras": (use,)} if strength else {"prompt": item[0]}
        return replace(self.plan.settings, seed=item[1], **worn)

    def hold(self) -> None:
        """Now and then say that its cells are in use, which nobody else can know of a study that takes longer than they are kept."""
        if time.monotonic() - self._held >= HELD_SECONDS:
            self._held = time.monotonic()
            for file in self.pictures.values():
                cells.use(file.stem, self.plan.eye)

    def _whole(self) -> bool:
        return all((strength, item) in self.pictures for strength in self.strengths for item in self.items)

    def _columns(self, strengths: Sequence[float]) -> Iterator[Event]:
        asked = [(strength, item) for strength in strengths for item in self.items]
        names = {place: cells.key(self.request(*place)) for place in asked}
        missing = []
        for place in asked:
            if (seen := cells.look(names[place], self.plan.eye)) is None:
                missing.append(place)
            else:
                self._take(place, cells.picture(names[place]), seen)
        self.found += len(asked) - len(missing)
        self._measure()
        wanted = [self._fitted(file) for file in self.plan.references] if not self.wanted else []
        if not missing and wanted:
            missing = asked[:1]  # the model is asked for once anyway
        if not missing:
            return
        jobs = [Cell(label=f"strength {strength:g}, seed {item[1]}", request=self.request(strength, item)) for strength, item in missing]
        for event in gpu.run(jobs, eye=self.plan.eye, pictures=wanted):
            match event:
                case Seen():
                    self.wanted.append(event.look)
                case Step():
                    self.unet_calls += 1
                case Picture(look=Look() as seen):
                    place = missing[event.index]
                    self._take(place, self._kept(names[place], event), seen)
                    self._measure()
            self.hold()
            yield event
            if isinstance(event, Failed):
                return
        self._measure()

    def _take(self, place: tuple[float, Item], file: Path, seen: Look) -> None:
        self.pictures[place], self.looks[place] = file, seen

    def _kept(self, name: str, event: Picture) -> Path:
        request, file = event.cell.request, cells.picture(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        record.save_png(event.image, file, infotext(request, models.find(request.model), shelf.hashes(request.loras)))
        assert event.look is not None
        cells.keep(name, self.plan.eye, event.look)
        return file

    def _fitted(self, file: str) -> Image.Image:
        with Image.open(file) as picture:
            return ImageOps.fit(ImageOps.exif_transpose(picture).convert("RGB"), (self.plan.settings.width, self.plan.settings.height))

    # --- measuring -----------------------------------------------------------------------------

    def _measure(self) -> None:
        """Measure the strengths whose pictures are all there, once those of strength 0 are, and what the references look like is known."""
        if len(self.wanted) < len(self.plan.references):
            return
        for strength in [0.0, *self.strengths]:
            whole = all((strength, item) in self.looks for item in self.items)
            if whole and strength not in self.measured and len(self.plan.seeds) > 1 and (strength == 0 or 0.0 in self.measured):
                self.measured[strength] = self._column(strength)
                if strength:  # what has been measured need not be kept in memory
                    for item in self.items:
                        self.looks[strength, item] = replace(self.looks[strength, item], levels=(), echo=None)

    def _column(self, strength: float) -> dict[str, np.ndarray]:
        yard, read_at_zero, read, boxes = self.yard, self._read_at_zero, self._read(strength), self._faces
        column: dict[str, list[float]] = {name: [] for name in MEASURES}
        for i, item in enumerate(self.items):
            look, base = self.looks[strength, item], self.looks[0.0, item]
            with Image.open(self.pictures[strength, item]) as picture, Image.open(self.pictures[0.0, item]) as at_zero:
                column["detail"].append(measure.detail(picture, at_zero))
            column["effect"].append(measure.effect(look, base, yard))
            column["style"].append(measure.style(look, self.wanted, yard) if self.wanted else np.nan)
            column["composition"].append(measure.composition(look, base))
            share = measure.prompt(read[i], read_at_zero[i], self._tags(item[0])) if read and read_at_zero else None
            column["prompt"].append(np.nan if share is None else share)
            column["saturation"].append(measure.saturation(look, yard))
            face = boxes[i]
            column["effect_face"].append(measure.effect(look, base, yard, face) if face is not None else np.nan)
            column["effect_background"].append(measure.effect(look, base, yard, 1 - face) if face is not None else np.nan)
        return {name: np.array(values, float) for name, values in column.items()}

    @cached_property
    def yard(self) -> measure.Yardstick:
        return measure.yardstick({item: self.looks[0.0, item] for item in self.items})

    @cached_property
    def _read_at_zero(self) -> list[dict[str, float]] | None:
        return self._read(0.0)

    def _read(self, strength: float) -> list[dict[str, float]] | None:
        """The tags of a column's pictures; `None` where the model has no tagger."""
        name = models.find(self.plan.settings.model).tagger
        try:
            if name is None:
                raise UserError(f"No tagger is pinned for {self.plan.settings.model}, so what is still read of the prompt was not measured.")
            tagger = _tagger(tools.file("tagger", name))
        except UserError as error:
            self.unmeasured["prompt"] = str(error)
            return None
        return tagger.read([Image.open(self.pictures[strength, item]).convert("RGB") for item in self.items])

    @cached_property
    def _faces(self) -> list[np.ndarray | None]:
        """For each item the share of each part of its strength-0 picture that is face; `None` where none is found."""
        found: list[np.ndarray | None] = []
        try:
            finder, _ = details.finder(_detail(self.plan.settings.model).detector)
        except UserError as error:
            self.unmeasured["effect_face"] = self.unmeasured["effect_background"] = str(error)
            return [None] * len(self.items)
        for item in self.items:
            with Image.open(self.pictures[0.0, item]) as picture:
                boxes = [each.box for each in finder.find(picture.convert("RGB"), 0.3)]
                found.append(measure.inside(boxes, picture.size, PARTS) if boxes else None)
        return found

    def _tags(self, prompt: str) -> list[str]:
        text = "".join(part.text for part in said(prompt) if isinstance(part, Span))
        return [tag.strip().replace("_", " ") for tag in text.split(",") if tag.strip()]

    # --- deciding ------------------------------------------------------------------------------

    def _decided(self) -> Verdict:
        if len(self.plan.seeds) < 2:
            return decide(self.strengths, {"effect": np.zeros((len(self.strengths), len(self.items)))}, 0.0, seeds=1)
        used = ["effect", *HOLDS, *(["style"] if self.wanted else [])]
        curves = {name: np.stack([self.measured[strength][name] for strength in self.strengths]) for name in used}
        return decide(self.strengths, {name: curve for name, curve in curves.items() if not np.isnan(curve).all()}, self.yard.floor, len(self.plan.seeds))

    def _between(self) -> list[float]:
        """Strengths halfway to the neighbours of onset, both ends of the sweet spot and breakdown."""
        assert self.verdict is not None
        knees = [knee for knee in (self.verdict.onset, *(self.verdict.sweet_spot or ()), self.verdict.breakdown) if knee is not None]
        steps = [(a, b) for a, b in zip(self.strengths, self.strengths[1:], strict=False) if a in knees or b in knees]
        found = {round((a + b) / 2, 4) for a, b in steps}
        room = max(0, limits.CELLS // len(self.items) - len(self.strengths))
        return sorted(found)[:room]


def _coarse_first(strengths: Sequence[float]) -> list[float]:
    """0, the end, then halves, quarters and so on: the curve spans the range early and fills up."""
    order, step = [0.0, strengths[-1], strengths[0]], 1 << max(0, len(strengths) - 1).bit_length()
    while step := step // 2:
        order += strengths[::step]
    return list(dict.fromkeys(order))


@cache
def _tagger(folder: Path) -> Tagger:
    return Tagger(folder)


def _detail(model: str):
    """How a preset of this model finds faces."""
    return next((recipe.detail for recipe in presets.recipes().values() if recipe.model == model), next(iter(presets.recipes().values())).detail)
