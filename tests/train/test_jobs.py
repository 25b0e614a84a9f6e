"""A run that a Hugging Face Job trains ends as the run that is trained here.

It is sent, watched, stopped and brought back; its price, its faults, and who has whose token.
"""

import json
import os
import re
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file

from core.schema.errors import UserError
from core.train import jobs, runs
from core.train.bucket_sync import RunCopy, list_run_files
from core.train.trainer.run_folder import RunFolder
from tests.hub.server_jobs import Job, JobService
from tests.hub.server_state import Fault, Hub
from tests.train.parts import assert_same, make_dataset, prepare_run, read_losses, run_training

ANN_TOKEN = "hf_" + "Ann" * 12
BUCKET = "ann/sweetspot-runs"
STEPS = 48  # enough to stop the run in the middle


@pytest.fixture(autouse=True)
def hub(hub_server: Hub) -> Hub:
    """Give Ann a token at the Hub, one whose text is found wherever it is left."""
    hub_server.tokens[ANN_TOKEN] = "ann"
    return hub_server


@pytest.fixture
def job_service(hub: Hub) -> JobService:
    assert isinstance(hub.service, JobService)
    return hub.service


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Create a run that has not begun."""
    return prepare_run(make_dataset(tmp_path / "data"), tmp_path / ("a" * 32), save_every=4)[0]


def edit_run(run: RunFolder, settings: dict[str, Any] | None = None, **fields: Any) -> None:
    table = json.loads(run.run_file.read_text())
    table["settings"] |= settings or {}
    run.run_file.write_text(json.dumps(table | fields))


def make_offer(minutes: float = 2) -> jobs.Offer:
    return jobs.make_offer(jobs.list_hardware(ANN_TOKEN), "cpu-basic", minutes)


def send_job(run: RunFolder) -> jobs.Job:
    return jobs.submit_job(run, make_offer(), "ann/sweetspot", ANN_TOKEN)


def get_only_job(job_service: JobService) -> Job:
    (job,) = job_service.jobs.values()
    return job


def wait_for_job(run: RunFolder) -> jobs.Job:
    """Refresh the run's Job until it has ended, and return it."""
    for _ in range(600):
        job = jobs.refresh_job(run, ANN_TOKEN)
        if not run.is_remote():
            assert job is not None
            return job
        time.sleep(0.5)
    raise AssertionError(f"the Job does not end: {job}")


def test_a_job_trains_what_would_be_trained_here(
    job_service: JobService, run: RunFolder, tmp_path: Path
) -> None:
    straight, _ = prepare_run(make_dataset(tmp_path / "again"), tmp_path / "straight", save_every=4)
    run.run_file.write_bytes(straight.run_file.read_bytes())
    job = send_job(run)
    assert runs.read_status(run).state in ("waiting", "running")
    for take in (runs.start_run, RunFolder.request_stop):
        with pytest.raises(UserError, match="is being trained by a Job; stop the Job first"):
            take(run)
    assert wait_for_job(run).stage == "COMPLETED"
    run_training(straight)
    assert_same(run, straight)
    assert runs.read_status(run).state == "done"
    assert list_run_files(run).keys() == list_run_files(straight).keys(), "LoRAs and states"
    for name, file in list_run_files(run).items():
        if name.startswith("loras/"):
            mine, its = load_file(file), load_file(straight.path / name)
            assert all(torch.equal(mine[key], its[key]) for key in mine.keys() | its.keys())
    log = jobs.fetch_job_log(job, ANN_TOKEN)
    assert any("Saved step=12 file=flow.safetensors" in line for line in log)
    assert len(log) <= jobs.LOG_LINES
    child, _ = runs.fork_run(run, 8, {"rate": 5e-4})
    assert [step for step, *_ in read_losses(child)] == list(range(1, 9))
    # What the Hub received; and nobody has the token.
    spec = get_only_job(job_service).spec
    assert spec["spaceId"] == "ann/sweetspot"
    assert spec["command"] == ["python", "-m", "core.train", "--resume", jobs.MOUNT_PATH, "--copied"]
    assert spec["timeoutSeconds"] == make_offer().timeout
    assert spec["volumes"] == [
        {
            "type": "bucket",
            "source": BUCKET,
            "mountPath": jobs.MOUNT_PATH,
            "path": run.name,
            "readOnly": False,
        }
    ]
    assert job_service.buckets[BUCKET].private
    assert "secrets" not in spec
    left = json.dumps(spec).encode() + b"".join(
        file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()
    )
    assert ANN_TOKEN.encode() not in left
    assert json.loads(run.job_file.read_text())["id"] == job.id


def test_a_job_that_is_stopped_goes_on_here(job_service: JobService, run: RunFolder, tmp_path: Path) -> None:
    edit_run(run, settings={"steps": STEPS})
    straight = RunFolder(tmp_path / "straight")
    for name, file in list_run_files(run).items():
        (straight.path / name).parent.mkdir(parents=True, exist_ok=True)
        (straight.path / name).write_bytes(file.read_bytes())
    send_job(run)
    while runs.read_status(run).step < 4:
        time.sleep(0.1 if get_only_job(job_service).folder.joinpath("state").exists() else 0.5)
        jobs.refresh_job(run, ANN_TOKEN)
    seen = runs.read_status(run)
    assert (seen.state, bool(seen.checkpoints), list(run.states.glob("*"))) == ("running", True, []), (
        "states are brought at the end"
    )
    assert all((run.loras / name).exists() for name in seen.checkpoints)
    jobs.stop_job(run, ANN_TOKEN)
    job = wait_for_job(run)
    status = runs.read_status(run)
    assert (job.stage, status.state, status.error) == ("CANCELED", "stopped", None)
    assert 4 <= status.step < STEPS
    run_training(run)
    run_training(straight)
    assert_same(run, straight)


LOSS = {"kind": "loss", "loss": 0.5, "t": 1.0, "memory": 1}


def test_what_is_written_back_is_whole_files(run: RunFolder, tmp_path: Path) -> None:
    """A mounted bucket takes nothing else: each write replaces a file by a new one."""
    run.append_events([{**LOSS, "step": 0}])
    os.link(run.events_file, tmp_path / "before")
    copy = RunCopy(run, tmp_path / "copy")
    copy.folder.save_state(1, {}, {}, keep=False)
    copy.folder.append_events([{**LOSS, "step": 1}])
    copy.write_back_if_due()
    copy.folder.save_state(2, {}, {}, keep=False)
    copy.folder.append_events([{**LOSS, "step": 2}])
    copy.write_back_if_due()
    assert [line["step"] for line in run.read_events()] == [0, 1, 2]
    assert [file.name for file in run.states.iterdir()] == ["000002.safetensors"]
    assert (tmp_path / "before").read_text().count("\n") == 1
    copy.folder.append_events([{**LOSS, "step": 3}])
    copy.write_back_if_due()
    assert len(run.read_events()) == 3, "nothing new but a line, and it is not time"
    copy.write_back()
    assert len(run.read_events()) == 4


def test_the_price_is_known_before(hub: Hub) -> None:
    there = jobs.list_hardware(ANN_TOKEN)
    assert [each.describe() for each in there] == [
        "CPU Basic (16 GB), $0.01 an hour",
        "1x Nvidia L4 (24 GB), $0.80 an hour",
    ]
    assert (
        jobs.make_offer(there, "l4x1", 27).describe()
        == "1x Nvidia L4 (24 GB): about $0.40, at most $1.20 (its timeout, 90 min)"
    )
    for name, minutes, sentence in [
        ("h900", 1, r"hardware: 'h900' is not available. Use one of: cpu-basic, l4x1\."),
        (None, 1, "hardware: 'None'"),
        *[
            ("l4x1", minutes, r"minutes: .* is not valid. Say how many the training may take, up to 1440\.")
            for minutes in (None, 0, -1, 1e9, float("nan"))
        ],
    ]:
        with pytest.raises(UserError, match=sentence):
            jobs.make_offer(there, name, minutes)
    assert {each.path for each in hub.requests} == {"/api/jobs/hardware"}, "nothing was started"


@pytest.mark.parametrize(
    ("where", "kind", "sentence"),
    [
        (
            "GET /api/whoami-v2",
            "401",
            "job: the run was not sent: Hugging Face no longer accepts the login; log in again.",
        ),
        (
            "POST /api/buckets/",
            "403",
            "job: the run was not sent: the login has no permission for that: "
            "on a Space it needs the scope jobs",
        ),
        ("GET .*/xet-write-token", "403", "job: the run was not sent: the login has no permission for that"),
        ("POST .*/batch", "429", "job: the run was not sent: Hugging Face is limiting requests"),
        ("POST /api/jobs/ann", "402", "job: it was not started: the account has no credit for Jobs"),
        (
            "POST /api/jobs/ann",
            "403",
            "job: it was not started: the login has no permission for that: "
            "on a Space it needs the scope jobs",
        ),
        ("POST /api/jobs/ann", "429", "job: it was not started: Hugging Face is limiting requests"),
        ("POST /api/jobs/ann", "503", "job: it was not started: Hugging Face answered 503; try again."),
        (
            "POST /api/jobs/ann",
            "cut",
            "job: it was not started: the answer of Hugging Face was lost; "
            "check your Jobs there before you send it again.",
        ),
    ],
)
def test_a_fault_is_one_sentence_and_the_run_stays_here(
    hub: Hub, job_service: JobService, run: RunFolder, where: str, kind: Fault, sentence: str
) -> None:
    job_service.is_full = True
    hub.fail(where, kind, times=20)
    with pytest.raises(UserError) as error:
        send_job(run)
    assert str(error.value).startswith(sentence), f"{error.value!r} from {error.value.__cause__!r}"
    told = "".join(traceback.format_exception(error.value))
    assert ANN_TOKEN not in told
    assert not run.is_remote()
    assert not run.job_file.exists()
    hub.faults.clear()
    assert send_job(run).stage == "SCHEDULING", "pressing again sends it"


def test_who_may_not_and_what_may_not(hub: Hub, job_service: JobService, run: RunFolder) -> None:
    job_service.is_full = True
    for space in ("", "sweetspot", "ann/sweet spot", "https://elsewhere/ann/sweetspot", "ann/../x"):
        with pytest.raises(UserError, match=r"space: .* is not valid. Name the Space to run as owner/name\."):
            jobs.submit_job(run, make_offer(), space, ANN_TOKEN)
    HfApi(token=ANN_TOKEN).create_bucket(BUCKET)
    with pytest.raises(UserError, match=f"bucket: {BUCKET} is public, so your images would be"):
        send_job(run)
    assert not job_service.buckets[BUCKET].files
    job_service.buckets[BUCKET].private = True
    send_job(run)
    for ask in (jobs.refresh_job, jobs.stop_job):
        with pytest.raises(
            UserError, match="job: its status cannot be read: Hugging Face no longer accepts the login"
        ):
            ask(run, "hf_nobody")
    assert jobs.stop_job(run, ANN_TOKEN) is not None
    assert runs.read_status(run).state == "stopped"
    assert get_only_job(job_service).stage == "CANCELED"


@pytest.mark.parametrize(
    ("stage", "message", "sentence"),
    [
        (
            "ERROR",
            "exit code 137",
            "The Job ended (ERROR: exit code 137): saved at step 4 of 12; start it again to continue.",
        ),
        (
            "ERROR",
            "Job timed out",
            "The Job reached its timeout of 15 min: saved at step 4 of 12; start it again to continue.",
        ),
        (
            "DELETED",
            None,
            "The Job ended (DELETED: no reason is given): saved at step 4 of 12; start it again to continue.",
        ),
        (
            "gone",
            None,
            "The Job ended (DELETED: it no longer exists on Hugging Face.): saved at step 4 of 12; "
            "start it again to continue.",
        ),
    ],
)
def test_a_job_that_ends_badly_says_why(
    job_service: JobService, run: RunFolder, tmp_path: Path, stage: str, message: str | None, sentence: str
) -> None:
    job_service.is_full = True
    run.save_state(4, {}, {}, keep=True)
    send_job(run)
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png")
    HfApi(token=ANN_TOKEN).batch_bucket_files(
        BUCKET, add=[(tmp_path / "made.png", f"{run.name}/previews/000004-0-1.png")]
    )
    get_only_job(job_service).end(stage, message)
    if stage == "gone":
        job_service.jobs.clear()
    wait_for_job(run)
    assert (run.previews / "000004-0-1.png").read_bytes() == (tmp_path / "made.png").read_bytes(), (
        "what it made is here all the same"
    )
    status = runs.read_status(run)
    assert (status.state, status.error) == ("failed", sentence)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.jsonl", b'{"kind": "saved", "step": 1, "file": "../../../secret", "t": 1, "memory": 1}\n'),
        ("events.jsonl", b'{"kind": "loss", "step": 1, "t": 1, "memory": 1}\n'),
        ("events.jsonl", b'{"kind": "saved"'.ljust(100) + b"\n"),
        ("failure", b"x" * 2000),
        ("previews/000001-0-1.png", b"<svg/>"),
    ],
)
def test_what_no_run_makes_is_not_taken(
    job_service: JobService, run: RunFolder, tmp_path: Path, name: str, content: bytes
) -> None:
    """Anyone with access to the bucket can write anything into it."""
    job_service.is_full = True
    send_job(run)
    good = {"kind": "validation", "step": 1, "loss": 0.5, "t": 1.0, "memory": 1}
    files = {
        "events.jsonl": json.dumps(good).encode() + b"\n",
        "loras/a.safetensors": b"1",
        "run.json": b"{}",
        "../b": b"2",
        "state/a": b"3",
        name: content,
    }
    HfApi(token=ANN_TOKEN).batch_bucket_files(
        BUCKET, add=[(data, f"{run.name}/{path}") for path, data in files.items()]
    )
    before = {
        file: file.read_bytes()
        for file in tmp_path.rglob("*")
        if file.is_file() and job_service.folder not in file.parents and file.name != "waiting"
    }
    get_only_job(job_service).end("CANCELED")
    with pytest.raises(
        UserError, match=rf"job: {re.escape(name)} in its bucket is not a file that a run makes\."
    ):
        jobs.refresh_job(run, ANN_TOKEN)
    after = {
        file: file.read_bytes()
        for file in tmp_path.rglob("*")
        if file.is_file() and job_service.folder not in file.parents
    }
    assert after == before


def test_a_preview_that_would_fill_the_memory_is_not_taken(
    job_service: JobService, run: RunFolder, tmp_path: Path
) -> None:
    job_service.is_full = True
    send_job(run)
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    HfApi(token=ANN_TOKEN).batch_bucket_files(
        BUCKET, add=[(tmp_path / "large.png", f"{run.name}/previews/000001-0-1.png")]
    )
    get_only_job(job_service).end("CANCELED")
    with pytest.raises(UserError, match="is not a file that a run makes"):
        jobs.refresh_job(run, ANN_TOKEN)
