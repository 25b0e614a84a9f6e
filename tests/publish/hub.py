"""A Hub on this machine with repositories, tokens, commits and large files: the real client publishes to it and downloads again; it fails on demand."""

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

from tests.publish.hub_state import FIRST, LARGE, Asked, Hub, Kind, Refused, Repo, entry, flipped, name

Answer = tuple[int, bytes, dict[str, str]]
"""Status, body, headers."""
MORE: dict[Kind, dict[str, str]] = {"403 gated": {"X-Error-Code": "GatedRepo"}, "404": {"X-Error-Code": "RepoNotFound"}, "429": {"Retry-After": "1"}}
"""Headers of faults."""


def told(value: object, status: int = 200) -> Answer:
    return status, json.dumps(value).encode(), {"Content-Type": "application/json"}


class Handler(BaseHTTPRequestHandler):
    """One request: kept, made to fail if it is to, answered."""

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
        self.wrong, stops = kind == "wrong sha", kind == "cut" and self.command != "GET"
        self.body = self.rfile.read(promised // 2 if stops else promised)
        self.hub.asked.append(Asked(self.command, path, {key.lower(): value for key, value in self.headers.items()}, len(self.body)))
        if stops:
            return
        if kind == "held":
            self.hub.go.wait()
        try:
            if kind and kind[0].isdigit():
                raise Refused(int(kind[:3]), f"{kind}: a test wants it", MORE.get(kind, {}))
            route, found = next((route, found) for pattern, route in self.routes.items() if (found := re.fullmatch(pattern, asked)))
            parts = {key: unquote(value or "") for key, value in found.groupdict().items()}
            self.id, self.at, self.file = parts.get("id", ""), parts.get("at") or "main", parts.get("file", "")
            self.account = self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
            with self.hub.lock:
                status, body, headers = route(self)
        except Refused as refused:
            status, message, more = refused.args
            _, body, headers = told({"error": message})
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

    def sent(self) -> dict[str, Any]:
        return json.loads(self.body)

    def known(self) -> str:
        """Whose token it is."""
        if self.account is None:
            raise Refused(401, "Invalid credentials in Authorization header", {})
        return self.account

    def seen(self) -> Repo:
        """The repository if the account may know of it."""
        repo = self.hub.repos.get(self.id)
        if repo is None or (repo.private and self.account != repo.owner):
            raise Refused(404, "Repository not found", {"X-Error-Code": "RepoNotFound"})
        return repo

    def own(self) -> Repo:
        """The repository if the account may write to it."""
        account, repo = self.known(), self.seen()
        if account != repo.owner:
            raise Refused(403, "You don't have write access to this repository", {})
        return repo

    def nowhere(self) -> Answer:
        raise Refused(404, "This Hub has no such address", {})

    def whoami(self) -> Answer:
        return told({"type": "user", "name": self.known(), "orgs": [], "auth": {"type": "access_token", "accessToken": {"role": "write"}}})

    def card(self) -> Answer:
        return told({"errors": [], "warnings": []})

    def create(self) -> Answer:
        account, wish = self.known(), self.sent()
        owner = wish["organization"] or account
        if owner != account:
            raise Refused(403, f"You don't have the rights to create a model under the namespace {owner}", {})
        made = f"{owner}/{wish['name']}"
        if made in self.hub.repos:
            return told({"error": "You already created this model repo", "url": f"{self.hub.url}/{made}"}, 409)
        self.hub.repos[made] = Repo(wish.get("visibility") == "private", owner)
        self.hub.repos[made].add("initial commit", FIRST)
        return told({"url": f"{self.hub.url}/{made}", "name": made})

    def info(self) -> Answer:
        repo = self.seen()
        shown = ("rfilename", "size", "blobId", "lfs") if "blobs=" in self.query else ("rfilename",)
        entries = [entry(*each) for each in repo.at(self.at).files.items()]
        siblings = [{key: each[key] for key in shown if key in each} for each in entries]
        about = {"id": self.id, "author": repo.owner, "sha": repo.at(self.at).oid, "private": repo.private, "gated": False}
        card = re.match(r"---\n(.*?)\n---\n", repo.at(self.at).files.get("README.md", b"").decode(), re.DOTALL)
        return told({**about, "siblings": siblings, "cardData": yaml.safe_load(card[1]) if card else None})

    def tree(self) -> Answer:
        files, under = self.seen().at(self.at).files, f"{self.file}/" if self.file else ""
        entries = [entry(*each) for each in files.items() if each[0].startswith(under)]
        if not entries:
            raise Refused(404, f"{self.file} does not exist", {"X-Error-Code": "EntryNotFound"})
        folders = {each["path"][: at.start()] for each in entries for at in re.finditer("/", each["path"]) if at.start() >= len(under)}
        entries += [{"type": "directory", "path": each, "oid": name("", each.encode()), "size": 0} for each in sorted(folders)]
        return told([each for each in entries if "recursive=true" in self.query or "/" not in each["path"].removeprefix(under)])

    def preupload(self) -> Answer:
        files = self.own().at(self.at).files
        modes = []
        for path in (each["path"] for each in self.sent()["files"]):
            oid = name(path, files[path]) if path in files else None
            modes.append({"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False, "oid": oid})
        return told({"files": modes})

    def batch(self) -> Answer:
        repo, objects = self.own(), []
        for each in self.sent()["objects"]:
            ticket = uuid.uuid4().hex
            self.hub.tickets[ticket] = (repo, each["oid"], each["size"])
            to = {"upload": {"href": f"{self.hub.url}/lfs/{ticket}"}, "verify": {"href": f"{self.hub.url}/{self.id}.git/info/lfs/objects/verify"}}
            objects.append({"oid": each["oid"], "size": each["size"]} | ({} if each["oid"] in repo.lfs else {"actions": to}))
        return told({"transfer": "basic", "objects": objects})

    def upload(self) -> Answer:
        """The address is the permission: no token comes with it."""
        if self.at not in self.hub.tickets:
            raise Refused(403, "This address was not given out for an upload", {})
        return self.checked(*self.hub.tickets[self.at], self.body)

    def verify(self) -> Answer:
        repo, asked = self.own(), self.sent()
        return self.checked(repo, asked["oid"], asked["size"], repo.lfs.pop(asked["oid"], b""))

    def checked(self, repo: Repo, oid: str, size: int, data: bytes) -> Answer:
        """Content is kept if it has the hash and the size."""
        data = flipped(data) if self.wrong else data
        if (sha256(data).hexdigest(), len(data)) != (oid, size):
            raise Refused(400, "The content does not have the hash and the size that were announced", {})
        repo.lfs[oid] = data
        return told({})

    def commit(self) -> Answer:
        repo, header = self.own(), {}
        last, files = repo.at(self.at), dict(repo.at(self.at).files)
        for each in map(json.loads, self.body.splitlines()):
            value, path = each["value"], each["value"].get("path", "")
            match each["key"]:
                case "header":
                    header = value
                case "file":
                    files[path] = base64.b64decode(value["content"])
                case "lfsFile":
                    if len(repo.lfs.get(value["oid"], b"")) != value["size"]:
                        raise Refused(400, f"{path}: {value['oid']} was never uploaded", {})
                    files[path] = repo.lfs[value["oid"]]
                case _:
                    gone = {old for old in files if old == path or (each["key"] == "deletedFolder" and old.startswith(f"{path.rstrip('/')}/"))}
                    if not gone:
                        raise Refused(404, "A file with this name doesn't exist", {"X-Error-Code": "EntryNotFound"})
                    files = {old: data for old, data in files.items() if old not in gone}
        if header.get("parentCommit", last.oid) != repo.commits[-1].oid:
            raise Refused(412, "A commit has happened since. Please refresh and try again.", {})
        oid = repo.add(header["summary"], files).oid
        return told({"success": True, "commitUrl": f"{self.hub.url}/{self.id}/commit/{oid}", "commitOid": oid})

    def resolve(self) -> Answer:
        commit = self.seen().at(self.at)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if self.file not in commit.files:
            raise Refused(404, "Entry not found", {"X-Error-Code": "EntryNotFound", **headers})
        data = commit.files[self.file]
        body = flipped(data) if self.wrong else data
        etag = f'"{name(self.file, body if self.command == "HEAD" else data)}"'
        headers |= {"Content-Type": "application/octet-stream", "ETag": etag}
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))} if self.file.endswith(LARGE) else {}
        if not (reach := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            return 200, body, headers
        start, end = int(reach[1]), min(int(reach[2] or len(data)), len(data) - 1)
        return 206, body[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}


ID, AT = r"(?P<id>[^/]+/[^/]+)", r"(?P<at>[^/]+)"
ROUTES: dict[str, Callable[[Handler], Answer]] = {
    r"GET /api/whoami-v2": Handler.whoami,
    r"POST /api/validate-yaml": Handler.card,
    r"POST /api/repos/create": Handler.create,
    rf"GET /api/models/{ID}(/revision/{AT})?": Handler.info,
    rf"GET /api/models/{ID}/tree/{AT}(/(?P<file>.+))?": Handler.tree,
    rf"POST /api/models/{ID}/preupload/{AT}": Handler.preupload,
    rf"POST /api/models/{ID}/commit/{AT}": Handler.commit,
    rf"POST /{ID}\.git/info/lfs/objects/batch": Handler.batch,
    rf"POST /{ID}\.git/info/lfs/objects/verify": Handler.verify,
    rf"PUT /lfs/{AT}": Handler.upload,
    rf"(GET|HEAD) /{ID}/resolve/{AT}/(?P<file>.+)": Handler.resolve,
    r".*": Handler.nowhere,
}


@contextmanager
def hub(tokens: dict[str, str], more: dict[str, Callable[[Handler], Answer]] | None = None, yard: object = None) -> Iterator[Hub]:
    """A running Hub without repositories; `tokens` gives each token's account. `more` routes are answered from what is in the `yard`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Hub(f"http://127.0.0.1:{server.server_port}", tokens, yard=yard)
    server.RequestHandlerClass = type("Bound", (Handler,), {"hub": made, "routes": {**(more or {}), **ROUTES}})
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield made
    finally:
        made.go.set()
        server.shutdown()
        server.server_close()
