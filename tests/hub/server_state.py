"""State of the tests' Hub.

It holds repositories with commits and large files, tokens and their accounts, the requests it got,
and the faults to come.
"""

import threading
import uuid
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from typing import Any, Literal

LFS_SUFFIXES = (".safetensors", ".png")
INITIAL_FILES = {
    ".gitattributes": "".join(
        f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
    ).encode()
}
"""What the Hub itself commits to a new repository."""

Fault = Literal[
    "401", "402", "403", "403 gated", "404", "409", "429", "500", "503", "cut", "wrong sha", "held"
]
"""`cut`: the connection closes after half of the promised body, or of what is sent.
`wrong sha`: one bit of a large file is flipped on its way.
`held`: the answer waits until the Hub's `release` is set."""


class HubError(Exception):
    """An error: status, message and headers."""


@dataclass(frozen=True)
class RecordedRequest:
    """A request as it came.

    `path` is without its query, `headers` have lower-cased names, `body` is the number of bytes
    read.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: int


@dataclass(frozen=True)
class Commit:
    """A commit with all files after it."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A model repository with one branch, main."""

    private: bool
    owner: str
    commits: list[Commit] = field(default_factory=list)
    """All commits, newest last."""
    lfs: dict[str, bytes] = field(default_factory=dict)
    """Large files that were uploaded, committed or not, by SHA-256."""

    def add_commit(self, message: str, files: dict[str, bytes]) -> Commit:
        """Add a commit on top and return it."""
        self.commits.append(Commit(sha1(uuid.uuid4().bytes).hexdigest(), message, files))
        return self.commits[-1]

    def find_commit(self, revision: str) -> Commit:
        """Return the last commit or the one that the revision names.

        Raises HubError if there is no such commit.
        """
        found = [each for each in self.commits if revision in ("main", each.oid)]
        if not found:
            raise HubError(404, f"Invalid rev id: {revision}", {"X-Error-Code": "RevisionNotFound"})
        return found[-1]


@dataclass
class Hub:
    """What the Hub holds, the requests it got, and the faults to come."""

    url: str
    tokens: dict[str, str]
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[RecordedRequest] = field(default_factory=list)
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    tickets: dict[str, tuple[Repo, str, int]] = field(default_factory=dict)
    """Repository, hash and size of the upload that each address takes."""
    service: object = None
    """What the routes beside those of repositories keep."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    release: threading.Event = field(default_factory=threading.Event)

    def fail(self, method_and_path: str, kind: Fault, times: int = 1) -> None:
        """Make the next `times` requests fail whose "METHOD /path" matches the pattern."""
        self.faults += [(method_and_path, kind)] * times

    def list_files(self, repo: str) -> dict[str, bytes]:
        """Return the files of the last commit."""
        return self.repos[repo].commits[-1].files

    def list_commits(self, repo: str) -> list[Commit]:
        """Return all commits, including the Hub's own first one, newest last."""
        return self.repos[repo].commits


def hash_content(path: str, data: bytes) -> str:
    """Return the hash by which the client knows a file's content.

    It is SHA-256 for a large file and git's SHA-1 for any other.
    """
    return (
        sha256(data).hexdigest()
        if path.endswith(LFS_SUFFIXES)
        else sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()
    )


def describe_file(path: str, data: bytes) -> dict[str, Any]:
    """Describe a file as in a listing."""
    sha, size = hash_content(path, data), len(data)
    lfs = (
        {"lfs": {"oid": sha, "sha256": sha, "size": size, "pointerSize": 125 + len(str(size))}}
        if path.endswith(LFS_SUFFIXES)
        else {}
    )
    return {
        "type": "file",
        "path": path,
        "rfilename": path,
        "size": size,
        "oid": hash_content("", data),
        "blobId": hash_content("", data),
        **lfs,
    }


def flip_last_byte(data: bytes) -> bytes:
    """Return as many bytes, the last one wrong."""
    return data[:-1] + bytes(byte ^ 1 for byte in data[-1:])
