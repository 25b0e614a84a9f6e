"""Each of the twenty-eight cases has a test with its number in its name.

docs/trust.md names every one of them.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CASES = range(1, 29)


def list_case_tests() -> dict[int, set[str]]:
    """Return case -> the tests with its number in their names, as `file::test`."""
    found = defaultdict[int, set[str]](set)
    for file in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (match := re.match(r"test_case_(\d\d)_", node.name)):
                found[int(match[1])].add(f"{file.relative_to(ROOT).as_posix()}::{node.name}")
    return found


def read_table() -> dict[int, set[str]]:
    """Return case -> the tests that its row of docs/trust.md names."""
    rows = re.findall(
        r"^\| (\d+) \|(?:[^|]*\|){3}(.*)\|$",
        (ROOT / "docs" / "trust.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert [int(number) for number, _ in rows] == list(CASES)
    return {int(number): set(re.findall(r"`([^`]+)`", tests)) for number, tests in rows}


@pytest.mark.parametrize("case", CASES)
def test_each_case_is_tried_and_told(case: int) -> None:
    tried = list_case_tests()[case]
    assert tried, f"no test is called test_case_{case:02}_..."
    assert read_table()[case] == tried


def test_no_other_number_is_carried() -> None:
    assert list_case_tests().keys() <= set(CASES)
