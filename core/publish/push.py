"""Push a publication to the Hub in one commit, with the user's own token.

What it would change is known before anything is sent.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from threading import Event

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelInfo, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError

from core.hub.client import RETRY_STATUSES, HubUnreachable, call_with_retry
from core.publish.card import REPO_TAG
from core.publish.card_merge import merge_card
from core.publish.plan import Publication
from core.schema.errors import UserError

MAX_CARD_BYTES = 2**20
STATUS_REASONS = {
    401: "Hugging Face no longer accepts the login; log in again.",
    403: "the login has no write access there.",
    404: "the repository, or its last commit, is gone.",
    409: "somebody else changed the repository in the meantime; preview again.",
    412: "somebody else changed the repository in the meantime; preview again.",
    413: "Hugging Face does not accept files this large.",
    429: "Hugging Face is limiting requests; try again in a few minutes.",
}


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """What publishing does to one file of the repository."""

    path: str
    size: int
    """Size of the new file in bytes."""
    status: str
    """`new`, `changed` or `same`; `not compared` where the Hub does not answer."""


@dataclass(frozen=True, kw_only=True)
class RepoState:
    """A repository as it is now, and what publishing would change."""

    commit: str | None
    """`None` if there is no repository yet."""
    is_ours: bool
    """Whether Sweetspot made the repository, or it is empty."""
    files: Mapping[str, Path]
    """What would be sent: the card merged into the one that is there."""
    changes: tuple[FileChange, ...]
    card_change: str = ""
    """How the card would change, as a unified diff; empty where there is none yet."""
    unknown: str = ""
    """Why nothing could be compared, one sentence; empty otherwise."""


def preview_repo(publication: Publication, files: Mapping[str, Path], token: str | bool) -> RepoState:
    """Return what publishing these files would change, as far as the Hub answers.

    Raises `UserError` if the Hub refuses to tell, or if the card that is there cannot be read.
    """
    try:
        return compare_repo(publication, files, token)
    except HubUnreachable as error:
        return RepoState(
            commit=None,
            is_ours=True,
            files=files,
            changes=_list_changes(files, "not compared"),
            unknown=error.sentence,
        )


def compare_repo(publication: Publication, files: Mapping[str, Path], token: str | bool) -> RepoState:
    """Return what publishing these files would change.

    Raises `HubUnreachable` if the Hub does not answer, and `UserError` if it refuses to, or if the card
    that is there cannot be read.
    """
    repo = publication.repo
    api = HfApi(token=token)
    try:
        info = call_with_retry(lambda: api.model_info(repo, files_metadata=True))
        there = {
            each.rfilename: each.lfs.sha256 if each.lfs else each.blob_id for each in info.siblings or []
        }
        card = _read_card(repo, info, token) if "README.md" in there else ""
    except GatedRepoError as error:  # first, because it is a RepositoryNotFoundError
        raise UserError("repo", f"{repo} cannot be compared: {_explain_error(error)}") from error
    except RepositoryNotFoundError:
        return RepoState(
            commit=None,
            is_ours=True,
            files=files,
            changes=_list_changes(files, "new"),
        )
    except (HTTPError, OSError) as error:
        is_answer = isinstance(error, HfHubHTTPError) and error.response.status_code not in RETRY_STATUSES
        kind = UserError if is_answer else HubUnreachable
        raise kind("repo", f"{repo} cannot be compared: {_explain_error(error)}") from error
    files = _merge_files(publication, files, card)
    changes = []
    for path, file in files.items():
        own = there.get(path)
        what = (
            "new" if own is None else "same" if own in (_hash_file(file), _hash_git_blob(file)) else "changed"
        )
        changes.append(FileChange(path=path, size=file.stat().st_size, status=what))
    is_ours = set(there) <= {".gitattributes"} or REPO_TAG in (
        ModelCard(card, ignore_metadata_errors=True).data.tags or []
    )
    merged = files["README.md"].read_bytes().decode()
    change = unified_diff(card.splitlines(), merged.splitlines(), "README.md", "README.md", lineterm="", n=2)
    return RepoState(
        commit=info.sha,
        is_ours=is_ours,
        files=files,
        changes=tuple(changes),
        card_change="\n".join(change) if card else "",
    )


def _list_changes(files: Mapping[str, Path], status: str) -> tuple[FileChange, ...]:
    return tuple(
        FileChange(path=path, size=file.stat().st_size, status=status) for path, file in files.items()
    )


def _merge_files(publication: Publication, files: Mapping[str, Path], card: str) -> Mapping[str, Path]:
    """Return the files with the card merged into `card`, the one that is there; empty where there is none."""
    if not card:
        return files
    own = files["README.md"].read_bytes().decode()
    merged = files["README.md"].with_name("README.merged.md")
    merged.write_bytes(merge_card(own, card, publication.name, publication.examples).encode())
    return {**files, "README.md": merged}


def push_files(
    publication: Publication,
    files: Mapping[str, Path],
    token: str,
    *,
    overwrite: bool = False,
    stop: Event | None = None,
) -> str:
    """Push the files in one commit, all or nothing, and return its address.

    Pressing again after a failure completes the push.

    `overwrite` allows writing into a repository that Sweetspot did not make. Once `stop` is set,
    nothing new begins; uploaded files are not in the repository before the commit.

    Raises `UserError` with one sentence; the repository is unchanged then, but it may have been
    created.
    """

    def check_stop() -> None:
        if stop is not None and stop.is_set():
            raise UserError("repo", f"{repo} was not changed: the upload was stopped before its commit.")

    api, repo = HfApi(token=token), publication.repo
    try:
        who = call_with_retry(api.whoami)
        spaces = [who["name"], *(each["name"] for each in who.get("orgs", []))]
        if repo.partition("/")[0] not in spaces:
            raise UserError(
                "repo", f"{repo} is in somebody else's namespace; the login can write to {', '.join(spaces)}."
            )
        there = compare_repo(publication, files, token)
        if not there.is_ours and not overwrite:
            raise UserError(
                "repo", f"{repo} was not created by Sweetspot; allow overwriting it, or choose another name."
            )
        if all(change.status == "same" for change in there.changes):
            return f"{api.endpoint}/{repo}/commit/{there.commit}"
        check_stop()
        if there.commit is None:
            # It may exist by now: made meanwhile, or by an earlier attempt that failed.
            api.create_repo(repo, private=publication.private, exist_ok=True)
        operations = [
            CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in there.files.items()
        ]
        api.preupload_lfs_files(repo, operations)
        check_stop()
        return api.create_commit(
            repo,
            operations,
            commit_message=f"Publish {publication.name}",
            parent_commit=there.commit,
        ).commit_url
    except (HTTPError, OSError, RuntimeError) as error:
        raise UserError("repo", f"{repo} was not changed: {_explain_error(error)}") from error


def _explain_error(error: BaseException) -> str:
    """Return a reason that contains no address, header or token."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # wraps a failed upload
        return _explain_error(error.__cause__)
    if isinstance(error, GatedRepoError):
        return "it is gated."
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        return STATUS_REASONS.get(
            status, f"Hugging Face answered {status}; try again, files already uploaded are not sent twice."
        )
    return "Hugging Face is unreachable; try again, files already uploaded are not sent twice."


def _hash_file(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _hash_git_blob(file: Path) -> str:
    """Return git's own name of the content (its blob id)."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _read_card(repo: str, info: ModelInfo, token: str | bool) -> str:
    """Return the text of a repository's README.md, its line ends as they are."""
    size = next(each.size or 0 for each in info.siblings or [] if each.rfilename == "README.md")
    if size > MAX_CARD_BYTES:
        raise UserError("repo", f"{repo}'s README.md has {size:,} bytes; the limit is {MAX_CARD_BYTES:,}.")
    # `False` is an anonymous visitor, as everywhere in huggingface_hub.
    there = Path(hf_hub_download(repo, "README.md", revision=info.sha, token=token))
    try:
        return there.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError("repo", f"{repo}'s README.md is not UTF-8; mend it on Hugging Face first.") from error
