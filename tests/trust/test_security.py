"""SECURITY.md is true.

The requirements and the installed packages keep each minimum version, and the code uses nothing
that is forbidden.
"""

import ast
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from tests.lock import ROOT, read_pins
from tests.test_layers import SOURCE_FILES, to_module_name

MIN_VERSIONS = re.findall(
    r"^\| (\w+) \| ([\d.]+) \| (CVE-[\d-]+)", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE
)
PICKLE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
REMOTE_CODE_KEYWORDS = {"custom_pipeline", "trust_remote_code"}
UNSAFE_CALLS = {"gr.load", "gradio.load", "torch.load", "np.load", "numpy.load"}
RUNTIME_FILES = [file for file in SOURCE_FILES if not to_module_name(file).startswith("core.nano")]
"""Without core.nano, which makes nano's weights and reads only states of its own."""


def test_every_attack_that_concerns_us_has_a_floor() -> None:
    assert {cve for _, _, cve in MIN_VERSIONS} == {
        *(
            "CVE-2026-27167",
            "CVE-2026-28414",
            "CVE-2026-28415",
            "CVE-2026-28416",
            "CVE-2026-48545",
            "CVE-2026-59806",
        ),
        *("CVE-2026-44513", "CVE-2025-32434"),
    }


@pytest.mark.parametrize(("package", "floor", "cve"), MIN_VERSIONS, ids=[cve for _, _, cve in MIN_VERSIONS])
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


def find_forbidden(text: str) -> list[str]:
    """Return the forbidden names that a source text uses."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in PICKLE_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLE_MODULES:
            # the name of an exception reads no pickle
            found += [
                f"{node.module}.{alias.name}"
                for alias in node.names
                if alias.name not in ("PicklingError", "UnpicklingError")
            ]
        elif isinstance(node, ast.ImportFrom):
            found += [
                f"{node.module}.{alias.name}"
                for alias in node.names
                if alias.name == "load" and node.module in ("torch", "gradio", "numpy")
            ]
        elif isinstance(node, ast.Call):
            safe = any(
                each.arg == "allow_pickle"
                and isinstance(each.value, ast.Constant)
                and each.value.value is False
                for each in node.keywords
            )
            found += [
                name
                for name in [ast.unparse(node.func)]
                if name in UNSAFE_CALLS and not (safe and name.endswith("p.load"))
            ]
            found += [each.arg for each in node.keywords if each.arg in REMOTE_CODE_KEYWORDS]
            found += [
                "token=None"
                for each in node.keywords
                if each.arg == "token" and isinstance(each.value, ast.Constant) and each.value.value is None
            ]
        elif isinstance(node, ast.Constant) and node.value in REMOTE_CODE_KEYWORDS:
            found.append(str(node.value))
    return found


ALLOWED_KEYWORDS = {"core.models.files": {"custom_pipeline", "trust_remote_code"}}
"""Module -> forbidden words that it may name, since it refuses them in a config."""


@pytest.mark.parametrize("file", RUNTIME_FILES, ids=to_module_name)
def test_nothing_forbidden_is_used(file: Path) -> None:
    assert not set(find_forbidden(file.read_text(encoding="utf-8"))) - ALLOWED_KEYWORDS.get(
        to_module_name(file), set()
    )


def test_what_makes_the_weights_loads_no_objects() -> None:
    for file in set(SOURCE_FILES) - set(RUNTIME_FILES):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), to_module_name(file)


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
    assert find_forbidden(code)


def test_what_is_allowed_is_let_be() -> None:
    assert not find_forbidden(
        "from pickle import UnpicklingError\nnp.load(file, allow_pickle=False)\n"
        "f(token=False)\nload_file(x)\nmodels.load(name)"
    )
