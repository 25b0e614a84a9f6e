"""Study one axis, or two at once: plan the points, make their pictures, measure and judge them.

It is a sweep whose columns are points of the axes: cells, cache and measures are the sweep's own.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from core.generate.features import VAE
from core.models import embedding_library, lora_library
from core.models.lora_facts import read_lora_facts
from core.prompts.embeddings import select_embeddings
from core.schema import limits
from core.schema.bounds import OneOf, Real, format_value
from core.schema.errors import UserError
from core.schema.events import Event
from core.schema.records import record
from core.schema.types import LoraUse, Request, check_picture_size
from core.sweep import measure
from core.sweep.axes import AXES, Axis, Point, apply_point, parse_values
from core.sweep.columns import ColumnStudy, Make
from core.sweep.decide import MIN_SEEDS
from core.sweep.gauge import TagScores, extract_tags, list_usual_tags
from core.sweep.knees import HELD_RANGES
from core.sweep.measure import Item
from core.sweep.plan import (
    BUDGETS,
    DEFAULT_SEEDS,
    SweepForm,
    SweepPlan,
    check_cell_count,
    choose_base,
    plan_pictures,
)
from core.sweep.plateau import Plateau, choose_best, find_plateau


@record
class PairForm:
    """What a person asks of two LoRAs together; `None` stands for the default or the preset's value."""

    lora: Any = None
    """The path of a LoRA."""
    lora2: Any = None
    """The path of a second one."""
    strength: Annotated[float | None, Real(*limits.STRENGTH)] = None
    """Of the first LoRA; `None` for the one that is known to work, or 1."""
    strength2: Annotated[float | None, Real(*limits.STRENGTH)] = None
    preset: str | None = None
    """`None` for the one that fits `model`, or nano's without a model."""
    model: Any = None
    """A name of `core.models.catalogue` or a Hub id; `None` for the preset's."""
    prompts: Any = None
    """Text with one prompt per line, or a list; `None` for neutral ones with the LoRAs' triggers."""
    budget: Annotated[str | None, OneOf(tuple(BUDGETS))] = None
    """How many neutral prompts there are; `None` for `Standard`."""
    seeds: Any = DEFAULT_SEEDS
    references: Any = None
    """Files of images in the target style."""
    feature_extractor: str = VAE
    """`VAE` or the name of a `Tool` of kind `eye`."""


@record
class AxesForm(PairForm):
    """What a person asks of one axis, or of two."""

    axis: Annotated[str, OneOf(tuple(AXES))]
    values: Any = None
    """Numbers as text, such as `2-10 (+1)`, or names with commas; `None` for the axis' default."""
    axis2: Annotated[str | None, OneOf(tuple(AXES))] = None
    values2: Any = None


@dataclass(frozen=True, kw_only=True)
class AxesPlan:
    """Points of one or two axes, over prompts and seeds."""

    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    """The first is the reference, where each axis has the preset's value, or no LoRA."""
    values: tuple[tuple[Any, ...], ...]
    """The values that were asked for, of each axis."""
    settings: Request
    """What all pictures share, with the LoRAs at their own strengths; its prompt and seed are ignored."""
    columns: SweepPlan
    """Prompts, seeds and what is measured; its strengths are the numbers of the points."""


def plan_axes(form: AxesForm) -> AxesPlan:
    """Plan the study that a form asks for. Raises `UserError` for whatever is not allowed."""
    axes = tuple(AXES[name] for name in (form.axis, form.axis2) if name is not None)
    if form.axis2 == form.axis:
        raise UserError("axis2", f"{form.axis2!r} is the first axis, too; choose another one, or none.")
    if form.axis2 is None and form.values2 not in (None, ""):
        raise UserError(
            "values2", f"{format_value(form.values2)} has no second axis; choose one, or leave it out."
        )
    values = tuple(
        parse_values(axis, text, field)
        for axis, text, field in zip(axes, (form.values, form.values2), ("values", "values2"), strict=False)
    )
    for axis in axes:
        needed = (form.lora, form.lora2)[: 0 if axis.lora is None else axis.lora + 1]
        if not all(needed):
            missing = "lora2" if form.lora else "lora"
            which = "" if len(needed) == 1 else "second " if form.lora else "first "
            raise UserError(missing, f"{axis.label} needs a {which}LoRA; choose one.")
    return _plan_points(form, axes, values)


def plan_pair(form: PairForm) -> AxesPlan:
    """Plan the pictures that tell how two LoRAs get along: none, each alone, and both.

    Raises `UserError` for whatever is not allowed.
    """
    if not (form.lora and form.lora2):
        raise UserError("lora2" if form.lora else "lora", "choose two LoRAs to compare.")
    if form.strength == 0 or form.strength2 == 0:
        raise UserError("strength2" if form.strength2 == 0 else "strength", "0 is off; use another strength.")
    axes = AXES["strength"], AXES["strength2"]
    uses = _find_uses(form, choose_base(_build_sweep_form(form))[1].name)
    return _plan_points(form, axes, tuple((0.0, use.strength) for use in uses))


def _plan_points(form: PairForm, axes: tuple[Axis, ...], values: tuple[tuple[Any, ...], ...]) -> AxesPlan:
    sweep_form = _build_sweep_form(form)
    preset, base = choose_base(sweep_form)
    uses = _find_uses(form, base.name)
    columns = plan_pictures(sweep_form, uses)
    settings = replace(columns.settings, loras=uses)
    if AXES["hires_denoise"] in axes:
        settings = replace(settings, hires=preset.hires)
    reference = tuple(axis.get_reference(settings) for axis in axes)
    points = tuple(dict.fromkeys((reference, *product(*values))))
    if len(points) == 1:
        raise UserError(
            "values", "nothing differs from what it is compared with; use at least one more value."
        )
    check_cell_count(columns, len(points), "values")
    for axis, of_axis, field in zip(axes, values, ("values", "values2"), strict=False):
        for value in of_axis:
            try:
                check_picture_size(request := axis.apply(settings, value))
                lora_library.check_loras(request.loras)
            except UserError as error:
                raise UserError(field, f"{error.field}: {error.sentence}") from error
    for point in points:
        try:
            apply_point(settings, axes, point)
        except UserError as error:  # values that are allowed alone: a schedule that is not for a sampler
            raise UserError("values2", f"{error.field}: {error.sentence}") from error
    strengths = tuple(float(number) for number in range(len(points)))
    return AxesPlan(
        axes=axes,
        points=points,
        values=values,
        settings=settings,
        columns=replace(columns, strengths=strengths),
    )


def _build_sweep_form(form: PairForm) -> SweepForm:
    shared = ("lora", "preset", "model", "prompts", "budget", "seeds", "references", "feature_extractor")
    return SweepForm(**{name: getattr(form, name) for name in shared})


def _find_uses(form: PairForm, model: str) -> tuple[LoraUse, ...]:
    """Return the LoRAs of a form, at the strengths that are given, known to work on the model, or 1."""
    given = ((form.lora, form.strength), (form.lora2, form.strength2))
    found = []
    for path, strength in given:
        if path:
            known = read_lora_facts(Path(str(path)), model).strength if strength is None else None
            value = strength if strength is not None else known.value if known else 1.0
            found.append(LoraUse(path=str(path), strength=value))
    return lora_library.check_loras(found)


class AxesStudy(ColumnStudy):
    """Points under way: their results at any time, whether they are finished or stopped.

    What a sweep keeps by strength is kept by the number of the point, 0 for the reference.
    """

    def __init__(self, plan: AxesPlan):
        super().__init__(plan.columns)
        self.axes_plan = plan
        self.plateau: Plateau | None = None
        """The verdict, once everything is measured."""
        self._names = {use.path: lora_library.find_name(Path(use.path)) for use in plan.settings.loras}

    def run(self, make: Make) -> Generator[Event, None, None]:
        """Make the missing cells, yielding `Step`s and `Picture`s as they come, and judge the points.

        Ends with `Failed` when a job fails. Closing the generator stops the work. Raises `UserError` if
        the disk has no room, or had so little that cells were deleted meanwhile.
        """
        with self._account():
            yield from self._run_columns(make, self.strengths)
            if self._is_complete():
                self.plateau = self._judge()

    def build_request(self, strength: float, item: Item) -> Request:
        """Return the request that makes a cell of the point of this number.

        A LoRA that is off is not mentioned, so that cells are shared with sweeps.
        """
        prompt, seed = item
        plan = self.axes_plan
        request = apply_point(plan.settings, plan.axes, plan.points[int(strength)])
        loras = tuple(use for use in request.loras if use.strength)
        texts = (prompt, request.negative)
        bundled = embedding_library.find_bundled_embeddings(texts, loras)
        tags = [lora_library.format_lora_tag(use, self._names[use.path]) for use in loras]
        return replace(
            request,
            seed=seed,
            prompt=" ".join([prompt, *tags]),
            loras=loras,
            embeddings=select_embeddings(texts, (*bundled, *request.embeddings)),
        )

    def _find_trigger_tags(self, scores: Sequence[TagScores]) -> list[str]:
        """Return the tags that the LoRAs' triggers stand for, without those that the reference has anyway.

        These are the tags read without a LoRA; where the reference has one, those that the prompts name.
        """
        loras = self.axes_plan.settings.loras
        usual = set().union(*(list_usual_tags(use.path) for use in loras)) & scores[0].keys()
        if self.build_request(0.0, self.items[0]).loras:
            there = {tag for prompt in self.prompts for tag in extract_tags(prompt)}
        else:
            means = {tag: np.mean([each[tag] for each in scores]) for tag in usual}
            there = {tag for tag, mean in means.items() if mean >= measure.TAG_THRESHOLD}
        return sorted(usual - there)

    @property
    def wanted(self) -> str | None:
        """The measure of what is wanted; `None` where there is none.

        Likeness to references, the trigger's tags, or any effect of a LoRA that is varied: other settings
        are no better for changing more.
        """
        for name in ("style", "trigger"):
            if not np.isnan(self.build_curve(name, [0.0])).all():
                return name
        return "effect" if any(axis.lora is not None for axis in self.axes_plan.axes) else None

    def _judge(self) -> Plateau:
        if len(self.plan.seeds) < MIN_SEEDS:  # nothing is measured
            return Plateau(answer="too little", wanted=None, confidence={})
        names = ("effect", *HELD_RANGES, *filter(None, (self.wanted,)))
        curves = {name: self.build_curve(name, self.strengths) for name in names}
        known = {name: curve for name, curve in curves.items() if not np.isnan(curve).all()}
        return find_plateau(known, self.noise_floors, self.wanted)

    @property
    def recommended(self) -> int | None:
        """The number of the point to use; `None` where none is known to be among the best."""
        if self.plateau is None or self.plateau.wanted is None:
            return None
        axes, points = self.axes_plan.axes, self.axes_plan.points
        places = [
            None if axis.has_names else sorted({point[i] for point in points}) for i, axis in enumerate(axes)
        ]
        return choose_best(
            self.plateau,
            [
                tuple(
                    str(value) if known is None else known.index(value)
                    for value, known in zip(point, places, strict=True)
                )
                for point in points
            ],
        )
