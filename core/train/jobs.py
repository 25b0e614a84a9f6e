"""A run that is sent to a Hugging Face Job: started there, looked at, stopped, and what it made brought back.

The Job has no token: its bucket is mounted for it, and base models are fetched by nobody in particular.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from huggingface_hub import HfApi, JobInfo, Volume
from huggingface_hub.errors import HfHubHTTPError

from core.train import run as written
from core.train.bucket import NAME, brought, put
from core.train.folder import Folder, write_text
from core.train.offers import REASONS, Offer, asking
from core.types import UserError

MOUNT = "/sweetspot-run"
SETTLED = timedelta(minutes=1)
"""After its end, until which the bucket may still take in what a Job wrote."""
ENDED = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
LINES = 8  # of a log
Asked = TypeVar("Asked")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What lies in a run's `job.json`."""

    id: str
    namespace: str
    flavor: str
    timeout: int
    bucket: str
    stage: str = "SCHEDULING"
    """As it was when last looked at, in the Hub's words."""
    message: str = ""
    had: Mapping[str, str] = field(default_factory=dict)
    """The hashes of what was brought back."""


def sent(folder: Folder, chosen: Offer, space: str, token: str) -> Job:
    """Upload the run and start its Job in the image of `space`; from then on it is away. Raises `UserError`, and it stays here."""
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", space):
        raise UserError(f"space: {space[:60]!r} is not allowed; name the Space whose image trains, as owner/name.")
    if _done(folder):
        raise UserError(f"run: {folder.name} is done already.")
    api = HfApi(token=token)
    with folder.owned():
        with asking("job: the run was not sent"):
            owner = api.whoami()["name"]
            bucket = f"{owner}/{NAME}"
            put(folder, api, bucket)
        with asking("job: it was not started", "the Hub's answer was lost; look at your Jobs there before you send it again."):
            info = api.run_job(
                image=f"hf.co/spaces/{space}",
                command=["python", "-m", "core.train", "--resume", MOUNT, "--copied"],
                env={"PYTHONUNBUFFERED": "1"},
                flavor=chosen.hardware.name,
                timeout=chosen.timeout,
                volumes=[Volume(type="bucket", source=bucket, mount_path=MOUNT, path=folder.name, read_only=False)],
                name=f"sweetspot-{folder.name}",
                namespace=owner,
            )
        job = Job(id=info.id, namespace=owner, flavor=chosen.hardware.name, timeout=chosen.timeout, bucket=bucket, stage=info.status.stage)
        write_text(folder.job, json.dumps(asdict(job), indent=1))
        folder.go_on()
        folder.wait()
        folder.go_away()
    return job


def of(folder: Folder) -> Job | None:
    """The Job that a run was last sent to."""
    try:
        return Job(**json.loads(folder.job.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def looked(folder: Folder, token: str) -> Job | None:
    """Ask how the run's Job stands and bring what it has made; once it has ended, the run is here again. Raises `UserError`."""
    job = of(folder)
    if job is None or not folder.is_away():
        return job
    api = HfApi(token=token)
    with asking("job: it cannot be looked at"):
        info = _unless_gone(partial(api.inspect_job, job_id=job.id, namespace=job.namespace))
        stage = info.status.stage if info else "DELETED"
        if stage != "SCHEDULING":
            folder.wait_no_more()
            had = _unless_gone(partial(brought, folder, api, job.bucket, job.had, states=stage in ENDED))
            job = replace(job, had=job.had if had is None else had)
    job = replace(job, stage=stage, message=((info.status.message or "") if info else REASONS[404])[:500])
    write_text(folder.job, json.dumps(asdict(job), indent=1))
    if stage in ENDED and not (info and _settling(folder, info)):
        if (why := _failure(folder, job, info)) and not folder.failure():
            folder.failed(why)
        folder.come_back()
    return job


def log(job: Job, token: str) -> list[str]:
    """The last lines that it printed. Raises `UserError`."""
    with asking("job: its log cannot be had"):
        return list(HfApi(token=token).fetch_job_logs(job_id=job.id, namespace=job.namespace, tail=LINES))


def stopped(folder: Folder, token: str) -> Job | None:
    """End the run's Job; the last state that it saved stays. Raises `UserError`."""
    job = looked(folder, token)
    if job is None or not folder.is_away():
        return job
    with asking("job: it was not stopped"):
        HfApi(token=token).cancel_job(job_id=job.id, namespace=job.namespace)
    return looked(folder, token)


def _settling(folder: Folder, info: JobInfo) -> bool:
    """Whether a Job that is done has just ended, and its LoRA is still on its way."""
    return info.status.stage == "COMPLETED" and not _done(folder) and info.finished_at is not None and datetime.now(UTC) - info.finished_at < SETTLED


def _failure(folder: Folder, job: Job, info: JobInfo | None) -> str | None:
    """Why the run is not done, and what to do; `None` where nobody need know."""
    if _done(folder) or job.stage == "CANCELED":
        return None
    steps = written.read(folder).settings.steps
    kept = max((int(file.stem) for file in folder.states.glob("[!.]*.safetensors")), default=0)
    then = f"saved at step {kept} of {steps}; start it again to go on."
    ran = info.durations.running_secs if info and info.durations else None
    if re.search(r"time[d\s-]*out", job.message, re.IGNORECASE) or (ran or 0) >= job.timeout:
        return f"The Job reached its timeout of {job.timeout // 60} min: {then}"
    return f"The Job ended ({job.stage}: {job.message or 'no reason is given'}): {then}"


def _done(folder: Folder) -> bool:
    return written.last(folder) is not None


def _unless_gone(ask: Callable[[], Asked]) -> Asked | None:
    """What the Hub answers; `None` for what is not there any more."""
    try:
        return ask()
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code != 404:
            raise
        return None
