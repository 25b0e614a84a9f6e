"""Rooms import only downwards, as import-linter's contracts in `pyproject.toml` say.

`spaces` is imported in one place only.
"""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SOURCE_FILES = [
    ROOT / "app.py",
    *sorted((ROOT / "tabs").rglob("*.py")),
    *sorted((ROOT / "core").rglob("*.py")),
]
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
CONTRACTS: dict[str, dict[str, Any]] = {contract["id"]: contract for contract in LINTER["contracts"]}
LAYERED = [name for name, contract in CONTRACTS.items() if contract["type"] == "layers"]


def to_module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def list_imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floors(contract: dict[str, Any]) -> list[list[str]]:
    """Return the names on each floor of a contract, the highest floor first."""
    return [re.split(r" [|:] ", layer) for layer in contract["layers"]]


def below(name: str, container: str) -> str | None:
    """Return the part of the container that a module is in; `None` if it is outside."""
    inside = name.removeprefix(f"{container}.")
    return inside.partition(".")[0] if inside != name else None


@pytest.mark.parametrize("name", LAYERED)
def test_imports_point_downwards(name: str) -> None:
    contract = CONTRACTS[name]
    (container,) = contract["containers"]
    height = {each: -level for level, names in enumerate(floors(contract)) for each in names}
    apart = {
        each
        for names, layer in zip(floors(contract), contract["layers"], strict=True)
        if ":" not in layer
        for each in names
    }
    allowed = {tuple(pair.split(" -> ")) for pair in contract.get("ignore_imports", [])}
    for file in SOURCE_FILES:
        here = below(to_module_name(file), container)
        if here is None:
            continue
        assert here in height, f"{to_module_name(file)} has no floor in pyproject.toml's contract {name!r}"
        for other in list_imports(file):
            there = below(other, container)
            if (
                there not in height
                or there == here
                or {(to_module_name(file), other), (to_module_name(file), other.rpartition(".")[0])} & allowed
            ):
                continue
            assert height[there] < height[here] or (height[there] == height[here] and here not in apart), (
                f"{to_module_name(file)} imports {other}, which is not below it"
            )


def test_the_house_is_as_it_was_drawn() -> None:
    rooms = {
        file.parent
        for file in SOURCE_FILES
        if file.name == "__init__.py" and file.is_relative_to(ROOT / "core") and file.parent != ROOT / "core"
    }
    rooms = {folder for folder in rooms if "weights" not in folder.parts}
    assert len(rooms) <= 17
    assert (
        len(floors(CONTRACTS["rooms"]))
        + sum(len(floors(CONTRACTS[inner])) - 1 for inner in ("trainer", "stages"))
        <= 11
    )


@pytest.mark.parametrize(
    "file", [f for f in SOURCE_FILES if f.is_relative_to(ROOT / "core")], ids=to_module_name
)
def test_core_knows_no_page(file: Path) -> None:
    pages = {name for name in list_imports(file) if name.split(".")[0] in ("gradio", "tabs", "app")}
    assert not pages, f"{to_module_name(file)} imports {pages}"


def test_spaces_has_one_door() -> None:
    doors = {to_module_name(file) for file in SOURCE_FILES if "spaces" in list_imports(file)}
    assert doors == {"core.runtime.gpu"}


def test_spaces_comes_before_torch() -> None:
    """`app` first imports the check of its requirements, then the room that imports `spaces`.

    That room's `gpu` imports `spaces` before anything else.
    """
    names = [
        node.module
        for node in ast.parse((ROOT / "app.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
    ]
    assert names[:2] == ["core.system", "core.runtime"]
    door = next(
        n
        for n in ast.parse((ROOT / "core" / "runtime" / "gpu.py").read_text(encoding="utf-8")).body
        if isinstance(n, ast.Import | ast.ImportFrom)
    )
    assert isinstance(door, ast.Import)
    assert door.names[0].name == "spaces"


@pytest.mark.parametrize("file", SOURCE_FILES, ids=to_module_name)
def test_first_line_says_what_the_file_is_for(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), (
        f"{to_module_name(file)} does not say what it is for"
    )
