"""Buckets and Jobs of the tests' Hub.

Xet's own client moves files in and out of a store on this disk; a Job is a real process in its
mounted bucket.
"""

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

from tests.hub.server import REPO_PATTERN, Answer, Handler, answer_json
from tests.hub.server_state import HubError

ROOT = Path(__file__).resolve().parent.parent.parent
L4 = {"type": "gpu", "model": "L4", "quantity": "1", "vram": "24 GB", "manufacturer": "Nvidia"}
HARDWARE = [
    {
        "name": "l4x1",
        "prettyName": "1x Nvidia L4",
        "cpu": "8 vCPU",
        "ram": "30 GB",
        "accelerator": L4,
        "unitCostMicroUSD": 13333,
        "unitCostUSD": 0.013333,
    },
    {
        "name": "cpu-basic",
        "prettyName": "CPU Basic",
        "cpu": "2 vCPU",
        "ram": "16 GB",
        "unitCostMicroUSD": 167,
        "unitCostUSD": 0.000167,
    },
]


@dataclass
class Bucket:
    """A bucket's files by path: Xet's hash, size in bytes, time of change in milliseconds."""

    owner: str
    private: bool
    files: dict[str, tuple[str, int, int]] = field(default_factory=dict)


@dataclass
class Job:
    """A requested Job."""

    id: str
    owner: str
    spec: dict[str, Any]
    folder: Path
    """Where its volume lies on this disk."""
    process: subprocess.Popen[bytes] | None = None
    """`None` while it waits for hardware."""
    stage: str = ""
    """How somebody else ended it; empty while only its process decides."""
    message: str | None = None
    finished: datetime | None = None
    uploaded_marks: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and time of each file that the bucket has in its present state."""

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def read_stage(self) -> str:
        """Return the Job's stage, which its process decides unless it was ended from outside."""
        if self.stage or self.process is None:
            return self.stage or "SCHEDULING"
        code = self.process.poll()
        if code is not None:
            self.stage, self.message, self.finished = (
                ("COMPLETED", None, datetime.now(UTC))
                if code == 0
                else ("ERROR", f"exit code {code}", datetime.now(UTC))
            )
        return self.stage or "RUNNING"

    def end(self, stage: str, message: str | None = None) -> None:
        """End the Job from outside, at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.stage, self.message, self.finished = stage, message, datetime.now(UTC)


@dataclass
class JobService:
    """All buckets and Jobs of a Hub."""

    folder: Path
    buckets: dict[str, Bucket] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    is_full: bool = False
    """Whether no hardware is free, so that Jobs wait."""

    @property
    def store(self) -> str:
        return f"local://{self.folder / 'xet'}"

    def stop_jobs(self) -> None:
        """Stop all Jobs, so that no process outlives the Hub."""
        for job in self.jobs.values():
            if job.read_stage() == "RUNNING":
                job.end("CANCELED")

    def start_job(self, job: Job) -> None:
        """Mount the Job's volume and start it.

        Tokens are taken out of its environment, which is otherwise this process's.
        """
        (volume,) = job.spec["volumes"]
        self.download_files(self.buckets[volume["source"]], f"{volume['path']}/", job.folder)
        job.uploaded_marks = {name: mark_file(file) for name, file in list_files(job.folder).items()}
        command = [
            sys.executable,
            *(part.replace(volume["mountPath"], str(job.folder)) for part in job.spec["command"][1:]),
        ]
        plain = {name: value for name, value in os.environ.items() if "TOKEN" not in name} | {
            "SWEETSPOT_RUNS": str(self.folder / "runs")
        }
        env = {**plain, **job.spec["environment"], **job.spec.get("secrets", {})}
        with job.log.open("wb") as log:
            job.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def download_files(self, bucket: Bucket, prefix: str, folder: Path) -> None:
        """Download a bucket's files below `prefix` to this disk."""
        with XetSession().new_file_download_group(endpoint=self.store) as group:
            for path, (xet, size, _) in bucket.files.items():
                if path.startswith(prefix):
                    file = folder / path.removeprefix(prefix)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch() if size == 0 else group.start_download_file(
                        XetFileInfo(xet, size), str(file)
                    )

    def sync_buckets(self) -> None:
        """Upload what Jobs have written to their buckets, and delete what they have removed."""
        for job in self.jobs.values():
            if job.process is None:
                continue
            (volume,) = job.spec["volumes"]
            files, there = self.buckets[volume["source"]].files, list_files(job.folder)
            marks = {name: mark_file(file) for name, file in there.items()}
            new = {
                name: there[name].read_bytes()
                for name in there
                if job.uploaded_marks.get(name) != marks[name]
            }
            if new:
                with XetSession().new_upload_commit(endpoint=self.store) as commit:
                    handles = {
                        name: commit.start_upload_bytes(data, sha256=SKIP_SHA256)
                        for name, data in new.items()
                    }
                for name, handle in handles.items():
                    files[f"{volume['path']}/{name}"] = (
                        handle.result().xet_info.hash,
                        len(new[name]),
                        int(time.time() * 1000),
                    )
            for gone in job.uploaded_marks.keys() - there.keys():
                del files[f"{volume['path']}/{gone}"]
            job.uploaded_marks = marks


def list_files(folder: Path) -> dict[str, Path]:
    return {
        file.relative_to(folder).as_posix(): file
        for file in folder.rglob("*")
        if file.is_file() and not file.name.endswith(".tmp")
    }


def mark_file(file: Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns


def format_time(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def get_job_service(handler: Handler) -> JobService:
    made = handler.hub.service
    assert isinstance(made, JobService)
    return made


# --- buckets --------------------------------------------------------------------------------------


def find_bucket(handler: Handler) -> Bucket:
    """Return the bucket of the request if the account owns it. Raises HubError if not."""
    found = get_job_service(handler).buckets.get(handler.id)
    if found is None or handler.require_account() != found.owner:
        raise HubError(404, "Bucket not found", {"X-Error-Code": "RepoNotFound"})
    return found


def create_bucket(handler: Handler) -> Answer:
    account, owner = handler.require_account(), handler.id.partition("/")[0]
    url = {"url": f"{handler.hub.url}/buckets/{handler.id}"}
    if owner != account:
        raise HubError(403, f"You cannot create a bucket under {owner}", {})
    if handler.id in get_job_service(handler).buckets:
        return answer_json({"error": "You already created this bucket", **url}, 409)
    get_job_service(handler).buckets[handler.id] = Bucket(
        owner, handler.parse_body().get("visibility") == "private"
    )
    return answer_json(url)


def get_bucket_info(handler: Handler) -> Answer:
    found = find_bucket(handler)
    sizes = [size for _, size, _ in found.files.values()]
    about = {"id": handler.id, "private": found.private, "createdAt": "2026-01-01T00:00:00.000Z"}
    return answer_json({**about, "size": sum(sizes), "totalFiles": len(sizes)})


def list_tree(handler: Handler) -> Answer:
    get_job_service(handler).sync_buckets()
    found = find_bucket(handler).files.items()
    return answer_json(
        [
            describe_file(path, *rest)
            for path, rest in found
            if path.startswith(f"{handler.file}/" if handler.file else "")
        ]
    )


def describe_file(path: str, xet: str, size: int, changed: int) -> dict[str, Any]:
    return {
        "type": "file",
        "path": path,
        "size": size,
        "xetHash": xet,
        "mtime": format_time(datetime.fromtimestamp(changed / 1000, UTC)),
    }


def commit_batch(handler: Handler) -> Answer:
    files = find_bucket(handler).files
    for each in map(json.loads, handler.body.splitlines()):
        if each["type"] == "deleteFile":
            del files[each["path"]]
        else:
            files[each["path"]] = (
                each["xetHash"],
                read_xet_size(get_job_service(handler), each["xetHash"]),
                each["mtime"],
            )
    return answer_json({"success": True})


def read_xet_size(service: JobService, xet: str) -> int:
    """Return the size in bytes that the store has under this hash.

    Only what was really uploaded can be read.
    """
    file = service.folder / f"read-{uuid.uuid4().hex}"
    with XetSession().new_file_download_group(endpoint=service.store) as group:
        group.start_download_file(XetFileInfo(xet), str(file))
    size = file.stat().st_size if file.exists() else 0
    file.unlink(missing_ok=True)
    return size


def issue_xet_token(handler: Handler) -> Answer:
    """Answer with a token and the address of Xet's files."""
    find_bucket(handler)
    until = int(time.time()) + 3600
    return answer_json({"accessToken": "xet", "exp": until, "casUrl": get_job_service(handler).store})


def resolve_file(handler: Handler) -> Answer:
    xet, size, _ = find_bucket(handler).files[handler.file]
    refresh = f"{handler.hub.url}/api/buckets/{handler.id}/xet-read-token"
    return 200, b"", {"X-Xet-Hash": xet, "X-Xet-Refresh-Route": refresh, "X-Linked-Size": str(size)}


# --- Jobs -----------------------------------------------------------------------------------------


def list_hardware(_handler: Handler) -> Answer:
    return answer_json([{**each, "unitLabel": "minute", "ephemeralStorage": "50 GB"} for each in HARDWARE])


def run_job(handler: Handler) -> Answer:
    account, spec = handler.require_account(), handler.parse_body()
    if handler.at != account:
        raise HubError(403, f"You cannot run Jobs under {handler.at}", {})
    if spec["flavor"] not in {each["name"] for each in HARDWARE}:
        raise HubError(400, "Invalid flavor", {})
    made = Job(
        uuid.uuid4().hex[:24],
        account,
        spec,
        get_job_service(handler).folder / f"job-{len(get_job_service(handler).jobs)}",
    )
    get_job_service(handler).jobs[made.id] = made
    if not get_job_service(handler).is_full:
        get_job_service(handler).start_job(made)
    return answer_json(describe_job(made))


def find_job(handler: Handler) -> Job:
    found = get_job_service(handler).jobs.get(handler.file)
    if found is None or handler.require_account() != found.owner or handler.at != found.owner:
        raise HubError(404, "Job not found", {})
    return found


def describe_job(job: Job) -> dict[str, Any]:
    """Describe a Job as the Hub does: of secrets, the names alone."""
    shown = {
        name: job.spec[name]
        for name in ("spaceId", "command", "arguments", "environment", "flavor", "labels", "volumes")
    }
    status = {"stage": job.read_stage(), "message": job.message}
    return {
        **shown,
        "id": job.id,
        "secrets": sorted(job.spec.get("secrets", {})),
        "status": status,
        "owner": {"id": "1", "name": job.owner, "type": "user"},
        "createdAt": "2026-01-01T00:00:00.000Z",
        "finishedAt": job.finished and format_time(job.finished),
    }


def inspect_job(handler: Handler) -> Answer:
    return answer_json(describe_job(find_job(handler)))


def cancel_job(handler: Handler) -> Answer:
    found = find_job(handler)
    if found.read_stage() in ("SCHEDULING", "RUNNING"):
        found.end("CANCELED")
    return answer_json(describe_job(found))


def stream_logs(handler: Handler) -> Answer:
    """Answer with server-sent events, as many of the last ones as the request wants."""
    found = find_job(handler)
    lines = found.log.read_text(errors="replace").splitlines() if found.log.exists() else []
    lines = ["===== Job started at 2026-01-01 00:00:00 =====", *lines][
        -int(parse_qs(handler.query).get("tail", ["1000"])[0]) :
    ]
    body = "".join(
        f"data: {json.dumps({'timestamp': '2026-01-01T00:00:00.000Z', 'data': line})}\n\n" for line in lines
    )
    return 200, f": keep-alive\n\n{body}".encode(), {"Content-Type": "text/event-stream"}


NAMESPACE_PATTERN, JOB_PATTERN = r"(?P<at>[^/]+)", r"(?P<file>[^/]+)"
ROUTES: dict[str, Callable[[Handler], Answer]] = {
    rf"POST /api/buckets/{REPO_PATTERN}": create_bucket,
    rf"GET /api/buckets/{REPO_PATTERN}": get_bucket_info,
    rf"GET /api/buckets/{REPO_PATTERN}/tree(/(?P<file>[^/]+))?": list_tree,
    rf"POST /api/buckets/{REPO_PATTERN}/batch": commit_batch,
    rf"GET /api/buckets/{REPO_PATTERN}/xet-(read|write)-token": issue_xet_token,
    rf"HEAD /buckets/{REPO_PATTERN}/resolve/(?P<file>.+)": resolve_file,
    r"GET /api/jobs/hardware": list_hardware,
    rf"POST /api/jobs/{NAMESPACE_PATTERN}": run_job,
    rf"GET /api/jobs/{NAMESPACE_PATTERN}/{JOB_PATTERN}": inspect_job,
    rf"GET /api/jobs/{NAMESPACE_PATTERN}/{JOB_PATTERN}/logs": stream_logs,
    rf"POST /api/jobs/{NAMESPACE_PATTERN}/{JOB_PATTERN}/cancel": cancel_job,
}
