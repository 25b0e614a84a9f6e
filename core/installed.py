"""Imported before anything else: where Python or a package is not what was tried, the start says so in a sentence.

It has to run on any Python, and before any package is there.
"""

import logging
import sys
from importlib import metadata
from pathlib import Path

PYTHONS = ((3, 11), (3, 13))
"""The oldest and the newest on which the suite passes."""
REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
REPAIR = "`pip install -r requirements.txt` installs what is needed."


def check_python(found=sys.version_info):
    """What is wrong with this Python in a sentence, or None."""
    if PYTHONS[0] <= tuple(found[:2]) <= PYTHONS[1]:
        return None
    oldest, newest = (".".join(map(str, each)) for each in PYTHONS)
    return f"Sweetspot runs on Python {oldest} to {newest}; this is {found[0]}.{found[1]}."


def check_packages(text):
    """What of a requirements file is missing here, and what is here in another version: two lists of words."""
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
            different.append(f"{wanted.name} {here} (tried with {wanted.specifier})")
    return missing, different


def check():
    """End the start where something is missing; say on stderr where something is another version."""
    if wrong := check_python():
        sys.exit(wrong)
    # At its import bitsandbytes advises a package that would fetch code from the Hub, for 4-bit layers that nobody makes here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        missing, different = check_packages(REQUIREMENTS.read_text(encoding="utf-8"))
    except ModuleNotFoundError as error:
        missing, different = [str(error.name)], []
    if missing:
        sys.exit(f"Sweetspot cannot start: {', '.join(missing)} is not installed. {REPAIR}")
    if different:
        print(f"Not the versions that were tried: {', '.join(different)}. {REPAIR}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(check_python())  # of `make`, before it installs anything
check()
