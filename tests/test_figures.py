"""Figures of README and docs are the measured ones: tests/figures.txt filled in from tests/bench/results."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULTS: dict[str, Any] = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in (ROOT / "tests" / "bench" / "results").glob("*.json")
}
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


def read_templates() -> list[tuple[str, str]]:
    """Return (page, template) for each line of tests/figures.txt; a line `# page` names the page below it."""
    found, page = [], ""
    for line in (ROOT / "tests" / "figures.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            page = line.removeprefix("# ")
        elif line:
            found.append((page, line))
    return found


TEMPLATES = read_templates()


def fill_in(template: str) -> str:
    """A template's `{file[key][key]:format}` with the numbers of tests/bench/results."""
    return template.format(**RESULTS)


def read_page(page: str) -> str:
    """A page as one line."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


@pytest.mark.parametrize(("page", "template"), TEMPLATES)
def test_a_figure_is_the_measured_one(page: str, template: str) -> None:
    assert fill_in(template) in read_page(page)


def test_every_row_of_the_benchmarks_is_a_measured_one() -> None:
    lines = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    below = [line for above, line in pairwise(lines) if above.startswith("|")]
    rows = {line for line in below if line.startswith("|") and not line.startswith("|---")}
    assert len(rows) > 20
    assert not rows - {fill_in(template) for page, template in TEMPLATES if page == "docs/benchmarks.md"}


def test_every_time_of_the_tour_is_a_measured_one() -> None:
    tour = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .split("## Try it in a few minutes")[1]
        .split("\n## ")[0]
    )
    times = set(re.findall(r"[\d.]+ s\b", tour))
    measured = {
        time
        for page, template in TEMPLATES
        if page == "README.md"
        for time in re.findall(r"[\d.]+ s\b", fill_in(template))
    }
    assert times == measured


def test_what_is_said_in_words_is_so() -> None:
    """Figures that a sentence rounds or only implies."""
    assert RESULTS["recipe"]["details"]["share_sharper"] == 1, "12 of 12"
    assert RESULTS["loader"]["worst"] <= 2e-6, "kohya's own loader and the studio agree to within 2e-6"
    assert not RESULTS["load"]["cross_talk"], "nobody got another's result"
    assert RESULTS["load"]["held"] == RESULTS["load"]["jobs"]
    assert RESULTS["soak"]["held"] == RESULTS["soak"]["jobs"]
    assert len(RESULTS["transfer"]["model_loads"]) == 3, "it loads 3 models"
    first_steps = [RESULTS["train"][task]["first_step"] for task in ("nano", "mini")]
    assert all(step["loss_apart"] == 0 for step in first_steps), (
        "the first step's loss equals that of each peer"
    )
    works = NUMBER.findall(RESULTS["lessons"]["why"])[:2]
    assert f"It works from {works[0]} to {works[1]}." in read_page("docs/training.md")


def test_the_claims_are_answered_as_measured() -> None:
    across = RESULTS["across"]
    assert all("not tested" in claim for claim in across["claims"])
    assert all("inconclusive" in claim for claim in across["by the API"]["claims"])


@pytest.mark.parametrize("part", ["style", "character"])
def test_nano_keeps_its_tags_where_a_lora_is_visible(part: str) -> None:
    measured = RESULTS["room"][part]
    low, high = measured["works_from"], measured["works_to"]
    assert min(row["tags_read"] for row in measured["curve"] if low <= row["strength"] <= high) >= 0.85
