"""Reads the names of the Hub as people have them: `owner/name`, or an address they copied.

Of an address only the name is taken; it is never requested.
"""

import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

FORMS = (
    "owner/name, owner/name:file.safetensors, either with @ and a revision after owner/name, "
    "or their address on huggingface.co"
)
"""What a person may write, for an error."""
HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
OTHER_KINDS = ("datasets", "spaces", "docs", "blog", "papers", "collections", "organizations", "settings")
"""First parts of the Hub's addresses that lead to no model."""
MAIN = "main"
"""The branch that a repository's files are taken from."""
WEIGHTS = (".safetensors", ".onnx")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""Endings of files that can run code when they are opened."""
UNSAFE = re.compile(r"[\x00-\x1f\\:*?\"<>|]")
"""What no part of a name contains, since Windows does not allow it in a file's name."""

_REPO = r"(?P<repo>[\w.\-]{1,96}/[\w.\-]{1,96})"
_FILE = r"(?P<file>[^:]{1,200}\.(?:safetensors|onnx))"
_SLASHED = rf"{_REPO}(?:@(?P<revision>refs/[a-z]+/[\w.\-]+|[\w.\-+]{{1,100}}))?/{_FILE}"
_NAMED = rf"{_REPO}(?:@(?P<revision>[\w.\-+/]{{1,100}}))?(?::{_FILE})?"
_PATTERNS = [re.compile(pattern) for pattern in (_SLASHED, _NAMED)]
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A repository of the Hub, perhaps at a revision, perhaps one of its files."""

    repo: str
    revision: str | None = None
    """A commit, a branch, a tag or a reference such as `refs/pr/1`; `None` for the main branch."""
    file: str | None = None

    @property
    def commit(self) -> str | None:
        """The revision if it is a commit, which never changes."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    def format(self) -> str:
        """Return the name as `owner/name@revision:file`, without what it does not say."""
        revision, file = self.revision and f"@{self.revision}", self.file and f":{self.file}"
        return f"{self.repo}{revision or ''}{file or ''}"


def parse_hub_name(text: Any) -> HubName | None:
    """Return the repository, revision and file that a text names; `None` if it names none.

    Taken are `owner/name`, `owner/name@revision`, `owner/name:file` and `owner/name/file` with a file of
    weights, `hf://owner/name/file`, and the addresses of a model's pages on the Hub.
    """
    if not isinstance(text, str):
        return None
    text = text.strip()
    found = _parse_address(text) if _is_address(text) else _parse_plain(text)
    if found is None:
        return None
    parts = [part for part in (found.repo, found.revision, found.file) if part]
    if any(".." in part or "//" in part or UNSAFE.search(part) for part in parts):
        return None
    return replace(found, revision=None) if found.revision == MAIN else found


def is_hub_name(text: Any) -> bool:
    """Whether a text names something on the Hub."""
    return parse_hub_name(text) is not None


def read_hub_name(text: str) -> HubName:
    """Return what a text names that `is_hub_name`."""
    found = parse_hub_name(text)
    assert found, text
    return found


def explain_other_address(text: str) -> str | None:
    """Return why an address is not taken, one sentence; `None` if the text is none."""
    text = text.strip()
    if text.lower().startswith("urn:air:") or re.match(r"(https?://)?(www\.)?civitai\.\w+/", text, re.I):
        return "Civitai's addresses cannot be opened; download the file there and choose it as a file."
    file = text.partition("?")[0].rpartition("/")[2]
    if _is_address(text) and file.endswith(PICKLES):
        return f"{file[:80]} is a pickle, which can run code; use a .safetensors file."
    if text.startswith("hf://") or re.match(r"https?://", text, re.I) or _is_address(text):
        return f"{text[:80]!r} is not the address of a model on Hugging Face. Use {FORMS}."
    return None


def _is_address(text: str) -> bool:
    return text.startswith("hf://") or _strip_scheme(text).partition("/")[0].lower() in HOSTS


def _strip_scheme(text: str) -> str:
    return re.sub(r"^https?://", "", text, flags=re.IGNORECASE)


def _parse_plain(text: str) -> HubName | None:
    found = next(filter(None, (pattern.fullmatch(text) for pattern in _PATTERNS)), None)
    return HubName(**found.groupdict()) if found else None


def _parse_address(text: str) -> HubName | None:
    """Return what an address of the Hub names: `owner/name[/blob|resolve|raw|tree/REVISION[/FILE]]`."""
    if text.startswith("hf://"):
        plain = unquote(text.removeprefix("hf://").removeprefix("models/").rstrip("/"))
        return None if plain.partition("/")[0] in OTHER_KINDS else _parse_plain(plain)
    path = urlsplit(f"https://{_strip_scheme(text)}").path
    # A slash of a revision may be written as %2F, so that it is one part.
    owner, name, *rest = (*(unquote(part) for part in path.strip("/").split("/")), "", "")
    rest = [part for part in rest if part]
    if owner in OTHER_KINDS or not re.fullmatch(_REPO, f"{owner}/{name}"):
        return None
    if not rest or rest[0] not in ("blob", "resolve", "raw", "tree"):
        return HubName(repo=f"{owner}/{name}")
    where, rest = rest[0], rest[1:]
    many = 3 if rest[:1] == ["refs"] else 1
    revision, file = "/".join(rest[:many]) or None, "/".join(rest[many:])
    if where != "tree" and file.endswith(PICKLES):
        return None
    # The page of another file, such as README.md, is a page of the repository.
    return HubName(
        repo=f"{owner}/{name}",
        revision=revision,
        file=file if where != "tree" and file.endswith(WEIGHTS) else None,
    )
