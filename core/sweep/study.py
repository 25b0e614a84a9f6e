"""Run a sweep: one LoRA over strengths, prompts and seeds, until the verdict stands."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from core.generate.probe import CAUGHT_SHARES, Probe
from core.models import embedding_library, lora_library
from core.models.measured_strengths import MeasuredStrength, record_strength
from core.prompts.embeddings import select_embeddings
from core.schema import limits
from core.schema.events import Event, Failed, ModelChange, Step
from core.schema.types import Request
from core.sweep import cell_cache, measure
from core.sweep.character import Character, describe_character
from core.sweep.columns import ColumnStudy, Make
from core.sweep.decide import LOOK_LEVELS, decide_verdict
from core.sweep.gauge import TagScores, list_usual_tags
from core.sweep.measure import Item
from core.sweep.pace import record_pace
from core.sweep.plan import SweepPlan
from core.sweep.strengths import SEARCHED_CHANGES, explain_no_strengths, extend_strengths, place_strengths
from core.sweep.verdict import Verdict
from core.system.tensor_files import calculate_sha256

PROBED_PICTURES = 4
"""Pictures of which a probe asks single calls again: of different prompts, where there are so many."""


class SweepStudy(ColumnStudy):
    """A sweep under way: its results at any time, whether it is finished or stopped."""

    def __init__(self, plan: SweepPlan):
        super().__init__(plan)
        self.sha256 = calculate_sha256(Path(plan.lora.path))
        """Hash of the LoRA's file, so that the measurements stay with it."""
        self.changes: dict[float, float] = {}
        """Strength -> how much it changes single calls of the model, as a probe found; empty without one."""
        self.verdict: Verdict | None = None
        self._lora_name = lora_library.find_name(Path(plan.lora.path))  # the library is listed once

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
                if self.verdict is None or self.verdict.is_settled:
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
        begin, before = self.seconds, len(self.pictures) - self.cells_found
        try:
            with super()._account():
                yield
        finally:
            asked = self.plan.settings
            pixel_steps = asked.width * asked.height * asked.steps
            made = len(self.pictures) - self.cells_found - before
            record_pace(asked.model, pixel_steps, made, self.seconds - begin)

    def _find_further(self) -> list[float]:
        """Return strengths to try beyond the last one; none where no more are allowed."""
        all_items = len(self.plan.prompts) * len(self.plan.seeds)  # of all looks
        room = max(0, limits.SWEEP_CELLS // all_items - len(self.strengths))
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

    def _take_prompts(self, many: int) -> None:
        """Begin with the first prompts, or go on with more: all is measured anew, by their yardstick."""
        self.prompts = self.plan.prompts[:many]
        self.columns, self.gauge, self.verdict = {}, None, None

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

    def _find_trigger_tags(self, scores: Sequence[TagScores]) -> list[str]:
        """Return the tags that the trigger stands for: of most training pictures, but of few without it."""
        usual = list_usual_tags(self.plan.lora.path)
        return [
            tag
            for tag in sorted(usual & scores[0].keys())
            if np.mean([each[tag] for each in scores]) < measure.TAG_THRESHOLD
        ]

    def _decide(self) -> Verdict:
        if len(self.plan.seeds) < 2:  # nothing is measured
            nothing = np.zeros((len(self.strengths), len(self.prompts), 1))
            return decide_verdict(self.strengths, {"effect": nothing}, nothing[0])
        return decide_verdict(self.strengths, self.build_curves(), self.noise_floors, self.level)

    @property
    def level(self) -> float:
        """The share of the draws that a claim needs."""
        return LOOK_LEVELS[max(0, len(self.plan.looks) - 1)]

    def find_character(self) -> Character | None:
        """Return what the LoRA is at the strength tried nearest the recommended one; `None` without one."""
        if self.verdict is None or (recommended := self.verdict.recommended) is None:
            return None
        assert self.gauge is not None
        tried = min(filter(None, self.columns), key=lambda strength: abs(strength - recommended))
        shape = (len(self.prompts), len(self.plan.seeds), -1)
        scores = [self.columns[strength].tag_scores.reshape(shape) for strength in (0.0, tried)]
        shifts = self.columns[tried].style_shifts.reshape(shape)
        return describe_character(tried, shifts, self.gauge.tags, *(scores if self.gauge.tags else ()))

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
                    works=self.verdict.answer == "works",
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
