"""Check at the start that Python and the packages are those that were tested, and say so if not.

Imported before anything else: it has to run on any Python, and before any package is installed.
"""

import logging
import sys
from importlib import metadata
from pathlib import Path

PYTHON_RANGE = ((3, 11), (3, 13))
"""The oldest and the newest Python on which the test suite passes."""
REQUIREMENTS = Path(__file__).resolve().parent.parent.parent / "requirements.txt"
INSTALL_HINT = "`pip install -r requirements.txt` installs what is needed."


def check_python(version=sys.version_info):
    """Return a sentence on what is wrong with this Python, or None."""
    if PYTHON_RANGE[0] <= tuple(version[:2]) <= PYTHON_RANGE[1]:
        return None
    oldest, newest = (".".join(map(str, each)) for each in PYTHON_RANGE)
    return f"Sweetspot runs on Python {oldest} to {newest}; this is {version[0]}.{version[1]}."


def check_packages(text):
    """Return which packages of a requirements file are missing, and which have another version.

    Both are lists of strings.
    """
    from packaging.requirements import Requirement

    missing, different = [], []
    for line in text.splitlines():
        if not (asked := line.partition("#")[0].strip()):
            continue
        wanted = Requirement(asked)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            here = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(wanted.name)
            continue
        if not wanted.specifier.contains(here, prereleases=True):
            different.append(f"{wanted.name} {here} (tested with {wanted.specifier})")
    return missing, different


def check_requirements():
    """Exit if Python does not fit or a package is missing; print other versions to stderr."""
    if wrong := check_python():
        sys.exit(wrong)
    # When imported, bitsandbytes advises installing a package that would fetch code from the Hub,
    # for 4-bit layers that nothing here makes.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        missing, different = check_packages(REQUIREMENTS.read_text(encoding="utf-8"))
    except ModuleNotFoundError as error:
        missing, different = [str(error.name)], []
    if missing:
        sys.exit(f"Sweetspot cannot start: {', '.join(missing)} is not installed. {INSTALL_HINT}")
    if different:
        print(f"Untested versions: {', '.join(different)}. {INSTALL_HINT}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(check_python())  # called by `make` before it installs anything
check_requirements()
