"""SECURITY.md is true: each floor is held by what is asked for and by what is installed; the code has none of what is forbidden."""

import ast
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from tests.lock import ROOT, read_pins
from tests.test_layers import FILES, room

FLOORS = re.findall(r"^\| (\w+) \| ([\d.]+) \| (CVE-[\d-]+)", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
KEYWORDS = {"custom_pipeline", "trust_remote_code"}
CALLS = {"gr.load", "gradio.load", "torch.load", "np.load", "numpy.load"}
RUN = [file for file in FILES if not room(file).startswith("core.nano")]
"""What makes nano's weights reads its own states, which nobody brings."""


def test_every_attack_that_concerns_us_has_a_floor() -> None:
    assert {cve for _, _, cve in FLOORS} == {
        *("CVE-2026-27167", "CVE-2026-28414", "CVE-2026-28415", "CVE-2026-28416", "CVE-2026-48545", "CVE-2026-59806"),
        *("CVE-2026-44513", "CVE-2025-32434"),
    }


@pytest.mark.parametrize(("package", "floor", "cve"), FLOORS, ids=[cve for _, _, cve in FLOORS])
def test_a_floor_is_held(package: str, floor: str, cve: str) -> None:
    assert Version(version(package)) >= Version(floor)
    least = [
        Version(each.version)
        for each in read_pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))[package].specifier
        if each.operator in (">=", "==", "~=")
    ]
    assert least, f"{package} has no lower bound: {cve}"
    assert max(least) >= Version(floor), f"requirements.txt lets {package} {max(least)} in: {cve}"
    if package == "gradio":
        card = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---")[1])
        assert Version(card["sdk_version"]) >= Version(floor)


def forbidden(text: str) -> list[str]:
    """What a file has of what it may not."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            found += [
                f"{node.module}.{alias.name}" for alias in node.names if alias.name not in ("PicklingError", "UnpicklingError")
            ]  # an error's name is no pickle
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name == "load" and node.module in ("torch", "gradio", "numpy")]
        elif isinstance(node, ast.Call):
            safe = any(each.arg == "allow_pickle" and isinstance(each.value, ast.Constant) and each.value.value is False for each in node.keywords)
            found += [name for name in [ast.unparse(node.func)] if name in CALLS and not (safe and name.endswith("p.load"))]
            found += [each.arg for each in node.keywords if each.arg in KEYWORDS]
            found += ["token=None" for each in node.keywords if each.arg == "token" and isinstance(each.value, ast.Constant) and each.value.value is None]
        elif isinstance(node, ast.Constant) and node.value in KEYWORDS:
            found.append(str(node.value))
    return found


NAMED = {"core.modelfiles": {"custom_pipeline", "trust_remote_code"}}
"""Room -> words that it refuses in a config."""


@pytest.mark.parametrize("file", RUN, ids=room)
def test_nothing_forbidden_is_used(file: Path) -> None:
    assert not set(forbidden(file.read_text(encoding="utf-8"))) - NAMED.get(room(file), set())


def test_what_makes_the_weights_loads_no_objects() -> None:
    for file in set(FILES) - set(RUN):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), room(file)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "torch.load(file)",
        "torch.load(file, weights_only=True)",
        "gr.load('models/a')",
        "np.load(file)",
        "f(custom_pipeline='x')",
        "f(trust_remote_code=False)",
        "f(**{'custom_pipeline': x})",
        "f(token=None)",
    ],
)
def test_the_look_finds_it(code: str) -> None:
    assert forbidden(code)


def test_what_is_allowed_is_let_be() -> None:
    assert not forbidden("from pickle import UnpicklingError\nnp.load(file, allow_pickle=False)\nf(token=False)\nload_file(x)\nmodels.load(name)")
