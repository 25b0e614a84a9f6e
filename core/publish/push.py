"""A publication to the Hub in one commit, by the person's own token; what it would change is known before anything is sent."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError

from core.patience import patiently
from core.publish.card import MARK
from core.types import UserError

REASONS = {
    401: "the Hub does not know the login any more; log in again.",
    403: "the login may not write there.",
    404: "the repository, or the commit it stood at, is gone.",
    409: "somebody else changed the repository meanwhile; look at what changes again.",
    412: "somebody else changed the repository meanwhile; look at what changes again.",
    413: "the Hub takes no files so large.",
    429: "the Hub asks to wait; try again in a few minutes.",
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """What publishing does to one file of the repository."""

    path: str
    size: int
    """Bytes."""
    what: str
    """`new`, `changed` or `same`."""


@dataclass(frozen=True, kw_only=True)
class There:
    """A repository as it stands."""

    commit: str | None
    """`None` before there is one."""
    ours: bool
    """Whether it was made here, or is empty."""
    changes: tuple[Change, ...]


def compared(repo: str, files: Mapping[str, Path], token: str | bool) -> There:
    """What publishing these files would change. Raises `UserError` where the Hub cannot say."""
    api = HfApi(token=token)
    try:
        info = patiently(lambda: api.model_info(repo, files_metadata=True))
        there = {each.rfilename: each.lfs.sha256 if each.lfs else each.blob_id for each in info.siblings or []}
        marked = "README.md" in there and MARK in (_card(repo, token).data.tags or [])
    except GatedRepoError as error:  # which is a kind of the next
        raise UserError(f"repo: {repo} cannot be looked at: {_why(error)}") from error
    except RepositoryNotFoundError:
        return There(commit=None, ours=True, changes=tuple(Change(path=path, size=file.stat().st_size, what="new") for path, file in files.items()))
    except (HTTPError, OSError) as error:
        raise UserError(f"repo: {repo} cannot be looked at: {_why(error)}") from error
    changes = []
    for path, file in files.items():
        own = there.get(path)
        what = "new" if own is None else "same" if own in (_sha256(file), _blob(file)) else "changed"
        changes.append(Change(path=path, size=file.stat().st_size, what=what))
    empty = set(there) <= {".gitattributes"}
    return There(commit=info.sha, ours=empty or marked, changes=tuple(changes))


def pushed(repo: str, files: Mapping[str, Path], token: str, message: str, *, private: bool, over: bool = False, stop: Event | None = None) -> str:
    """Send them in one commit, all or nothing, and return its address; pressing again after a failure finishes it.

    `over` allows to write into a repository that was not made here. Once `stop` is set nothing more begins; of what was uploaded
    nothing is in the repository before its commit. Raises `UserError` in one sentence; nothing is changed then but that the
    repository may have been made.
    """

    def go_on() -> None:
        if stop is not None and stop.is_set():
            raise UserError(f"repo: {repo} was not written: it was stopped before its commit.")

    api = HfApi(token=token)
    try:
        who = patiently(api.whoami)
        spaces = [who["name"], *(each["name"] for each in who.get("orgs", []))]
        if repo.partition("/")[0] not in spaces:
            raise UserError(f"repo: {repo} is in somebody else's namespace; the login writes to {', '.join(spaces)}.")
        there = compared(repo, files, token)
        if not there.ours and not over:
            raise UserError(f"repo: {repo} was not made here; tick that it may be written over, or choose another name.")
        if all(change.what == "same" for change in there.changes):
            return f"{api.endpoint}/{repo}/commit/{there.commit}"
        go_on()
        if there.commit is None:
            api.create_repo(repo, private=private, exist_ok=True)  # made meanwhile, or by a press before that failed
        operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()]
        api.preupload_lfs_files(repo, operations)
        go_on()
        return api.create_commit(repo, operations, commit_message=message, parent_commit=there.commit).commit_url
    except (HTTPError, OSError, RuntimeError) as error:
        raise UserError(f"repo: {repo} was not written: {_why(error)}") from error


def _why(error: BaseException) -> str:
    """A reason without an address, a header or a token in it."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # how an upload that failed is told
        return _why(error.__cause__)
    if isinstance(error, GatedRepoError):
        return "it is gated."
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        return REASONS.get(status, f"the Hub answered {status}; press again, what was sent already is not sent twice.")
    return "the Hub cannot be reached; press again, what was sent already is not sent twice."


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _blob(file: Path) -> str:
    """git's own name of the content."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _card(repo: str, token: str | bool) -> ModelCard:
    return ModelCard.load(repo, token=token, ignore_metadata_errors=True)  # type: ignore[arg-type]  (False is nobody, as everywhere in the client)
