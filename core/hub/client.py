"""Fetches from the Hub by `owner/name`, anonymously and at one commit.

Disk space is reserved first; a file arrives complete or is refused in one sentence. An exact name
is `owner/name@commit` or `owner/name@commit:file`; infotext and cards give it. What is whole in the
cache needs no Hub.
"""

import errno
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    DisabledRepoError,
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from core.hub.downloads import track_download
from core.hub.names import MAIN, HubName
from core.hub.preflight import NeedsJob, is_job
from core.schema import limits
from core.schema.errors import UserError
from core.system.atomic_files import replace_file
from core.system.concurrency import BoundedDict
from core.system.tensor_files import calculate_sha256

log = logging.getLogger(__name__)
T = TypeVar("T")
RETRY_STATUSES = (429, 500, 502, 503, 504)
RETRY_DELAYS = (0.5, 2.0)  # seconds before the second and the third attempt
MAX_RETRY_DELAY = 10  # seconds; an error message is better than a longer wait
COMMIT_CACHE_SECONDS = 600
"""Seconds for which a name keeps the commit that it was resolved to."""


class HubUnreachable(UserError):
    """The Hub does not answer; what was fetched before may do."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A repository at one commit."""

    repo: str
    commit: str
    revision: str
    """What was asked for: the commit, or the branch or tag that led to it."""
    sizes: Mapping[str, int]
    """File -> bytes."""
    licence: str | None
    """The licence that the repository's card names: of another than the Hub's, its own name."""
    licence_link: str | None
    """Where it stands, if the card says so."""
    gallery: tuple[str, ...]
    """Files of the repository that its card shows as examples, in the card's order."""

    def format_exact_name(self, file: str | None = None) -> str:
        """Return the exact name of the repository, or of one of its files, at this commit."""
        return HubName(repo=self.repo, revision=self.commit, file=file).format()


def fetch_listing(name: HubName, field: str) -> Listing:
    """Return a repository at its revision, or at the current commit if the name has none.

    Where the Hub cannot be reached, it is what of the repository was fetched before. Raises `UserError`
    with a message that begins with `field`.
    """
    repo, revision = name.repo, name.revision
    hub = constants.ENDPOINT  # may be another one for the next caller
    known = _listings.get((hub, repo, revision))
    if known is None or (not name.commit and time.monotonic() - known[0] > COMMIT_CACHE_SECONDS):
        try:
            with translate_fetch_errors(repo, field):
                found = call_with_retry(
                    lambda: HfApi(token=False).model_info(
                        repo, revision=revision, files_metadata=True, token=False
                    )
                )
        except HubUnreachable:
            if (there := _list_cached_files(name)) is None:
                raise
            return there
        if (count := len(found.siblings or [])) > limits.REPO_FILES:
            raise UserError(field, f"{repo} has {count:,} files; the limit is {limits.REPO_FILES:,}.")
        sizes = {each.rfilename: each.size or 0 for each in found.siblings or []}
        card = found.card_data.to_dict() if found.card_data else {}
        licence, link = _read_licence(card, repo)
        made = Listing(
            repo=repo,
            commit=str(found.sha),
            revision=revision or MAIN,
            sizes=sizes,
            licence=licence,
            licence_link=link,
            gallery=tuple(name for name in _list_card_images(card, repo) if name in sizes),
        )
        known = _listings[hub, repo, revision] = (time.monotonic(), made)
        _listings[hub, repo, made.commit] = known
    return known[1]


def _list_cached_files(name: HubName) -> Listing | None:
    """Return the files of a repository that were fetched before; `None` if there are none."""
    folder = _find_cache_folder(name.repo)
    revision = name.revision or MAIN
    try:
        commit = name.commit or (folder / "refs" / revision).read_text().strip()
        files = [file for file in (folder / "snapshots" / commit).rglob("*") if file.is_file()]
    except OSError:
        return None
    root = folder / "snapshots" / commit
    sizes = {file.relative_to(root).as_posix(): file.stat().st_size for file in files}
    told = Listing(
        repo=name.repo,
        commit=commit,
        revision=commit,
        sizes=sizes,
        licence=None,
        licence_link=None,
        gallery=(),
    )
    return told if sizes else None


def _find_cache_folder(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def keep_revision(listing: Listing) -> None:
    """Write down in the cache which commit a branch or tag led to, as the client does, for offline use."""
    if listing.revision == listing.commit:
        return
    file = _find_cache_folder(listing.repo) / "refs" / listing.revision
    try:
        if not file.exists() or file.read_text() != listing.commit:
            with replace_file(file) as unfinished:
                unfinished.write_text(listing.commit)
    except OSError as error:  # what was asked for is here
        log.warning("the revision of a repository was not kept: %s", error.strerror)


def _read_licence(card: Mapping[str, Any], repo: str) -> tuple[str | None, str | None]:
    """Return the name of a card's licence, the first of several, and the address where it stands."""
    named, own, link = (card.get(key) for key in ("license", "license_name", "license_link"))
    named = named[0] if isinstance(named, list) and named else named
    named = own if named == "other" and isinstance(own, str) else named
    if isinstance(link, str) and "://" not in link:
        link = f"https://huggingface.co/{repo}/blob/main/{link.removeprefix('./')}"
    return named if isinstance(named, str) else None, link if isinstance(link, str) else None


def _list_card_images(card: Mapping[str, Any], repo: str) -> list[str]:
    """Return what the examples of a card name, without what lies outside the repository's own folder.

    A name is `images/one.png`, or a link to that file at huggingface.co.
    """
    widget = card.get("widget")
    found: dict[str, None] = {}
    for each in widget if isinstance(widget, list) else []:
        output = each.get("output") if isinstance(each, dict) else None
        url = output.get("url") if isinstance(output, dict) else None
        if isinstance(url, str):
            own = re.fullmatch(rf"https://huggingface\.co/{re.escape(repo)}/resolve/[^/]+/(.+)", url)
            found[own[1] if own else url.removeprefix("./")] = None
    return list(found)


_listings: BoundedDict[tuple[str, str, str | None], tuple[float, Listing]] = BoundedDict(64)


def fetch_tensor_shapes(listing: Listing, file: str, field: str) -> Mapping[str, Any]:
    """Return the tensors of a safetensors file, each with a `shape`; fetches only its header."""
    try:
        with translate_fetch_errors(listing.repo, field):
            return call_with_retry(
                lambda: HfApi(token=False).parse_safetensors_file_metadata(
                    listing.repo, file, revision=listing.commit, token=False
                )
            ).tensors
    except SafetensorsParsingError as error:
        raise UserError(field, f"{listing.repo}'s {file} is not a complete safetensors file.") from error


def find_cached_file(repo: str, commit: str, file: str) -> Path | None:
    """Return a file of that commit if it was fetched before; sends no request."""
    there = try_to_load_from_cache(repo, file, revision=commit, cache_dir=constants.HF_HUB_CACHE)
    return Path(there) if isinstance(there, str) else None


def fetch_file(listing: Listing, name: str, field: str) -> Path:
    """Return a file of the repository on this machine, fetched if needed."""
    there = find_cached_file(listing.repo, listing.commit, name)
    if there is None:
        with (
            translate_fetch_errors(listing.repo, field),
            track_download(listing.repo, listing.format_exact_name(name), listing.sizes[name], field, name),
        ):
            there = Path(hf_hub_download(listing.repo, name, revision=listing.commit, token=False))
        _verify_sha256([there], field, name)
    keep_revision(listing)
    record_origin(there, listing.format_exact_name(name))
    return there


def fetch_folder(repo: str, commit: str, patterns: Sequence[str], field: str) -> Path:
    """Fetch the repository's files that match the patterns; return their folder on this machine.

    The folder is laid out for diffusers or transformers.
    """
    asked: dict[str, Any] = {
        "repo_id": repo,
        "revision": commit,
        "allow_patterns": list(patterns),
        "token": False,
    }
    with translate_fetch_errors(repo, field):
        missing = [each for each in snapshot_download(**asked, dry_run=True) if each.will_download]
        with track_download(
            repo, f"{repo}@{commit} {patterns}", sum(each.file_size or 0 for each in missing), field, repo
        ):
            there = Path(snapshot_download(**asked))
    _verify_sha256([there / each.filename for each in missing], field, repo)
    return there


def find_cached_folder(repo: str, commit: str, patterns: Sequence[str]) -> Path | None:
    """Return the folder of a repository's files if they were fetched before; sends no request.

    Files may be missing if the download was cut off.
    """
    try:
        return Path(
            snapshot_download(
                repo, revision=commit, allow_patterns=list(patterns), token=False, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None


def record_origin(path: Path, exact_name: str) -> None:
    """Remember the exact name that a file was fetched by."""
    _origins[_make_file_key(path)] = exact_name


def find_origin(path: Path) -> str | None:
    """Return the exact name of a file that was fetched since the start, whatever path it has now.

    Another file with equal content has no origin: anybody can put a copy of somebody's file onto
    the Hub and have it fetched here, and that must not decide where others have theirs from.
    """
    return _origins.get(_make_file_key(path))


def _make_file_key(path: Path) -> tuple[int, int, int, int]:
    """Return what all names of one file share; a later file in its place has another time."""
    told = path.stat()
    return told.st_dev, told.st_ino, told.st_mtime_ns, told.st_size


_origins: BoundedDict[tuple[int, int, int, int], str] = BoundedDict(1000)


@contextmanager
def translate_fetch_errors(repo: str, field: str):
    """Turn the Hub's errors into a one-sentence `UserError` that begins with `field`.

    Raises `NeedsJob` during preflight, when nothing may be requested yet.
    """
    if not is_job():
        raise NeedsJob(repo)
    try:
        yield
    except HFValidationError as error:
        raise UserError(field, f"{repo} is not a valid repository name.") from error
    except (OSError, HTTPError, RuntimeError) as error:
        # Offline, no such commit, or cut off on the way; hf_xet raises RuntimeError.
        why = error.__cause__ if isinstance(error, DryRunError) else error
        if sentence := _explain_refusal(why):
            raise UserError(field, f"{repo} {sentence}") from error
        if isinstance(why, OSError) and why.errno == errno.ENOSPC:
            raise UserError(field, f"{repo} does not fit on the disk.") from error
        raise HubUnreachable(field, f"{repo} cannot be downloaded: Hugging Face is unreachable.") from error


def _explain_refusal(error: BaseException | None) -> str | None:
    """Return why the Hub does not give a repository, without its name; `None` if it did not say."""
    match error:
        case GatedRepoError():
            return "is gated: accept its terms on Hugging Face, download the file there and choose it here."
        case DisabledRepoError():
            return "is disabled on Hugging Face."
        case RevisionNotFoundError():
            return "has no such revision on Hugging Face."
        case RepositoryNotFoundError():  # the Hub does not tell strangers which
            return "is private or does not exist on Hugging Face."
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return "is private or does not exist on Hugging Face."
    return None


def _verify_sha256(files: Sequence[Path], field: str, name: str) -> None:
    """Raise `UserError`, and delete the file, if a large file does not match the Hub's sha256.

    The client itself checks the size alone.
    """
    for there in files:
        kept = there.resolve()  # named by its sha256
        if re.fullmatch(r"[0-9a-f]{64}", kept.name) and calculate_sha256(kept) != kept.name:
            kept.unlink()
            there.unlink()
            raise UserError(field, f"{name} is not what Hugging Face announced; try again.")


def call_with_retry(call: Callable[[], T]) -> T:
    """Return the result of `call`, tried up to three times if the Hub is busy or disconnects.

    The Hub's client itself retries only files. Raises what `call` raises the last time, or at once
    if a retry will not help or the Hub asks to wait for longer than 10 seconds.
    """
    for wait in RETRY_DELAYS:
        try:
            return call()
        except HTTPError as error:
            response = error.response if isinstance(error, HfHubHTTPError) else None
            told = response.headers.get("Retry-After", "") if response is not None else ""
            seconds = int(told) if told.isdecimal() else wait
            if (
                response is not None and response.status_code not in RETRY_STATUSES
            ) or seconds > MAX_RETRY_DELAY:
                raise
        time.sleep(seconds)
    return call()
