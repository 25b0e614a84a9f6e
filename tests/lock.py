"""Resolve pyproject.toml again, for every system and Python, and write the pins: `make update`.

One resolution covers the studio, the developers' tools, the extras and what a Space installs by
itself. It is kept in three places, each of which another installer reads: `requirements.txt` (pip,
a Space), `requirements-dev.txt` (`make test`) and `constraint-dependencies` in pyproject.toml
(`uv run`). `tests/test_lock.py` checks them against each other.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Written by `make update` from pyproject.toml: do not edit. {}\n"
REQUIREMENTS_FILES = {
    "requirements.txt": ("What the studio and a Space install.", ()),
    "requirements-dev.txt": ("What `make test` installs.", ("--group", "dev", "--all-extras")),
}
ALL_GROUPS = ("--group", "dev", "--group", "space", "--all-extras")
CONSTRAINTS_BLOCK = re.compile(r"(?<=^constraint-dependencies = \[\n)[^]]*(?=^\]$)", re.MULTILINE)


def read_pins(text: str) -> dict[str, Requirement]:
    """Return the requirements of a requirements file by name, without its comments."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    found = [Requirement(line) for line in lines if line]
    return {canonicalize_name(each.name): each for each in found}


def read_constraints(root: Path) -> dict[str, Requirement]:
    """Return the constraints of `uv run` by name."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return read_pins("\n".join(settings["tool"]["uv"]["constraint-dependencies"]))


def resolve(root: Path, *arguments: str) -> str:
    """Return the newest versions that fit together, one a package.

    They hold for all systems and Pythons of pyproject.toml. Raises SystemExit with what does not
    fit if there is no such set.
    """
    oldest = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "requires-python"
    ]
    python = oldest.removeprefix(">=").partition(",")[0]
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        "--universal",
        "--no-header",
        "--no-annotate",
        "--quiet",
    ]
    command += ["--python-version", python, "--fork-strategy", "fewest", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())
    return done.stdout


def update_pins(root: Path) -> list[str]:
    """Resolve everything again and write it in its three places.

    Returns a line for each package that changed.
    """
    settings = (root / "pyproject.toml").read_text(encoding="utf-8")
    before = read_constraints(root)
    with tempfile.TemporaryDirectory() as work:  # nothing changes if there is no such set
        place = Path(work)
        (place / "pyproject.toml").write_text(CONSTRAINTS_BLOCK.sub("", settings), encoding="utf-8")
        pins = resolve(place, *ALL_GROUPS)
        (place / "pins.txt").write_text(pins, encoding="utf-8")
        found = {
            name: resolve(place, "--constraints", "pins.txt", *arguments)
            for name, (_, arguments) in REQUIREMENTS_FILES.items()
        }
    listed = "".join(f'    "{line}",\n' for line in pins.splitlines())
    (root / "pyproject.toml").write_text(CONSTRAINTS_BLOCK.sub(listed, settings), encoding="utf-8")
    for name, (purpose, _) in REQUIREMENTS_FILES.items():
        (root / name).write_text(HEADER.format(purpose) + found[name], encoding="utf-8")
    after = read_constraints(root)
    return [
        f"{name}: {before[name].specifier if name in before else 'new'} -> "
        f"{after[name].specifier if name in after else 'gone'}"
        for name in sorted(before | after)
        if before.get(name) != after.get(name)
    ]


if __name__ == "__main__":
    print("\n".join(update_pins(ROOT)) or "Everything is at its newest version already.")
