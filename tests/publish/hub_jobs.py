"""Buckets and Jobs of the tests' Hub: files by Xet's own client in a store on this disk, a Job as a real process in its mounted bucket."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from hf_xet import SKIP_SHA256, XetFileInfo, XetSession

from tests.publish.hub import ID, Answer, Handler, told
from tests.publish.hub_state import Refused

ROOT = Path(__file__).resolve().parent.parent.parent
L4 = {"type": "gpu", "model": "L4", "quantity": "1", "vram": "24 GB", "manufacturer": "Nvidia"}
HARDWARE = [
    {"name": "l4x1", "prettyName": "1x Nvidia L4", "cpu": "8 vCPU", "ram": "30 GB", "accelerator": L4, "unitCostMicroUSD": 13333, "unitCostUSD": 0.013333},
    {"name": "cpu-basic", "prettyName": "CPU Basic", "cpu": "2 vCPU", "ram": "16 GB", "unitCostMicroUSD": 167, "unitCostUSD": 0.000167},
]


@dataclass
class Bucket:
    """Files by path: Xet's hash, size, time of change in milliseconds."""

    owner: str
    private: bool
    files: dict[str, tuple[str, int, int]] = field(default_factory=dict)


@dataclass
class Job:
    """One that was asked for."""

    id: str
    owner: str
    spec: dict[str, Any]
    folder: Path
    """Where its volume lies on this disk."""
    process: subprocess.Popen[bytes] | None = None
    """`None` while it waits for hardware."""
    stage: str = ""
    """How it was ended by somebody else; empty for how its process stands."""
    message: str | None = None
    finished: datetime | None = None
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and time of each file that the bucket has as it is."""

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def stands(self) -> str:
        """Its stage."""
        if self.stage or self.process is None:
            return self.stage or "SCHEDULING"
        code = self.process.poll()
        if code is not None:
            self.stage, self.message, self.finished = ("COMPLETED", None, datetime.now(UTC)) if code == 0 else ("ERROR", f"exit code {code}", datetime.now(UTC))
        return self.stage or "RUNNING"

    def end(self, stage: str, message: str | None = None) -> None:
        """From outside, at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.stage, self.message, self.finished = stage, message, datetime.now(UTC)


@dataclass
class Yard:
    """All buckets and Jobs of a Hub."""

    folder: Path
    buckets: dict[str, Bucket] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    full: bool = False
    """Whether no hardware is free: Jobs wait."""

    @property
    def store(self) -> str:
        return f"local://{self.folder / 'xet'}"

    def close(self) -> None:
        """No process outlives the Hub."""
        for job in self.jobs.values():
            if job.stands() == "RUNNING":
                job.end("CANCELED")

    def begin(self, job: Job) -> None:
        """Mount its volume and start it, with nothing of this process but where Python lies."""
        (volume,) = job.spec["volumes"]
        self.read(self.buckets[volume["source"]], f"{volume['path']}/", job.folder)
        job.seen = {name: mark(file) for name, file in inside(job.folder).items()}
        command = [sys.executable, *(part.replace(volume["mountPath"], str(job.folder)) for part in job.spec["command"][1:])]
        plain = {name: value for name, value in os.environ.items() if "TOKEN" not in name} | {"SWEETSPOT_RUNS": str(self.folder / "runs")}
        env = {**plain, **job.spec["environment"], **job.spec.get("secrets", {})}
        with job.log.open("wb") as log:
            job.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def read(self, bucket: Bucket, prefix: str, into: Path) -> None:
        """Files of a bucket onto this disk."""
        with XetSession().new_file_download_group(endpoint=self.store) as group:
            for path, (xet, size, _) in bucket.files.items():
                if path.startswith(prefix):
                    file = into / path.removeprefix(prefix)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch() if size == 0 else group.start_download_file(XetFileInfo(xet, size), str(file))

    def look(self) -> None:
        """What Jobs have written is in their buckets."""
        for job in self.jobs.values():
            if job.process is None:
                continue
            (volume,) = job.spec["volumes"]
            files, there = self.buckets[volume["source"]].files, inside(job.folder)
            marks = {name: mark(file) for name, file in there.items()}
            new = {name: there[name].read_bytes() for name in there if job.seen.get(name) != marks[name]}
            if new:
                with XetSession().new_upload_commit(endpoint=self.store) as commit:
                    handles = {name: commit.start_upload_bytes(data, sha256=SKIP_SHA256) for name, data in new.items()}
                for name, handle in handles.items():
                    files[f"{volume['path']}/{name}"] = (handle.result().xet_info.hash, len(new[name]), int(time.time() * 1000))
            for gone in job.seen.keys() - there.keys():
                del files[f"{volume['path']}/{gone}"]
            job.seen = marks


def inside(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".tmp")}


def mark(file: Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns


def moment(of: datetime) -> str:
    return of.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def yard(handler: Handler) -> Yard:
    made = handler.hub.yard
    assert isinstance(made, Yard)
    return made


# --- buckets ---------------------------------------------------------------------------------------


def bucket(handler: Handler) -> Bucket:
    """The one that is asked for, if the account may know of it: only its own."""
    found = yard(handler).buckets.get(handler.id)
    if found is None or handler.known() != found.owner:
        raise Refused(404, "Bucket not found", {"X-Error-Code": "RepoNotFound"})
    return found


def create_bucket(handler: Handler) -> Answer:
    account, owner = handler.known(), handler.id.partition("/")[0]
    url = {"url": f"{handler.hub.url}/buckets/{handler.id}"}
    if owner != account:
        raise Refused(403, f"You cannot create a bucket under {owner}", {})
    if handler.id in yard(handler).buckets:
        return told({"error": "You already created this bucket", **url}, 409)
    yard(handler).buckets[handler.id] = Bucket(owner, handler.sent().get("visibility") == "private")
    return told(url)


def bucket_info(handler: Handler) -> Answer:
    found = bucket(handler)
    sizes = [size for _, size, _ in found.files.values()]
    about = {"id": handler.id, "private": found.private, "createdAt": "2026-01-01T00:00:00.000Z"}
    return told({**about, "size": sum(sizes), "totalFiles": len(sizes)})


def tree(handler: Handler) -> Answer:
    yard(handler).look()
    found = bucket(handler).files.items()
    return told([entry(path, *rest) for path, rest in found if path.startswith(f"{handler.file}/" if handler.file else "")])


def entry(path: str, xet: str, size: int, changed: int) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": size, "xetHash": xet, "mtime": moment(datetime.fromtimestamp(changed / 1000, UTC))}


def batch(handler: Handler) -> Answer:
    files = bucket(handler).files
    for each in map(json.loads, handler.body.splitlines()):
        if each["type"] == "deleteFile":
            del files[each["path"]]
        else:
            files[each["path"]] = (each["xetHash"], xet_size(yard(handler), each["xetHash"]), each["mtime"])
    return told({"success": True})


def xet_size(of: Yard, xet: str) -> int:
    """How much the store has under this hash; only what was really uploaded can be read."""
    file = of.folder / f"read-{uuid.uuid4().hex}"
    with XetSession().new_file_download_group(endpoint=of.store) as group:
        group.start_download_file(XetFileInfo(xet), str(file))
    size = file.stat().st_size if file.exists() else 0
    file.unlink(missing_ok=True)
    return size


def xet_token(handler: Handler) -> Answer:
    """Where Xet's files are."""
    bucket(handler)
    until = int(time.time()) + 3600
    return told({"accessToken": "xet", "exp": until, "casUrl": yard(handler).store})


def resolve(handler: Handler) -> Answer:
    xet, size, _ = bucket(handler).files[handler.file]
    refresh = f"{handler.hub.url}/api/buckets/{handler.id}/xet-read-token"
    return 200, b"", {"X-Xet-Hash": xet, "X-Xet-Refresh-Route": refresh, "X-Linked-Size": str(size)}


# --- Jobs ------------------------------------------------------------------------------------------


def hardware(_handler: Handler) -> Answer:
    return told([{**each, "unitLabel": "minute", "ephemeralStorage": "50 GB"} for each in HARDWARE])


def run(handler: Handler) -> Answer:
    account, spec = handler.known(), handler.sent()
    if handler.at != account:
        raise Refused(403, f"You cannot run Jobs under {handler.at}", {})
    if spec["flavor"] not in {each["name"] for each in HARDWARE}:
        raise Refused(400, "Invalid flavor", {})
    made = Job(uuid.uuid4().hex[:24], account, spec, yard(handler).folder / f"job-{len(yard(handler).jobs)}")
    yard(handler).jobs[made.id] = made
    if not yard(handler).full:
        yard(handler).begin(made)
    return told(about(made))


def job(handler: Handler) -> Job:
    found = yard(handler).jobs.get(handler.file)
    if found is None or handler.known() != found.owner or handler.at != found.owner:
        raise Refused(404, "Job not found", {})
    return found


def about(made: Job) -> dict[str, Any]:
    """A Job as the Hub tells of it: of secrets, the names alone."""
    shown = {name: made.spec[name] for name in ("spaceId", "command", "arguments", "environment", "flavor", "labels", "volumes")}
    status = {"stage": made.stands(), "message": made.message}
    return {
        **shown,
        "id": made.id,
        "secrets": sorted(made.spec.get("secrets", {})),
        "status": status,
        "owner": {"id": "1", "name": made.owner, "type": "user"},
        "createdAt": "2026-01-01T00:00:00.000Z",
        "finishedAt": made.finished and moment(made.finished),
    }


def inspect(handler: Handler) -> Answer:
    return told(about(job(handler)))


def cancel(handler: Handler) -> Answer:
    found = job(handler)
    if found.stands() in ("SCHEDULING", "RUNNING"):
        found.end("CANCELED")
    return told(about(found))


def logs(handler: Handler) -> Answer:
    """Server-sent events, as many of the last as are asked for."""
    found = job(handler)
    lines = found.log.read_text(errors="replace").splitlines() if found.log.exists() else []
    lines = ["===== Job started at 2026-01-01 00:00:00 =====", *lines][-int(parse_qs(handler.query).get("tail", ["1000"])[0]) :]
    body = "".join(f"data: {json.dumps({'timestamp': '2026-01-01T00:00:00.000Z', 'data': line})}\n\n" for line in lines)
    return 200, f": keep-alive\n\n{body}".encode(), {"Content-Type": "text/event-stream"}


NAMESPACE, JOB = r"(?P<at>[^/]+)", r"(?P<file>[^/]+)"
ROUTES: dict[str, Callable[[Handler], Answer]] = {
    rf"POST /api/buckets/{ID}": create_bucket,
    rf"GET /api/buckets/{ID}": bucket_info,
    rf"GET /api/buckets/{ID}/tree(/(?P<file>[^/]+))?": tree,
    rf"POST /api/buckets/{ID}/batch": batch,
    rf"GET /api/buckets/{ID}/xet-(read|write)-token": xet_token,
    rf"HEAD /buckets/{ID}/resolve/(?P<file>.+)": resolve,
    r"GET /api/jobs/hardware": hardware,
    rf"POST /api/jobs/{NAMESPACE}": run,
    rf"GET /api/jobs/{NAMESPACE}/{JOB}": inspect,
    rf"GET /api/jobs/{NAMESPACE}/{JOB}/logs": logs,
    rf"POST /api/jobs/{NAMESPACE}/{JOB}/cancel": cancel,
}
