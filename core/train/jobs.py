"""Train a run as a Hugging Face Job: its price, its start, its status, its end, its results.

The Job gets no token: its bucket is mounted for it, and base models are downloaded anonymously.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from errno import ENOSPC
from functools import partial
from typing import TypeVar

from huggingface_hub import HfApi, JobHardwareInfo, JobInfo, Volume
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from core.schema.errors import UserError
from core.train.bucket_sync import BUCKET_NAME, download_results, upload_run
from core.train.trainer import run_record
from core.train.trainer.run_folder import RunFolder, write_text

JOB_START_SECONDS = 180
"""Seconds that a Job takes before it trains: its container, the base model."""
TIMEOUT_MARGIN = 3
"""A Job's timeout, relative to the time that is expected.

Nobody knows the pace of other hardware; what a timeout cuts off continues from its last state.
"""
MAX_MINUTES = 24 * 60
"""Greatest number of minutes that may be expected."""
MINUTES_PER_UNIT = {"second": 1 / 60, "minute": 1.0, "hour": 60.0}
HTTP_REASONS = {
    401: "Hugging Face no longer accepts the login; log in again.",
    402: "the account has no credit for Jobs; add some in its billing settings on Hugging Face.",
    403: "the login has no permission for that: on a Space it needs the scope jobs, "
    "at home a token that may write and start Jobs.",
    404: "it no longer exists on Hugging Face.",
    429: "Hugging Face is limiting requests; try again in a few minutes.",
}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A machine that can be rented for a Job."""

    name: str
    title: str
    price: float
    """Dollars per minute."""

    def describe(self) -> str:
        """Return the hardware's title and its price per hour."""
        return f"{self.title}, ${self.price * 60:.2f} an hour"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a Job on some hardware is expected to take, and what it takes at most."""

    hardware: Hardware
    seconds: int
    timeout: int
    """Seconds after which the Hub ends the Job."""

    def describe(self) -> str:
        """Return one line for a person."""
        about, most = (
            math.ceil(self.hardware.price * seconds / 60 * 100) / 100
            for seconds in (self.seconds, self.timeout)
        )
        return (
            f"{self.hardware.title}: about ${about:.2f}, at most ${most:.2f} "
            f"(its timeout, {self.timeout // 60} min)"
        )


def list_hardware(token: str) -> list[Hardware]:
    """Return the hardware that is available now, the cheapest first.

    Raises `UserError` if the Hub cannot tell.
    """
    with translate_hub_errors("hardware", "the list cannot be read"):
        found = HfApi(token=token).list_jobs_hardware()
    return sorted(
        (
            Hardware(
                name=each.name,
                title=_format_title(each),
                price=each.unit_cost_usd / MINUTES_PER_UNIT[each.unit_label],
            )
            for each in found
        ),
        key=lambda h: h.price,
    )


def _format_title(found: JobHardwareInfo) -> str:
    return f"{found.pretty_name} ({found.accelerator.vram if found.accelerator else found.ram})"


def make_offer(available: list[Hardware], name: str | None, minutes: float | None) -> Offer:
    """Return the offer for a training of so many minutes.

    Raises `UserError` if the hardware is not available or the minutes are out of range.
    """
    chosen = next((each for each in available if each.name == name), None)
    if chosen is None:
        raise UserError(
            "hardware",
            f"{str(name)[:40]!r} is not available. Use one of: {', '.join(each.name for each in available)}.",
        )
    if not isinstance(minutes, int | float) or not 0 < minutes <= MAX_MINUTES:
        raise UserError(
            "minutes", f"{minutes!r} is not valid. Say how many the training may take, up to {MAX_MINUTES}."
        )
    seconds = JOB_START_SECONDS + math.ceil(minutes * 60)
    return Offer(hardware=chosen, seconds=seconds, timeout=math.ceil(seconds * TIMEOUT_MARGIN / 60) * 60)


@contextmanager
def translate_hub_errors(
    field: str, what: str, no_answer: str = "Hugging Face is unreachable; try again."
) -> Iterator[None]:
    """Raise the Hub's errors as a `UserError` of one sentence.

    The sentence contains no address, header or token, and ends with `no_answer` if the Hub gave
    none.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno == ENOSPC:
            raise UserError(field, f"{what}: the disk is full. Free up space and try again.") from error
        status = (
            error.response.status_code
            if isinstance(error, HfHubHTTPError) and error.response is not None
            else None
        )
        # hf_xet's errors have nothing but their text.
        if status is None and (said := re.search(r"\((\d{3}) [A-Z]", str(error))):
            status = int(said[1])
        why = (
            no_answer
            if status is None
            else HTTP_REASONS.get(status, f"Hugging Face answered {status}; try again.")
        )
        raise UserError(field, f"{what}: {why}") from error


MOUNT_PATH = "/sweetspot-run"
SETTLE_TIME = timedelta(minutes=1)
"""Time after a Job's end in which the bucket may still receive what the Job wrote."""
END_STAGES = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
LOG_LINES = 8
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The content of a run's `job.json`."""

    id: str
    namespace: str
    flavor: str
    timeout: int
    bucket: str
    stage: str = "SCHEDULING"
    """The stage when the Job was last checked, in the Hub's words."""
    message: str = ""
    had: Mapping[str, str] = field(default_factory=dict)
    """The hashes of the files that were downloaded."""


def submit_job(folder: RunFolder, offer: Offer, space: str, token: str) -> Job:
    """Upload the run and start its Job in the image of `space`; from then on the run is remote.

    Raises `UserError` if that fails; the run stays local then.
    """
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", space):
        raise UserError("space", f"{space[:60]!r} is not valid. Name the Space to run as owner/name.")
    if _is_done(folder):
        raise UserError("run", f"{folder.name} is done already.")
    api = HfApi(token=token)
    with folder.lock():
        with translate_hub_errors("job", "the run was not sent"):
            owner = api.whoami()["name"]
            bucket = f"{owner}/{BUCKET_NAME}"
            upload_run(folder, api, bucket)
        with translate_hub_errors(
            "job",
            "it was not started",
            "the answer of Hugging Face was lost; check your Jobs there before you send it again.",
        ):
            info = api.run_job(
                image=f"hf.co/spaces/{space}",
                command=["python", "-m", "core.train", "--resume", MOUNT_PATH, "--copied"],
                env={"PYTHONUNBUFFERED": "1"},
                flavor=offer.hardware.name,
                timeout=offer.timeout,
                volumes=[
                    Volume(
                        type="bucket", source=bucket, mount_path=MOUNT_PATH, path=folder.name, read_only=False
                    )
                ],
                name=f"sweetspot-{folder.name}",
                namespace=owner,
            )
        job = Job(
            id=info.id,
            namespace=owner,
            flavor=offer.hardware.name,
            timeout=offer.timeout,
            bucket=bucket,
            stage=info.status.stage,
        )
        write_text(folder.job_file, json.dumps(asdict(job), indent=1))
        folder.clear_stop()
        folder.join_queue()
        folder.mark_remote()
    return job


def read_job(folder: RunFolder) -> Job | None:
    """Return the Job that a run was last sent to, or `None`."""
    try:
        return Job(**json.loads(folder.job_file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def refresh_job(folder: RunFolder, token: str) -> Job | None:
    """Check the run's Job and download what it has made; once it has ended, the run is local again.

    Raises `UserError` if the Hub cannot tell, or for a file that no run makes.
    """
    job = read_job(folder)
    if job is None or not folder.is_remote():
        return job
    api = HfApi(token=token)
    with translate_hub_errors("job", "its status cannot be read"):
        info = _call_unless_gone(partial(api.inspect_job, job_id=job.id, namespace=job.namespace))
        stage = info.status.stage if info else "DELETED"
        if stage != "SCHEDULING":
            folder.leave_queue()
            had = _call_unless_gone(
                partial(download_results, folder, api, job.bucket, job.had, with_states=stage in END_STAGES)
            )
            job = replace(job, had=job.had if had is None else had)
    job = replace(
        job, stage=stage, message=((info.status.message or "") if info else HTTP_REASONS[404])[:500]
    )
    write_text(folder.job_file, json.dumps(asdict(job), indent=1))
    if stage in END_STAGES and not (info and _is_settling(folder, info)):
        if (why := _explain_failure(folder, job, info)) and not folder.read_failure():
            folder.save_failure(why)
        folder.mark_local()
    return job


def fetch_job_log(job: Job, token: str) -> list[str]:
    """Return the last lines that the Job printed.

    Raises `UserError` if they cannot be read.
    """
    with translate_hub_errors("job", "its log cannot be read"):
        return list(HfApi(token=token).fetch_job_logs(job_id=job.id, namespace=job.namespace, tail=LOG_LINES))


def stop_job(folder: RunFolder, token: str) -> Job | None:
    """Cancel the run's Job; the last state that it saved stays.

    Raises `UserError` if the Hub does not cancel it.
    """
    job = refresh_job(folder, token)
    if job is None or not folder.is_remote():
        return job
    with translate_hub_errors("job", "it was not stopped"):
        HfApi(token=token).cancel_job(job_id=job.id, namespace=job.namespace)
    return refresh_job(folder, token)


def _is_settling(folder: RunFolder, info: JobInfo) -> bool:
    """Whether a completed Job has just ended and its LoRA may still be on its way."""
    return (
        info.status.stage == "COMPLETED"
        and not _is_done(folder)
        and info.finished_at is not None
        and datetime.now(UTC) - info.finished_at < SETTLE_TIME
    )


def _explain_failure(folder: RunFolder, job: Job, info: JobInfo | None) -> str | None:
    """Return why the run is not done, and what to do; `None` if there is nothing to report."""
    if _is_done(folder) or job.stage == "CANCELED":
        return None
    steps = run_record.read_run(folder).settings.steps
    kept = max((int(file.stem) for file in folder.states.glob("[!.]*.safetensors")), default=0)
    then = f"saved at step {kept} of {steps}; start it again to continue."
    ran = info.durations.running_secs if info and info.durations else None
    if re.search(r"time[d\s-]*out", job.message, re.IGNORECASE) or (ran or 0) >= job.timeout:
        return f"The Job reached its timeout of {job.timeout // 60} min: {then}"
    return f"The Job ended ({job.stage}: {job.message or 'no reason is given'}): {then}"


def _is_done(folder: RunFolder) -> bool:
    return run_record.find_final_lora(folder) is not None


def _call_unless_gone(call: Callable[[], Answer]) -> Answer | None:
    """Return what the Hub answers, or `None` for something that no longer exists."""
    try:
        return call()
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code != 404:
            raise
        return None
