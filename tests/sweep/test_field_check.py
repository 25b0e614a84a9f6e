"""A person's blind check of a finished sweep: what is shown, what the answers say, what is refused."""

import json
import random
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.schema.errors import UserError
from core.sweep.archive import load_pictures, read_report, replace_report
from core.sweep.field_check import (
    FieldAnswers,
    PairAnswer,
    RowAnswer,
    describe_field_check,
    parse_field_answers,
    parse_finished_sweep,
    plan_field_check,
    summarise_field_check,
)
from tests.dataset.parts import PNG, write_zip
from tests.sweep.finished_sweep import make_report, write_sweep
from tests.trust.test_zips import ENCRYPTED_ZIP, LINK_MEMBER, write_many_members

TRIED = (1.0, 2.0, 3.0, 4.0, 5.0)


def make_answers(
    usable: list[tuple[float, ...]], broken: list[tuple[float, ...]], preferred: list[float | None]
) -> FieldAnswers:
    """Return answers of one row per entry, and of pairs of 3 beside 1."""
    return FieldAnswers(
        date="2026-01-31",
        pairs=tuple(
            PairAnswer(prompt=0, seed=1, recommended=3.0, other=1.0, preferred=each) for each in preferred
        ),
        rows=tuple(
            RowAnswer(prompt=i % 4, seed=1 + i // 4, strengths=TRIED, used=use, broken=lost)
            for i, (use, lost) in enumerate(zip(usable, broken, strict=True))
        ),
    )


def make_usual_answers() -> FieldAnswers:
    """Return six rows: four break at 4, one at 5 and one not, though 2 looked broken there by chance."""
    broken = [(4.0, 5.0)] * 4 + [(5.0,), (2.0,)]
    used = [(2.0, 3.0)] * 3 + [(3.0, 4.0), (3.0,), ()]
    return make_answers(used, broken, [3.0, 3.0, 3.0, 1.0, None])


def test_pairs_come_first_and_nothing_tells_a_strength() -> None:
    sweep = parse_finished_sweep(make_report())
    screens = plan_field_check(sweep, random.Random(1))
    assert [screen.kind for screen in screens] == ["pair"] * 8 + ["row"] * 8
    for kind in ("pair", "row"):
        items = {(screen.prompt, screen.seed) for screen in screens if screen.kind == kind}
        assert len(items) == 8, "each prompt with each seed once"
    pairs, rows = screens[:8], screens[8:]
    others = [next(s for s in pair.strengths if s != 3) for pair in pairs]
    assert set(others) == {1, 2, 4, 5}, "the other strength is any that was tried"
    assert {pair.strengths.index(3) for pair in pairs} == {0, 1}, "the recommended one has no side"
    assert all(sorted(row.strengths) == [1, 2, 3, 4, 5] for row in rows), "0 is shown apart"
    assert len({row.strengths for row in rows}) > 4, "each row has its own order"


def test_six_rows_of_many_prompts_are_of_six_prompts() -> None:
    """Prompts differ more than seeds: rows that share one would promise too much."""
    sweep = parse_finished_sweep(make_report(prompts=[f"prompt {i}" for i in range(16)]))
    rows = plan_field_check(sweep, random.Random(2))[8:]
    assert len({row.prompt for row in rows}) == 8


def test_of_many_strengths_a_row_shows_few_and_the_recommended_one() -> None:
    many = [0.0, *(round(0.1 * i, 1) for i in range(1, 51))]
    sweep = parse_finished_sweep(make_report(strengths=many, recommended=2.2))
    row = plan_field_check(sweep, random.Random(3))[-1]
    assert len(row.strengths) == 13
    assert {0.1, 2.2, 5.0} <= set(row.strengths)


def test_without_a_recommended_strength_there_are_rows_alone() -> None:
    sweep = parse_finished_sweep(make_report(recommended=None))
    assert [screen.kind for screen in plan_field_check(sweep, random.Random(4))] == ["row"] * 8
    found = summarise_field_check(make_answers([(2.0,)] * 6, [(5.0,)] * 6, []), None)
    assert found["agreement"] == {
        "pairs": None,
        "rows_using_recommended": None,
        "breakdown_in_interval": None,
    }


def test_a_persons_range_and_breakdown_are_those_of_half_the_rows() -> None:
    found = summarise_field_check(make_usual_answers(), [4.0, None])
    assert (found["rows"], found["rows_used"]) == (6, 5)
    assert (found["range"], found["breakdown"]) == ([2.0, 3.0], 4.0)
    assert found["intervals"] == {"breakdown": [4.0, None], "low": [2.0, 3.0], "high": [3.0, 4.0]}
    agreement = found["agreement"]
    assert agreement["rows_using_recommended"] == 5
    assert agreement["breakdown_in_interval"] is True
    pairs = agreement["pairs"]
    assert [pairs[name] for name in ("preferred", "other", "no_difference", "share")] == [3, 1, 1, 0.75]
    assert pairs["interval"] == [0.301, 0.954], "Wilson's, of 3 in 4"


@pytest.mark.parametrize(
    ("interval", "inside"), [([4.0, 4.5], True), ([4.5, None], False), ([2.0, 3.0], False), (None, None)]
)
def test_a_break_outside_the_verdicts_interval_is_no_agreement(interval: Any, inside: bool | None) -> None:
    found = summarise_field_check(make_usual_answers(), interval)
    assert found["agreement"]["breakdown_in_interval"] is inside


def test_who_sees_no_break_agrees_with_a_verdict_that_leaves_it_open() -> None:
    answers = make_answers([(3.0,)] * 6, [()] * 6, [None] * 6)
    for interval, inside in (([4.0, None], True), ([4.0, 5.0], False)):
        found = summarise_field_check(answers, interval)
        assert (found["breakdown"], found["agreement"]["breakdown_in_interval"]) == (None, inside)
    assert found["agreement"]["pairs"]["share"] is None, "no pair showed a difference"


def test_negative_strengths_mirror_positive_ones() -> None:
    answers = make_usual_answers()
    mirrored = replace(
        answers,
        pairs=(),
        rows=tuple(
            replace(
                row,
                **{name: tuple(-s for s in getattr(row, name)) for name in ("strengths", "used", "broken")},
            )
            for row in answers.rows
        ),
    )
    found = summarise_field_check(mirrored, [None, -4.0])
    assert (found["range"], found["breakdown"]) == ([-3.0, -2.0], -4.0)
    assert found["intervals"]["breakdown"] == [None, -4.0]
    assert found["agreement"]["breakdown_in_interval"] is True


def test_a_report_names_nobody_and_no_hour() -> None:
    found = summarise_field_check(make_usual_answers(), [4.0, 5.0])
    assert set(found) == {
        "date", "rows", "rows_used", "range", "breakdown", "intervals", "agreement", "answers",
    }  # fmt: skip
    texts = re.findall(r'[:\[,] "([^"]*)"(?!:)', json.dumps(found))
    assert texts == ["2026-01-31"], "everything else is a number"


def test_what_is_said_of_a_check_is_what_was_answered() -> None:
    assert describe_field_check(summarise_field_check(make_usual_answers(), [4.5, None])) == (
        "Blind check by one person over 6 rows: would use 2 to 3, broken from 4 on. "
        "The recommended strength was better in 3 of 4 pairs; 1 more showed no difference. "
        "It would be used in 5 of 6 rows. Where it breaks is outside the verdict's interval."
    )


def test_a_claimed_agreement_is_not_believed_but_counted_again() -> None:
    found = summarise_field_check(make_usual_answers(), [4.0, 5.0])
    claimed = json.loads(json.dumps({**found, "breakdown": 1, "agreement": {"pairs": 99}, "by": "Ann"}))
    assert summarise_field_check(parse_field_answers(claimed), [4.0, 5.0]) == found
    halved = summarise_field_check(parse_field_answers(claimed, times=2.0), [2.0, 2.5])
    assert (halved["range"], halved["breakdown"]) == ([1.0, 1.5], 2.0)
    assert halved["agreement"] == found["agreement"]


@pytest.mark.parametrize(
    "change",
    [
        {"date": "2026-01-31T12:00"},
        {"answers": {"pairs": [], "rows": []}},
        {
            "answers": {
                "pairs": [],
                "rows": [{"prompt": 0, "seed": 1, "strengths": [1], "used": [2], "broken": []}],
            }
        },
        {
            "answers": {
                "pairs": [],
                "rows": [{"prompt": 0, "seed": 1, "strengths": [99], "used": [], "broken": []}],
            }
        },
        {"answers": None},
    ],
)
def test_answers_of_another_shape_are_refused(change: dict[str, Any]) -> None:
    found = summarise_field_check(make_usual_answers(), None)
    with pytest.raises((KeyError, TypeError, ValueError)):
        parse_field_answers({**found, **change})


# --- the zip ---------------------------------------------------------------------------------------


def test_the_check_goes_into_the_report_and_all_else_stays(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, make_report())
    with zipfile.ZipFile(file) as before:
        old = {name: before.read(name) for name in before.namelist()}
    replace_report(file, {**read_report(file), "field_check": {"rows": 6}})
    with zipfile.ZipFile(file) as after:
        new = {name: after.read(name) for name in after.namelist()}
        assert all(member.date_time[3:] == (0, 0, 0) for member in after.infolist()), "no hour"
    assert json.loads(new.pop("report.json")) == {**make_report(), "field_check": {"rows": 6}}
    old.pop("report.json")
    assert new == old
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


SMALL = {"prompts": ["1girl", "1boy"]}
STOPPED = {"cells": make_report()["cells"][:-3]}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"strengths": [0.0, 1.0]}, "1 strength beside 0 is too little; a check needs at least 2"),
        (SMALL, "4 images per strength are too few; a check needs at least 6"),
        (STOPPED, "3 of 48 images are missing; finish the sweep first"),
        ({"strengths": [0, 1, float("nan")]}, "use the zip that the Sweep tab or /sweep has made"),
        ({"strengths": 10**400}, "use the zip that the Sweep tab"),
        ({"seeds": ["1", "2"]}, "use the zip that the Sweep tab"),
        ({"prompts": ["x" * 20_000] * 4}, "use the zip that the Sweep tab"),
        ({"recommended": "3"}, "use the zip that the Sweep tab"),
        ({"intervals": {"breakdown": [1, 2, 3]}}, "use the zip that the Sweep tab"),
        ({"intervals": None}, "use the zip that the Sweep tab"),
        ({"cells": [{"picture": "x"}]}, "use the zip that the Sweep tab"),
    ],
)
def test_a_report_that_cannot_be_checked_is_one_sentence(changes: dict[str, Any], why: str) -> None:
    cells = changes.get("cells") or make_report(**SMALL if changes is SMALL else {})["cells"]
    with pytest.raises(UserError, match=f"^report: {why}"):
        parse_finished_sweep({**make_report(), **changes, "cells": cells})


BOMB = b"0" * 20_000_000
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "another file": (
        lambda to: to / "report.txt",
        "report.txt contains no readable report.json",
    ),
    "no zip": (
        lambda to: write_text(to / "set.zip", "PK"),
        "set.zip in set.zip: it is not a complete zip archive",
    ),
    "nothing in it": (
        lambda to: write_zip(to, {"a.png": PNG}),
        "set.zip contains no readable report.json",
    ),
    "a path that leads out": (
        lambda to: write_zip(to, {"report.json": "{}", "../../evil.png": PNG}),
        "../../evil.png in set.zip: its path leads out of the archive",
    ),
    "a link": (
        lambda to: write_zip(to, [("report.json", "{}"), (LINK_MEMBER, "/etc/passwd")]),
        "link.png in set.zip: it is a link",
    ),
    "a bomb": (
        lambda to: write_zip(to, {"report.json": BOMB}),
        r"set.zip has [\d,]+ bytes and unpacks to 20,000,000; the limit is 100 times its size",
    ),
    "a long report": (
        lambda to: write_zip(to, {"report.json": random.Random(0).randbytes(5_000_000)}),
        "set.zip cannot be read: it has 5,000,000 bytes; the limit is 4,194,304",
    ),
    "many members": (write_many_members, "more than 10,000 files are too many"),
    "a secret": (
        lambda to: write_bytes(to / "set.zip", ENCRYPTED_ZIP),
        "secret.png in set.zip: it is encrypted",
    ),
    "no JSON": (
        lambda to: write_zip(to, {"report.json": "{" * 100}),
        "set.zip contains no readable report.json",
    ),
    "JSON without an end": (
        lambda to: write_zip(to, {"report.json": "[" * 200_000}),
        r"set.zip (contains no readable report.json|has .* the limit)",
    ),
    "a list": (lambda to: write_zip(to, {"report.json": "[]"}), "set.zip contains no report"),
}


def write_text(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def write_bytes(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("kind", REFUSED)
def test_a_hostile_zip_is_one_sentence(tmp_path: Path, kind: str) -> None:
    make, why = REFUSED[kind]
    file = make(tmp_path)
    with pytest.raises(UserError, match=f"^report: {why}"):
        read_report(file)
    assert not [each for each in tmp_path.iterdir() if each != file], "nothing is unpacked"


def test_a_picture_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    file = write_zip(tmp_path, {"cells/a.png": b"GIF89a", "report.json": "{}"})
    with pytest.raises(UserError, match=r"an image in set.zip is unusable: it is broken, or not a PNG"):
        load_pictures(file, ["cells/a.png"])
    with pytest.raises(UserError, match=r"set.zip lacks the image ../b.png"):
        load_pictures(file, ["../b.png"])
