"""What is fetched from the Hub by `owner/name`: anonymously, at one commit, room on the disk first, whole, or refused in one sentence.

An exact name is `owner/name@commit` or `owner/name@commit:file`; it is what infotext and cards say.
"""

import errno
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    SafetensorsParsingError,
)

from core import limits
from core.arriving import watched
from core.beforehand import Elsewhere, is_job
from core.digest import content
from core.patience import patiently
from core.recent import Recent
from core.types import UserError

ID = re.compile(r"([\w.\-]{1,96}/[\w.\-]{1,96})(?:@([0-9a-f]{40}))?(?::([\w.\-/ ()+]{1,200}\.(?:safetensors|onnx)))?")
FRESH = 600
"""Seconds for which a name keeps the commit that it was resolved to."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A repository at one commit."""

    repo: str
    commit: str
    sizes: Mapping[str, int]
    """File -> bytes."""
    licence: str | None
    """As its card says."""

    def exact(self, file: str | None = None) -> str:
        """The name by which the same is found again."""
        return f"{self.repo}@{self.commit}" + (f":{file}" if file else "")


def parts(text: str) -> tuple[str, str | None, str | None]:
    """Repository, commit and file of a Hub id."""
    found = ID.fullmatch(text)
    assert found, text
    return found[1], found[2], found[3]


def is_id(text: Any) -> bool:
    """Whether the text has the form of a Hub id."""
    return isinstance(text, str) and bool(ID.fullmatch(text)) and ".." not in text


def listing(text: str, field: str) -> Listing:
    """The repository of a Hub id at its commit, or at the one that it has now. Raises `UserError` beginning with `field`."""
    repo, commit, _ = parts(text)
    hub = constants.ENDPOINT  # which can be another one for the next caller
    known = _listings.get((hub, repo, commit))
    if known is None or (commit is None and time.monotonic() - known[0] > FRESH):
        with faults(repo, field):
            found = patiently(lambda: HfApi(token=False).model_info(repo, revision=commit, files_metadata=True, token=False))
        if (count := len(found.siblings or [])) > limits.REPO_FILES:
            raise UserError(f"{field}: {repo} has {count:,} files; it takes a repository of up to {limits.REPO_FILES:,}.")
        sizes = {each.rfilename: each.size or 0 for each in found.siblings or []}
        licence = (found.card_data or {}).get("license") if found.card_data else None
        made = Listing(repo=repo, commit=str(found.sha), sizes=sizes, licence=licence if isinstance(licence, str) else None)
        known = _listings[hub, repo, commit] = _listings[hub, repo, made.commit] = (time.monotonic(), made)
    return known[1]


_listings: Recent[tuple[str, str, str | None], tuple[float, Listing]] = Recent(64)


def tensors(found: Listing, file: str, field: str) -> Mapping[str, Any]:
    """The tensors of a safetensors file by its first bytes, which are all that is fetched; each has a `shape`."""
    try:
        with faults(found.repo, field):
            return patiently(lambda: HfApi(token=False).parse_safetensors_file_metadata(found.repo, file, revision=found.commit, token=False)).tensors
    except SafetensorsParsingError as error:
        raise UserError(f"{field}: {found.repo}'s {file} is not a whole safetensors file.") from error


def here(repo: str, commit: str, file: str) -> Path | None:
    """A file of that commit if it was fetched before; nobody is asked."""
    there = try_to_load_from_cache(repo, file, revision=commit, cache_dir=constants.HF_HUB_CACHE)
    return Path(there) if isinstance(there, str) else None


def file(found: Listing, name: str, field: str) -> Path:
    """A file of the repository on this machine."""
    there = here(found.repo, found.commit, name)
    if there is None:
        with faults(found.repo, field), watched(found.repo, found.exact(name), found.sizes[name], f"{field}: {name}"):
            there = Path(hf_hub_download(found.repo, name, revision=found.commit, token=False))
        _whole([there], f"{field}: {name}")
    remember(there, found.exact(name))
    return there


def folder(repo: str, commit: str, patterns: Sequence[str], field: str) -> Path:
    """The repository's files of those patterns on this machine, as a diffusers or transformers folder."""
    asked: dict[str, Any] = {"repo_id": repo, "revision": commit, "allow_patterns": list(patterns), "token": False}
    with faults(repo, field):
        missing = [each for each in snapshot_download(**asked, dry_run=True) if each.will_download]
        with watched(repo, f"{repo}@{commit} {patterns}", sum(each.file_size or 0 for each in missing), field):
            there = Path(snapshot_download(**asked))
    _whole([there / each.filename for each in missing], field)
    return there


def folder_here(repo: str, commit: str, patterns: Sequence[str]) -> Path | None:
    """The same if it was fetched before; nobody is asked. Files may be missing where it was cut off."""
    try:
        return Path(snapshot_download(repo, revision=commit, allow_patterns=list(patterns), token=False, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def remember(there: Path, exact: str) -> None:
    """Keep where a file is from."""
    _origins[_same(there)] = exact


def origin(there: Path) -> str | None:
    """The exact name of a file that was fetched here since the start, under whatever path; not of another file that is equal.

    Anybody can put a copy of somebody's file onto the Hub and have it looked at: that must not say where others have theirs from.
    """
    return _origins.get(_same(there))


def _same(there: Path) -> tuple[int, int, int, int]:
    """What all names of one file have in common; a later file in its place on the disk has another time."""
    told = there.stat()
    return told.st_dev, told.st_ino, told.st_mtime_ns, told.st_size


_origins: Recent[tuple[int, int, int, int], str] = Recent(1000)


@contextmanager
def faults(repo: str, field: str):
    """What the Hub does not give, as one sentence. Raises `Elsewhere` where it is not to be asked yet."""
    if not is_job():
        raise Elsewhere(repo)
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{field}: {repo} is no name that the Hub has.") from error
    except (OSError, HTTPError, RuntimeError) as error:  # offline, no such commit, cut off on the way; hf_xet says RuntimeError
        why = error.__cause__ if isinstance(error, DryRunError) else error
        if isinstance(why, GatedRepoError | RepositoryNotFoundError):
            raise UserError(f"{field}: {repo} is gated, private or gone on the Hub.") from error
        if isinstance(why, OSError) and why.errno == errno.ENOSPC:
            raise UserError(f"{field}: {repo} has no room on the disk.") from error
        raise UserError(f"{field}: {repo} is not to be had: the Hub cannot be reached.") from error


def _whole(files: Sequence[Path], what: str) -> None:
    """Raise `UserError`, and keep nothing, if a large file is not the one that the Hub named: the client looks at its size alone."""
    for there in files:
        kept = there.resolve()  # named by its sha256
        if re.fullmatch(r"[0-9a-f]{64}", kept.name) and content(kept) != kept.name:
            kept.unlink()
            there.unlink()
            raise UserError(f"{what} came in other than the Hub says it is; try again.")
