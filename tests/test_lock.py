"""What is installed is what was tested: one version a package, the same for each installer."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from core.system import requirements_check
from tests.lock import REQUIREMENTS_FILES, ROOT, read_constraints, read_pins

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DEPENDENCIES = PROJECT["project"]["dependencies"]
EXTRA_GROUPS = PROJECT["project"]["optional-dependencies"].values()
DEV_DEPENDENCIES = [*DEPENDENCIES, *PROJECT["dependency-groups"]["dev"], *chain(*EXTRA_GROUPS)]
PINS = {name: read_pins((ROOT / name).read_text(encoding="utf-8")) for name in REQUIREMENTS_FILES}


def is_applicable(wanted: Requirement, extra: str = "") -> bool:
    return not wanted.marker or wanted.marker.evaluate({"extra": extra})


def find_needs(lines: Iterable[str]) -> set[str]:
    """Return the names of all packages that these requirements bring on this machine.

    The installed packages' own metadata say so.
    """
    found: set[tuple[str, str]] = set()
    left = [Requirement(line) for line in lines]
    while left:
        wanted = left.pop()
        for extra in ("", *wanted.extras):
            if (key := (canonicalize_name(wanted.name), extra)) not in found:
                found.add(key)
                asked = [Requirement(line) for line in requires(wanted.name) or []]
                left += [each for each in asked if is_applicable(each, extra)]
    return {name for name, _ in found}


@pytest.mark.parametrize("name", REQUIREMENTS_FILES)
def test_each_package_has_one_exact_version(name: str) -> None:
    loose = [str(pin) for pin in PINS[name].values() if not re.fullmatch(r"==[\w.+]+", str(pin.specifier))]
    assert not loose, "a version that floats broke a fresh install within a week"


@pytest.mark.parametrize("name", REQUIREMENTS_FILES)
def test_pip_and_uv_install_the_same(name: str) -> None:
    constraints = read_constraints(ROOT)
    assert {key: str(pin) for key, pin in PINS[name].items() if pin != constraints.get(key)} == {}


@pytest.mark.parametrize(
    ("name", "lines"), [("requirements.txt", DEPENDENCIES), ("requirements-dev.txt", DEV_DEPENDENCIES)]
)
def test_the_lock_is_what_pyproject_asks_for(name: str, lines: list[str]) -> None:
    """Fails on a dependency that changed in pyproject.toml without `make update`."""
    pins = PINS[name]
    for line in lines:
        wanted = Requirement(line)
        assert wanted.specifier.contains(
            str(pins[canonicalize_name(wanted.name)].specifier).removeprefix("==")
        ), line
    asked = [Requirement(line) for line in lines]
    assert find_needs(str(each) for each in asked if is_applicable(each)) == {
        key for key, pin in pins.items() if is_applicable(pin)
    }


def test_what_a_space_brings_fits_the_lock() -> None:
    constraints = read_constraints(ROOT)
    for line in PROJECT["dependency-groups"]["space"]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(
            str(constraints[canonicalize_name(wanted.name)].specifier).removeprefix("==")
        ), line


def test_what_is_installed_is_the_lock() -> None:
    missing, different = requirements_check.check_packages(
        (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    )
    assert (missing, different) == ([], [])


def test_another_version_is_told_at_the_start(tmp_path: Path) -> None:
    assert requirements_check.check_packages(
        "numpy==1.0.0\nnot-there==1\nemoji==1 ; sys_platform == 'win32'\n"
    ) == (
        ["not-there"],
        [f"numpy {version('numpy')} (tested with ==1.0.0)"],
    )
    with pytest.raises(PackageNotFoundError):
        version("not-there")


@pytest.mark.parametrize(
    ("python", "allowed"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)]
)
def test_another_python_is_refused_before_anything_is_installed(
    python: tuple[int, int], allowed: bool
) -> None:
    sentence = requirements_check.check_python(python)
    assert sentence == (None if allowed else f"Sweetspot runs on Python 3.11 to 3.13; this is 3.{python[1]}.")
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"


def test_a_start_says_nothing_on_stderr_where_all_is_well() -> None:
    """bitsandbytes advises a package at its import, on processors with AVX512-BF16."""
    done = subprocess.run(
        [sys.executable, "-c", "import core.system.requirements_check, bitsandbytes"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
