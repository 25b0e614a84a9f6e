"""What the tests' Hub holds: repositories with commits and large files, whose token is whose, what it was asked, and what is to go wrong."""

import threading
import uuid
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from typing import Any, Literal

LARGE = (".safetensors", ".png")
FIRST = {".gitattributes": "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE).encode()}
"""What the Hub itself commits to a new repository."""

Kind = Literal["401", "402", "403", "403 gated", "404", "409", "429", "500", "503", "cut", "wrong sha", "held"]
"""`cut`: the connection closes after half of the promised body, or of what is sent. `wrong sha`: one bit of a large file is flipped on its way.
`held`: the answer waits until the Hub is told to `go`."""


class Refused(Exception):
    """Status, message and headers of an error."""


@dataclass(frozen=True)
class Asked:
    """A request as it came: the path without its query, headers by lower-cased names, how many bytes of its body were read."""

    method: str
    path: str
    headers: dict[str, str]
    body: int


@dataclass(frozen=True)
class Commit:
    """All files after it."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A model repository with one branch, main."""

    private: bool
    owner: str
    commits: list[Commit] = field(default_factory=list)
    """Newest last."""
    lfs: dict[str, bytes] = field(default_factory=dict)
    """Large files that were uploaded, committed or not, by SHA-256."""

    def add(self, message: str, files: dict[str, bytes]) -> Commit:
        """A commit on top."""
        self.commits.append(Commit(sha1(uuid.uuid4().bytes).hexdigest(), message, files))
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        """The last commit or the one that the revision names."""
        found = [each for each in self.commits if revision in ("main", each.oid)]
        if not found:
            raise Refused(404, f"Invalid rev id: {revision}", {"X-Error-Code": "RevisionNotFound"})
        return found[-1]


@dataclass
class Hub:
    """What it holds, what it was asked, and how it is made to fail."""

    url: str
    tokens: dict[str, str]
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    faults: list[tuple[str, Kind]] = field(default_factory=list)
    tickets: dict[str, tuple[Repo, str, int]] = field(default_factory=dict)
    """Where the upload of which hash and size goes."""
    yard: object = None
    """What routes beside those of repositories keep."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    go: threading.Event = field(default_factory=threading.Event)

    def fail(self, method_and_path: str, kind: Kind, times: int = 1) -> None:
        """Makes the next `times` requests go wrong in whose "METHOD /path" the regular expression is found."""
        self.faults += [(method_and_path, kind)] * times

    def files(self, repo: str) -> dict[str, bytes]:
        """Those of the last commit."""
        return self.repos[repo].commits[-1].files

    def commits(self, repo: str) -> list[Commit]:
        """All of them, the Hub's own first one included; newest last."""
        return self.repos[repo].commits


def name(path: str, data: bytes) -> str:
    """What the client calls a file's content: SHA-256 for a large file, git's SHA-1 for another."""
    return sha256(data).hexdigest() if path.endswith(LARGE) else sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in a listing."""
    sha, size = name(path, data), len(data)
    lfs = {"lfs": {"oid": sha, "sha256": sha, "size": size, "pointerSize": 125 + len(str(size))}} if path.endswith(LARGE) else {}
    return {"type": "file", "path": path, "rfilename": path, "size": size, "oid": name("", data), "blobId": name("", data), **lfs}


def flipped(data: bytes) -> bytes:
    """As many bytes, the last one wrong."""
    return data[:-1] + bytes(byte ^ 1 for byte in data[-1:])
