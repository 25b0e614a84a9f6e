"""A Hub on this machine with repositories, tokens, commits and large files.

The real client publishes to it and downloads again; it fails on demand.
"""

import base64
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

from tests.hub.server_state import (
    INITIAL_FILES,
    LFS_SUFFIXES,
    Fault,
    Hub,
    HubError,
    RecordedRequest,
    Repo,
    describe_file,
    flip_last_byte,
    hash_content,
)

Answer = tuple[int, bytes, dict[str, str]]
"""Status, body, headers."""
ERROR_HEADERS: dict[Fault, dict[str, str]] = {
    "403 gated": {"X-Error-Code": "GatedRepo"},
    "404": {"X-Error-Code": "RepoNotFound"},
    "429": {"Retry-After": "1"},
}
"""Headers of the answers to faults."""


def answer_json(value: object, status: int = 200) -> Answer:
    return status, json.dumps(value).encode(), {"Content-Type": "application/json"}


class Handler(BaseHTTPRequestHandler):
    """Record one request, make it fail if a fault matches it, and answer it."""

    hub: Hub
    routes: dict[str, Callable[["Handler"], Answer]]

    def answer(self) -> None:
        path, _, self.query = self.path.partition("?")
        asked, promised = f"{self.command} {path}", int(self.headers.get("Content-Length", 0))
        with self.hub.lock:
            waiting = [each for each in self.hub.faults if re.search(each[0], asked)]
            for each in waiting[:1]:
                self.hub.faults.remove(each)
        kind = waiting[0][1] if waiting else None
        self.is_corrupt, stops = kind == "wrong sha", kind == "cut" and self.command != "GET"
        self.body = self.rfile.read(promised // 2 if stops else promised)
        self.hub.requests.append(
            RecordedRequest(
                self.command,
                path,
                {key.lower(): value for key, value in self.headers.items()},
                len(self.body),
            )
        )
        if stops:
            return
        if kind == "held":
            self.hub.release.wait()
        try:
            if kind and kind[0].isdigit():
                raise HubError(int(kind[:3]), f"{kind}: a test wants it", ERROR_HEADERS.get(kind, {}))
            route, found = next(
                (route, found)
                for pattern, route in self.routes.items()
                if (found := re.fullmatch(pattern, asked))
            )
            parts = {key: unquote(value or "") for key, value in found.groupdict().items()}
            self.id, self.at, self.file = (
                parts.get("id", ""),
                parts.get("at") or "main",
                parts.get("file", ""),
            )
            self.account = self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
            with self.hub.lock:
                status, body, headers = route(self)
        except HubError as refused:
            status, message, more = refused.args
            _, body, headers = answer_json({"error": message})
            headers |= {"X-Error-Message": message, **more}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *_args: object) -> None:
        pass

    def parse_body(self) -> dict[str, Any]:
        return json.loads(self.body)

    def require_account(self) -> str:
        """Return the account of the request's token. Raises HubError without one."""
        if self.account is None:
            raise HubError(401, "Invalid credentials in Authorization header", {})
        return self.account

    def require_repo(self) -> Repo:
        """Return the repository if the account may know of it. Raises HubError if not."""
        repo = self.hub.repos.get(self.id)
        if repo is None or (repo.private and self.account != repo.owner):
            raise HubError(404, "Repository not found", {"X-Error-Code": "RepoNotFound"})
        return repo

    def require_own_repo(self) -> Repo:
        """Return the repository if the account may write to it. Raises HubError if not."""
        account, repo = self.require_account(), self.require_repo()
        if account != repo.owner:
            raise HubError(403, "You don't have write access to this repository", {})
        return repo

    def answer_not_found(self) -> Answer:
        raise HubError(404, "This Hub has no such address", {})

    def answer_whoami(self) -> Answer:
        return answer_json(
            {
                "type": "user",
                "name": self.require_account(),
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": {"role": "write"}},
            }
        )

    def validate_card(self) -> Answer:
        return answer_json({"errors": [], "warnings": []})

    def create_repo(self) -> Answer:
        account, wish = self.require_account(), self.parse_body()
        owner = wish["organization"] or account
        if owner != account:
            raise HubError(
                403, f"You don't have the rights to create a model under the namespace {owner}", {}
            )
        made = f"{owner}/{wish['name']}"
        if made in self.hub.repos:
            return answer_json(
                {"error": "You already created this model repo", "url": f"{self.hub.url}/{made}"}, 409
            )
        self.hub.repos[made] = Repo(wish.get("visibility") == "private", owner)
        self.hub.repos[made].add_commit("initial commit", INITIAL_FILES)
        return answer_json({"url": f"{self.hub.url}/{made}", "name": made})

    def get_model_info(self) -> Answer:
        repo = self.require_repo()
        shown = ("rfilename", "size", "blobId", "lfs") if "blobs=" in self.query else ("rfilename",)
        entries = [describe_file(*each) for each in repo.find_commit(self.at).files.items()]
        siblings = [{key: each[key] for key in shown if key in each} for each in entries]
        about = {
            "id": self.id,
            "author": repo.owner,
            "sha": repo.find_commit(self.at).oid,
            "private": repo.private,
            "gated": False,
        }
        card = re.match(
            r"---\n(.*?)\n---\n",
            repo.find_commit(self.at).files.get("README.md", b"").decode(errors="replace"),
            re.DOTALL,
        )
        return answer_json(
            {**about, "siblings": siblings, "cardData": yaml.safe_load(card[1]) if card else None}
        )

    def list_tree(self) -> Answer:
        files, under = self.require_repo().find_commit(self.at).files, f"{self.file}/" if self.file else ""
        entries = [describe_file(*each) for each in files.items() if each[0].startswith(under)]
        if not entries:
            raise HubError(404, f"{self.file} does not exist", {"X-Error-Code": "EntryNotFound"})
        folders = {
            each["path"][: at.start()]
            for each in entries
            for at in re.finditer("/", each["path"])
            if at.start() >= len(under)
        }
        entries += [
            {"type": "directory", "path": each, "oid": hash_content("", each.encode()), "size": 0}
            for each in sorted(folders)
        ]
        return answer_json(
            [
                each
                for each in entries
                if "recursive=true" in self.query or "/" not in each["path"].removeprefix(under)
            ]
        )

    def preupload(self) -> Answer:
        files = self.require_own_repo().find_commit(self.at).files
        modes = []
        for path in (each["path"] for each in self.parse_body()["files"]):
            oid = hash_content(path, files[path]) if path in files else None
            modes.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                    "oid": oid,
                }
            )
        return answer_json({"files": modes})

    def prepare_lfs_batch(self) -> Answer:
        repo, objects = self.require_own_repo(), []
        for each in self.parse_body()["objects"]:
            ticket = uuid.uuid4().hex
            self.hub.tickets[ticket] = (repo, each["oid"], each["size"])
            to = {
                "upload": {"href": f"{self.hub.url}/lfs/{ticket}"},
                "verify": {"href": f"{self.hub.url}/{self.id}.git/info/lfs/objects/verify"},
            }
            objects.append(
                {"oid": each["oid"], "size": each["size"]}
                | ({} if each["oid"] in repo.lfs else {"actions": to})
            )
        return answer_json({"transfer": "basic", "objects": objects})

    def upload_lfs(self) -> Answer:
        """Store a large file. The address is the permission: no token comes with it."""
        if self.at not in self.hub.tickets:
            raise HubError(403, "This address was not given out for an upload", {})
        return self.store_lfs(*self.hub.tickets[self.at], self.body)

    def verify_lfs(self) -> Answer:
        repo, asked = self.require_own_repo(), self.parse_body()
        return self.store_lfs(repo, asked["oid"], asked["size"], repo.lfs.pop(asked["oid"], b""))

    def store_lfs(self, repo: Repo, oid: str, size: int, data: bytes) -> Answer:
        """Store the content if it has the hash and the size."""
        data = flip_last_byte(data) if self.is_corrupt else data
        if (sha256(data).hexdigest(), len(data)) != (oid, size):
            raise HubError(400, "The content does not have the hash and the size that were announced", {})
        repo.lfs[oid] = data
        return answer_json({})

    def create_commit(self) -> Answer:
        repo, header = self.require_own_repo(), {}
        last, files = repo.find_commit(self.at), dict(repo.find_commit(self.at).files)
        for each in map(json.loads, self.body.splitlines()):
            value, path = each["value"], each["value"].get("path", "")
            match each["key"]:
                case "header":
                    header = value
                case "file":
                    files[path] = base64.b64decode(value["content"])
                case "lfsFile":
                    if len(repo.lfs.get(value["oid"], b"")) != value["size"]:
                        raise HubError(400, f"{path}: {value['oid']} was never uploaded", {})
                    files[path] = repo.lfs[value["oid"]]
                case _:
                    gone = {
                        old
                        for old in files
                        if old == path
                        or (each["key"] == "deletedFolder" and old.startswith(f"{path.rstrip('/')}/"))
                    }
                    if not gone:
                        raise HubError(
                            404, "A file with this name doesn't exist", {"X-Error-Code": "EntryNotFound"}
                        )
                    files = {old: data for old, data in files.items() if old not in gone}
        if header.get("parentCommit", last.oid) != repo.commits[-1].oid:
            raise HubError(412, "A commit has happened since. Please refresh and try again.", {})
        oid = repo.add_commit(header["summary"], files).oid
        return answer_json(
            {"success": True, "commitUrl": f"{self.hub.url}/{self.id}/commit/{oid}", "commitOid": oid}
        )

    def resolve_file(self) -> Answer:
        commit = self.require_repo().find_commit(self.at)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if self.file not in commit.files:
            raise HubError(404, "Entry not found", {"X-Error-Code": "EntryNotFound", **headers})
        data = commit.files[self.file]
        body = flip_last_byte(data) if self.is_corrupt else data
        etag = f'"{hash_content(self.file, body if self.command == "HEAD" else data)}"'
        headers |= {"Content-Type": "application/octet-stream", "ETag": etag}
        headers |= (
            {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
            if self.file.endswith(LFS_SUFFIXES)
            else {}
        )
        if not (reach := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            return 200, body, headers
        start, end = int(reach[1]), min(int(reach[2] or len(data)), len(data) - 1)
        return 206, body[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}


REPO_PATTERN, REVISION_PATTERN = r"(?P<id>[^/]+/[^/]+)", r"(?P<at>[^/]+)"
ROUTES: dict[str, Callable[[Handler], Answer]] = {
    r"GET /api/whoami-v2": Handler.answer_whoami,
    r"POST /api/validate-yaml": Handler.validate_card,
    r"POST /api/repos/create": Handler.create_repo,
    rf"GET /api/models/{REPO_PATTERN}(/revision/{REVISION_PATTERN})?": Handler.get_model_info,
    rf"GET /api/models/{REPO_PATTERN}/tree/{REVISION_PATTERN}(/(?P<file>.+))?": Handler.list_tree,
    rf"POST /api/models/{REPO_PATTERN}/preupload/{REVISION_PATTERN}": Handler.preupload,
    rf"POST /api/models/{REPO_PATTERN}/commit/{REVISION_PATTERN}": Handler.create_commit,
    rf"POST /{REPO_PATTERN}\.git/info/lfs/objects/batch": Handler.prepare_lfs_batch,
    rf"POST /{REPO_PATTERN}\.git/info/lfs/objects/verify": Handler.verify_lfs,
    rf"PUT /lfs/{REVISION_PATTERN}": Handler.upload_lfs,
    rf"(GET|HEAD) /{REPO_PATTERN}/resolve/{REVISION_PATTERN}/(?P<file>.+)": Handler.resolve_file,
    r".*": Handler.answer_not_found,
}


@contextmanager
def serve_hub(
    tokens: dict[str, str],
    extra_routes: dict[str, Callable[[Handler], Answer]] | None = None,
    service: object = None,
) -> Iterator[Hub]:
    """Yield a running Hub without repositories.

    `tokens` gives each token's account. `extra_routes` are answered from what `service` holds.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Hub(f"http://127.0.0.1:{server.server_port}", tokens, service=service)
    server.RequestHandlerClass = type(
        "Bound", (Handler,), {"hub": made, "routes": {**(extra_routes or {}), **ROUTES}}
    )
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield made
    finally:
        made.release.set()
        server.shutdown()
        server.server_close()
