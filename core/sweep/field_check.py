"""A check of a sweep's verdict by a person's eyes: what they are shown, and what their answers say.

Strengths are hidden and their order is shuffled. First come blind pairs, the recommended strength
beside another one; then rows, one prompt and seed at all strengths. What is kept has no name, no
text, and no time finer than the day.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import chain
from statistics import median_low
from typing import Any, Literal

import numpy as np

from core.schema import limits
from core.schema.bounds import is_number
from core.schema.errors import UserError

ROWS = (6, 8)
"""Fewest and most rows of a check.

The median over all prompts lies between the least and the greatest of six rows in 97 % of checks, if
each row has a prompt of its own.
"""
MAX_SHOWN_STRENGTHS = 12
"""Strengths of a row; of more, as many are shown in even steps, and the recommended one."""
NORMAL_QUANTILE = 1.96
"""Half the width of a 95 % interval, in standard deviations."""
Picture = tuple[float, int, int]
"""Strength, place of the prompt, seed."""
Interval = Sequence[float | None]
"""The ends of an interval, the lower first; `None` is beyond the strengths that were tried."""


@dataclass(frozen=True, kw_only=True)
class FinishedSweep:
    """What a check needs of a sweep's report: of strengths of both signs, those that were judged."""

    strengths: tuple[float, ...]
    """Without 0, away from it."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    recommended: float | None
    """Of `strengths`, the one nearest to what the verdict recommends; `None` if it recommends none."""
    breakdown_interval: Interval | None
    """Where the verdict has the breakdown; `None` if it says nothing of it."""
    pictures: Mapping[Picture, str]
    """Picture -> its file's name in the sweep's zip; strength 0 is there, too."""


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What a person is shown at once: one prompt and seed at several strengths."""

    kind: Literal["pair", "row"]
    """Whether the better of two is asked for, or which are of use and which are broken."""
    prompt: int
    """The prompt's place in the report."""
    seed: int
    strengths: tuple[float, ...]
    """In the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class PairAnswer:
    """Which of two strengths is better."""

    prompt: int
    seed: int
    recommended: float
    other: float
    preferred: float | None
    """One of both, or `None` for no difference."""


@dataclass(frozen=True, kw_only=True)
class RowAnswer:
    """Which strengths of a row a person would use, and which are broken."""

    prompt: int
    seed: int
    strengths: tuple[float, ...]
    """Away from 0."""
    used: tuple[float, ...]
    broken: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class FieldAnswers:
    """All answers of one person to one sweep."""

    date: str
    """The day, as `2026-01-31`."""
    pairs: tuple[PairAnswer, ...]
    """None where no strength was recommended."""
    rows: tuple[RowAnswer, ...]


def parse_finished_sweep(report: Mapping[str, Any]) -> FinishedSweep:
    """Parse what a check needs of a report.

    Raises `UserError` if it is not of a sweep, or of one that is unfinished or too small.
    """
    try:
        every = [
            _parse_number(s, *limits.STRENGTH) for s in _parse_list(report["strengths"], limits.STRENGTHS)
        ]
        prompts = tuple(_parse_prompt(p) for p in _parse_list(report["prompts"], limits.PROMPTS))
        seeds = tuple(int(_parse_number(s, *limits.SEED)) for s in _parse_list(report["seeds"], limits.SEEDS))
        pictures = {
            (
                _parse_number(cell["strength"], *limits.STRENGTH),
                prompts.index(cell["prompt"]),
                int(_parse_number(cell["seed"], *limits.SEED)),
            ): str(cell["picture"])
            for cell in _parse_list(report["cells"], limits.SWEEP_CELLS)
        }
        found = report["recommended"]
        recommended = None if found is None else _parse_number(found, *limits.STRENGTH)
        interval = _parse_interval(report["intervals"].get("breakdown"))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError("report", "use the zip that the Sweep tab or /sweep has made.") from error
    sign = -1 if max(every, default=0) <= 0 else 1
    strengths = tuple(sorted({s for s in every if s * sign > 0}, key=abs))
    if len(strengths) < 2:
        raise UserError(
            "report", f"{len(strengths)} strength beside 0 is too little; a check needs at least 2."
        )
    if (rows := len(prompts) * len(seeds)) < ROWS[0]:
        raise UserError(
            "report",
            f"{rows} images per strength are too few; a check needs at least {ROWS[0]} (prompts x seeds).",
        )
    wanted = {(s, p, seed) for s in (0.0, *strengths) for p in range(len(prompts)) for seed in seeds}
    if missing := len(wanted - pictures.keys()):
        raise UserError("report", f"{missing} of {len(wanted)} images are missing; finish the sweep first.")
    return FinishedSweep(
        strengths=strengths,
        prompts=prompts,
        seeds=seeds,
        recommended=None if recommended is None else min(strengths, key=lambda s: abs(s - recommended)),
        breakdown_interval=interval,
        pictures=pictures,
    )


def plan_field_check(sweep: FinishedSweep, rng: random.Random) -> tuple[Screen, ...]:
    """Choose what is shown, in that order: as many pairs as rows, or rows alone if nothing is recommended.

    The rows take as many prompts as they can. The other strengths of the pairs are spread evenly over
    all that were tried, so that the share of pairs which prefer the recommended one has one meaning.
    """
    places = rng.sample(range(len(sweep.prompts)), len(sweep.prompts))
    seeds_of = [rng.sample(sweep.seeds, len(sweep.seeds)) for _ in places]
    rounds = (
        [(place, seeds[k]) for place, seeds in zip(places, seeds_of, strict=True)]
        for k in range(len(sweep.seeds))
    )
    items = list(chain.from_iterable(rounds))[: ROWS[1]]
    every = list(sweep.strengths)
    shown = set(_spread(every, min(MAX_SHOWN_STRENGTHS, len(every))))
    pairs: list[Screen] = []
    if (best := sweep.recommended) is not None:
        shown.add(best)
        others = _spread([s for s in every if s != best], len(items))
        rng.shuffle(others)
        pairs = [
            Screen(kind="pair", prompt=prompt, seed=seed, strengths=_shuffle((best, other), rng))
            for (prompt, seed), other in zip(items, others, strict=True)
        ]
    rows = [
        Screen(kind="row", prompt=prompt, seed=seed, strengths=_shuffle(sorted(shown), rng))
        for prompt, seed in rng.sample(items, len(items))
    ]
    return (*pairs, *rows)


def answer_pair(pair: Screen, recommended: float, preferred: float | None) -> PairAnswer:
    """Return the answer to a pair; `preferred` is one of its strengths, or `None` for no difference."""
    (other,) = (s for s in pair.strengths if s != recommended)
    return PairAnswer(
        prompt=pair.prompt, seed=pair.seed, recommended=recommended, other=other, preferred=preferred
    )


def answer_row(row: Screen, used: Sequence[float], broken: Sequence[float]) -> RowAnswer:
    """Return the answer to a row, without the order in which it was shown."""
    in_order = (tuple(sorted(each, key=abs)) for each in (row.strengths, used, broken))
    strengths, used, broken = in_order
    return RowAnswer(prompt=row.prompt, seed=row.seed, strengths=strengths, used=used, broken=broken)


def summarise_field_check(answers: FieldAnswers, breakdown_interval: Interval | None) -> dict[str, Any]:
    """Return what a report says of a check: the answers, the person's own knees, and the agreement.

    `breakdown_interval` is the verdict's, `None` if it says nothing of a breakdown. `range` goes from the
    least to the greatest strength that would be used in at least half of the rows, `breakdown` is the
    least from which at least half of them are broken; `None` where there is none. The intervals of
    `breakdown`, and of the range's `low` and `high`, reach from the least to the greatest row;
    `rows_used` counts the rows in which any strength would be used.
    """
    rows = answers.rows
    sign = -1 if rows[0].strengths[-1] < 0 else 1
    used = [sorted(abs(s) for s in row.used) for row in rows if row.used]
    counts = Counter(chain.from_iterable(used))
    often = [strength for strength, count in counts.items() if 2 * count >= len(rows)]
    breaks = [_find_row_break(row) for row in rows]
    broken_at = median_low(breaks)
    spans = {"breakdown": breaks}
    if used:
        spans |= {"low": [each[0] for each in used], "high": [each[-1] for each in used]}
    return {
        "date": answers.date,
        "rows": len(rows),
        "rows_used": len(used),
        "range": _order_ends(sign, min(often), max(often)) if often else None,
        "breakdown": sign * broken_at if math.isfinite(broken_at) else None,
        "intervals": {name: _order_ends(sign, min(span), max(span)) for name, span in spans.items()},
        "agreement": {
            "pairs": _count_pairs(answers.pairs),
            "rows_using_recommended": _count_rows_using(answers),
            "breakdown_in_interval": _is_inside(broken_at, breakdown_interval),
        },
        "answers": {"pairs": [asdict(pair) for pair in answers.pairs], "rows": [asdict(row) for row in rows]},
    }


def parse_field_answers(check: Mapping[str, Any], times: float = 1.0) -> FieldAnswers:
    """Parse the answers of a check in a report that comes from elsewhere, with strengths divided by `times`.

    Only the answers are taken: all else follows from them. Raises `KeyError`, `TypeError` or
    `ValueError` for anything that `summarise_field_check` does not write.
    """

    def scale(value: Any) -> float:
        return round(_parse_number(value, *limits.STRENGTH) / times, 4)

    def parse_item(answer: Mapping[str, Any]) -> dict[str, int]:
        return {
            "prompt": int(_parse_number(answer["prompt"], 0, limits.PROMPTS - 1)),
            "seed": int(_parse_number(answer["seed"], *limits.SEED)),
        }

    def parse_pair(answer: Mapping[str, Any]) -> PairAnswer:
        both = {name: scale(answer[name]) for name in ("recommended", "other")}
        preferred = None if answer["preferred"] is None else scale(answer["preferred"])
        if preferred not in (None, *both.values()):
            raise ValueError("not of this pair")
        return PairAnswer(
            **parse_item(answer), recommended=both["recommended"], other=both["other"], preferred=preferred
        )

    def parse_row(answer: Mapping[str, Any]) -> RowAnswer:
        strengths, used, broken = (
            tuple(map(scale, _parse_list(answer[name], limits.STRENGTHS)))
            for name in ("strengths", "used", "broken")
        )
        if not strengths or {*used, *broken} - {*strengths}:
            raise ValueError("not of this row")
        return RowAnswer(**parse_item(answer), strengths=strengths, used=used, broken=broken)

    given = check["answers"]
    rows = tuple(map(parse_row, _parse_list(given["rows"], ROWS[1])))
    if not rows:
        raise ValueError("no rows")
    return FieldAnswers(
        date=date.fromisoformat(check["date"]).isoformat(),
        pairs=tuple(map(parse_pair, _parse_list(given["pairs"], ROWS[1]))),
        rows=rows,
    )


def describe_field_check(check: Mapping[str, Any]) -> str:
    """Return what a check found as text, from what `summarise_field_check` returned."""
    ends, agreement = check["range"], check["agreement"]
    said = [
        f"Blind check by one person over {check['rows']} rows: would use "
        + (" to ".join(f"{end:g}" for end in dict.fromkeys(ends)) if ends else "no strength in most of them")
        + (
            f", broken from {check['breakdown']:g} on"
            if check["breakdown"] is not None
            else ", not broken at any strength shown"
        )
        + "."
    ]
    if (pairs := agreement["pairs"]) is not None:
        decided = pairs["preferred"] + pairs["other"]
        alike = pairs["no_difference"]
        better = f"The recommended strength was better in {pairs['preferred']} of {decided} pairs"
        said.append(
            f"No pair of {alike} showed a difference."
            if not decided
            else f"{better}; {alike} more showed no difference."
            if alike
            else f"{better}."
        )
        said.append(f"It would be used in {agreement['rows_using_recommended']} of {check['rows']} rows.")
    if (inside := agreement["breakdown_in_interval"]) is not None:
        said.append(f"Where it breaks is {'within' if inside else 'outside'} the verdict's interval.")
    return " ".join(said)


def _find_row_break(row: RowAnswer) -> float:
    """Return where a row breaks, without its sign; infinity if it does not.

    As in a verdict, that is the first of two neighbouring strengths that are broken, or the last.
    """
    broken = [s in row.broken for s in row.strengths]
    last = len(broken) - 1
    return next(
        (abs(s) for i, s in enumerate(row.strengths) if broken[i] and (i == last or broken[i + 1])),
        math.inf,
    )


def _count_pairs(pairs: Sequence[PairAnswer]) -> dict[str, Any] | None:
    """Return how many pairs prefer what, and the share of the recommended strength with its interval.

    Pairs without a difference do not count for the share. The interval is Wilson's, 95 %: J. Am. Stat.
    Assoc. 22, 209 (1927).
    """
    if not pairs:
        return None
    preferred = sum(pair.preferred == pair.recommended for pair in pairs)
    other = sum(pair.preferred == pair.other for pair in pairs)
    counts = {"preferred": preferred, "other": other, "no_difference": len(pairs) - preferred - other}
    if (decided := preferred + other) == 0:
        return {**counts, "share": None, "interval": None}
    share, z2 = preferred / decided, NORMAL_QUANTILE**2
    middle = (share + z2 / (2 * decided)) / (1 + z2 / decided)
    half = (
        NORMAL_QUANTILE
        * math.sqrt(share * (1 - share) / decided + z2 / (4 * decided**2))
        / (1 + z2 / decided)
    )
    return {
        **counts,
        "share": round(share, 3),
        "interval": [round(max(0.0, middle - half), 3), round(min(1.0, middle + half), 3)],
    }


def _count_rows_using(answers: FieldAnswers) -> int | None:
    """Return in how many rows the recommended strength would be used; `None` if there is none."""
    if not answers.pairs:
        return None
    return sum(answers.pairs[0].recommended in row.used for row in answers.rows)


def _is_inside(strength: float, interval: Interval | None) -> bool | None:
    """Whether a strength without sign, or infinity, lies in an interval; `None` if there is none."""
    if interval is None:
        return None
    ends = [math.inf if end is None else abs(end) for end in interval]
    return min(ends) <= strength <= max(ends)


def _order_ends(sign: int, near: float, far: float) -> list[float | None]:
    """Return the ends of an interval, the lower first; infinity is `None`, beyond what was shown."""
    ends = [sign * end if math.isfinite(end) else None for end in (near, far)]
    return ends if sign > 0 else ends[::-1]


def _spread(values: Sequence[float], count: int) -> list[float]:
    """Return `count` of the values in even steps, each of them again if there are fewer."""
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, count)]


def _shuffle(values: Sequence[float], rng: random.Random) -> tuple[float, ...]:
    return tuple(rng.sample(values, len(values)))


def _parse_number(value: Any, low: float, high: float) -> float:
    if not is_number(value) or not low <= value <= high:  # false for NaN
        raise TypeError("no number of a sweep")
    return value


def _parse_prompt(value: Any) -> str:
    if not isinstance(value, str) or len(value) > limits.PROMPT_LENGTH:
        raise TypeError("no prompt")
    return value


def _parse_interval(value: Any) -> Interval | None:
    if value is None:
        return None
    ends = [None if end is None else _parse_number(end, *limits.STRENGTH) for end in _parse_list(value, 2)]
    if len(ends) != 2:
        raise ValueError("no interval")
    return ends


def _parse_list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) > most:
        raise TypeError("no list")
    return list(value)
