"""README and docs are true: paths, links and commands exist, tables match the code, the examples run."""

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import TypeGuard

import pytest
import yaml

from core.schema import limits

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
}
API, ARCHITECTURE, MEASURING, OPERATIONS = (
    PAGES[f"docs/{name}.md"] for name in ("api", "architecture", "measuring", "operations")
)
PATH = r"^((?:app\.py|(?:tabs|core|presets|tests|docs)/)\S*)\s{2,}\S"
"""A line of a file tree."""
INVENTED = {"presets/prompts/mine.toml"}
"""Files that a reader is asked to make."""


def code_of(page: str) -> list[str]:
    """The inline code of a page, and the lines of its shell blocks."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    return [
        *re.findall(r"`([^`]+)`", prose),
        *(line for language, text in blocks if language == "sh" for line in text.splitlines()),
    ]


def anchors_of(page: str) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- paths, links, commands ------------------------------------------------------------------------


def test_every_path_exists() -> None:
    listed = re.findall(PATH, README, re.MULTILINE)
    assert len(listed) > 20
    listed += re.findall(PATH, ARCHITECTURE, re.MULTILINE)
    assert not [path for path in listed if not (ROOT / path).exists()]


def test_every_room_is_in_the_readme() -> None:
    listed = re.findall(PATH, README, re.MULTILINE)
    for file in (file for folder in ("core", "tabs") for file in (ROOT / folder).rglob("*.py")):
        path = file.relative_to(ROOT)
        if len(path.parts) > 2 or path.name != "__init__.py":  # that of core or tabs itself is in no room
            assert f"{path.parent.as_posix()}/" in listed or path.as_posix() in listed, path


def test_every_file_is_listed() -> None:
    files = [
        file.relative_to(ROOT).as_posix()
        for folder in ("core", "tabs")
        for file in (ROOT / folder).rglob("*.py")
        if file.name != "__init__.py"
    ]
    assert not [file for file in files if f"\n{file} " not in ARCHITECTURE]


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.is_file(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors_of(file.read_text(encoding="utf-8")), f"{name} links to {target}"


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_is_named_exists(name: str) -> None:
    for code in code_of(PAGES[name]):
        for path in re.findall(r"(?:^|\s)((?:core|tabs|tests|presets|docs)/[\w./-]+)", code):
            assert (ROOT / path).exists() or path in INVENTED, f"{name} names {path}"
        for module in re.findall(r"-m ((?:core|tests)\.[\w.]+)", code):
            file = ROOT.joinpath(*module.split("."))
            assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), (
                f"{name} names {module}"
            )


def test_the_commands_are_targets() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name: {match[1] for code in code_of(page) if (match := re.match(r"make ([\w-]+)", code))}
        for name, page in PAGES.items()
    }
    assert {"run", "space"} <= named["README.md"]
    every = set().union(*named.values())
    assert {"run", "test", "nano", "space"} <= every
    assert every <= targets


def test_every_variable_is_read_by_the_code() -> None:
    code = "".join(
        file.read_text(encoding="utf-8")
        for folder in ("core", "tabs")
        for file in (ROOT / folder).rglob("*.py")
    )
    named = {name for page in PAGES.values() for name in re.findall(r"\bSWEETSPOT_[A-Z]+\b", page)}
    assert {"SWEETSPOT_HOME", "SWEETSPOT_RUNS", "SWEETSPOT_CELLS", "SWEETSPOT_LOG"} <= named
    assert not [name for name in named if name not in code]


# --- tables ----------------------------------------------------------------------------------------


def test_every_endpoint_is_explained() -> None:
    """Each parameter with its default, as tests/api_snapshot.json has them; no other."""
    shown = {}
    for section in re.split(r"^### ", API, flags=re.MULTILINE)[1:]:
        shown[section.split("`")[1]] = {
            name: default.strip()
            for name, default in re.findall(r"^\| `(\w+)` \|([^|]*)\|", section, re.MULTILINE)
        }
    snapshot = json.loads((ROOT / "tests" / "api_snapshot.json").read_text())
    special = {"required": "required", None: ""}
    wanted = {
        endpoint: {
            name: special[value] if value in (None, "required") else f"`{json.dumps(value)}`"
            for name, value in told["takes"].items()
        }
        for endpoint, told in snapshot.items()
    }
    assert shown == wanted


def test_the_floors_are_those_of_import_linter() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "rooms")
    rows = [", ".join(f"`{room}`" for room in layer.split(" | ")) for layer in layers]
    assert re.findall(r"^\| \d+ \| (.*) \|$", ARCHITECTURE, re.MULTILINE) == rows


def test_files_are_deleted_when_the_docs_say() -> None:
    def age(seconds: float | None) -> str:
        return (
            "never" if seconds is None else f"{seconds // limits.DAY} day{'s' * (seconds >= 2 * limits.DAY)}"
        )

    names = {
        "files": "generated files and uploads",
        "cells": "cached sweep images",
        "runs": "trainings",
        "downloads": "downloads that no preset names",
    }
    for name, (hosted, home) in limits.UNUSED_AGES.items():
        assert f"\n| {names[name]} | {age(hosted)} | {age(home)} |\n" in OPERATIONS
    assert f"less than {limits.DISK_FLOOR / 1e9:g} GB of disk space" in " ".join(OPERATIONS.split())


def nodes_of(file: str) -> list[ast.AST]:
    """All nodes of a file, so that values are found whatever their names are."""
    return list(ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    ("sentence", "file", "values"),
    [
        (
            "prompt is at least 0.85, composition at least 0.35, detail between 0.4 and 2.5 and "
            "saturation at most 0.1",
            "core/sweep/knees.py",
            {0.85, 0.35, 0.4, 2.5, 0.1},
        ),
        ("the gain is at least 60% of the greatest one", "core/sweep/knees.py", {0.6}),
        (
            "second half of the range surely adds less than 25% of the gain",
            "core/sweep/decide.py",
            {0.25},
        ),
        ("adds more than 10%, and fewer than 20% of the draws break", "core/sweep/decide.py", {0.1, 0.2}),
        ("An **interval** holds 95% of the draws", "core/sweep/decide.py", {0.95}),
        ("two to five times, 0.971 to 0.984 each time", "core/sweep/decide.py", {0.9706, 0.9842}),
        ("| least prompts and seeds | 4, 2 |", "core/sweep/decide.py", {4, 2}),
        ("400 such sets are drawn", "core/sweep/resample.py", {400}),
        (
            "the whole interval is between 33% and 80%",
            "core/transfer/judge.py",
            {0.8, 0.33},
        ),
    ],
)
def test_a_threshold_is_the_codes(sentence: str, file: str, values: set[float]) -> None:
    assert sentence in " ".join(MEASURING.split())
    assert values <= {
        node.value
        for node in nodes_of(file)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    }


def test_every_measure_is_explained() -> None:
    table = MEASURING.split("| measure | what it is |")[1].split("\n\n")[0]
    explained = set(re.findall(r"^\| (\w+) \|", table, re.MULTILINE))
    listed = [
        {ast.literal_eval(each) for each in node.elts}
        for node in nodes_of("core/sweep/gauge.py")
        if _lists_measures(node)
    ]
    assert listed == [explained | {"effect_face", "effect_background"}]


def _lists_measures(node: ast.AST) -> TypeGuard[ast.Tuple]:
    return isinstance(node, ast.Tuple) and {"effect", "style"} <= {
        each.value for each in node.elts if isinstance(each, ast.Constant)
    }


def test_every_recipe_is_explained() -> None:
    table = PAGES["docs/training.md"].split("| recipe | what it is for |")[1].split("\n\n")[0]
    files = {file.stem for file in (ROOT / "presets" / "training").glob("*.toml")} - {"example_run"}
    assert set(re.findall(r"`([\w-]+)`", table)) == files


# --- examples --------------------------------------------------------------------------------------


def test_every_example_is_run() -> None:
    """Two of docs/api.md: the first here, the other in tests/publish/test_endpoints.py."""
    assert {name: page.count("```python\n") for name, page in PAGES.items() if "```python\n" in page} == {
        "docs/api.md": 2
    }


def test_the_example_runs_as_pasted(studio: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = next(
        block for block in re.findall(r"```python\n(.*?)```", API, re.DOTALL) if "gradio_client" in block
    )
    exec(compile(example.replace("http://127.0.0.1:7860", studio), "docs/api.md", "exec"), {})
    printed = capsys.readouterr().out
    assert ".png" in printed
    assert "[7]" in printed


def test_the_front_matter_is_what_a_space_reads() -> None:
    card = yaml.safe_load(README.split("---")[1])
    assert card["sdk"] == "gradio"
    assert card["python_version"] == "3.12", "quoted: unquoted 3.10 would be 3.1"
    assert card["app_file"] == "app.py"
    assert len(card["short_description"]) <= 60
    assert card["hf_oauth_scopes"] == ["contribute-repos"]
    import gradio

    assert card["sdk_version"] == gradio.__version__
