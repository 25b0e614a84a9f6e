"""The licences that the Hub has a name for, and what is said of any other.

The names are those of https://huggingface.co/docs/hub/repositories-licenses.
"""

import re
from typing import NamedTuple

LICENCES = (
    *("apache-2.0", "mit", "openrail++", "creativeml-openrail-m", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0"),
    *("openrail", "bigscience-openrail-m", "bigscience-bloom-rail-1.0", "bigcode-openrail-m"),
    *("afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear"),
    *("c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
    *("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0"),
    *("epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0"),
    *("lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "osl-3.0"),
    *("postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license"),
    *("llama2", "gemma"),
)
"""Names of licences on the Hub, those that people choose for LoRAs first; without `unknown` and `other`."""
LINKS = {"faipl-1.0-sd": "https://freedevproject.org/faipl-1.0-sd/"}
"""Name -> where a licence stands that the Hub has no name for."""


class Licence(NamedTuple):
    """A licence as a card names it."""

    id: str
    """One of the Hub's names, or `other`."""
    name: str | None = None
    """Of another: lower case letters, digits, `.` and `-`."""
    link: str | None = None
    """Where another stands."""


def find_licence(text: str, link: str | None = None) -> Licence:
    """Return the licence that a person or a base model names, however it is written.

    `link` is where another than the Hub's stands, if it is not known from its name.
    """
    name = re.sub(r"[^a-z0-9.+]+", "-", text.lower()).strip("-")
    if name in LICENCES:
        return Licence(name)
    name = name.replace("+", "")
    return Licence("other", name, LINKS.get(name, link))


def is_named(text: str) -> bool:
    """Whether a text names a licence, and does not only say where to look for it."""
    return bool(text) and text not in ("unknown", "other") and not text.startswith("see ")
