"""A run that a Job trains is the run that is trained here: sent, watched, stopped, brought back; its price, its faults, and whose token is where."""

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

from core.train import jobs, offers, runs
from core.train.folder import Folder
from core.train.travel import Copy, travelling
from core.types import UserError
from tests.publish.conftest import hub_server  # noqa: F401  (a fixture)
from tests.publish.hub import Hub, Kind
from tests.publish.hub_jobs import Job, Yard
from tests.train.parts import assert_same, dataset, followed, losses, prepared

ANN = "hf_" + "Ann" * 12
BUCKET = "ann/sweetspot-runs"
STEPS = 48  # of a run that is stopped in the middle


@pytest.fixture(autouse=True)
def hub(hub_server: Hub) -> Hub:  # noqa: F811
    """Where Ann has a token that is found wherever it is left."""
    hub_server.tokens[ANN] = "ann"
    return hub_server


@pytest.fixture
def yard(hub: Hub) -> Yard:
    assert isinstance(hub.yard, Yard)
    return hub.yard


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """One that is set up."""
    return prepared(dataset(tmp_path / "data"), tmp_path / ("a" * 32), save_every=4)[0]


def changed(run: Folder, settings: dict[str, Any] | None = None, **fields: Any) -> None:
    table = json.loads(run.run.read_text())
    table["settings"] |= settings or {}
    run.run.write_text(json.dumps(table | fields))


def offered(minutes: float = 2) -> offers.Offer:
    return offers.offer(offers.hardware(ANN), "cpu-basic", minutes)


def sent(run: Folder) -> jobs.Job:
    return jobs.sent(run, offered(), "ann/sweetspot", ANN)


def only(yard: Yard) -> Job:
    (job,) = yard.jobs.values()
    return job


def back(run: Folder) -> jobs.Job:
    """Look at its Job until it has ended."""
    for _ in range(600):
        job = jobs.looked(run, ANN)
        if not run.is_away():
            assert job is not None
            return job
        time.sleep(0.5)
    raise AssertionError(f"the Job does not end: {job}")


def test_a_job_trains_what_would_be_trained_here(yard: Yard, run: Folder, tmp_path: Path) -> None:
    straight, _ = prepared(dataset(tmp_path / "again"), tmp_path / "straight", save_every=4)
    run.run.write_bytes(straight.run.read_bytes())
    job = sent(run)
    assert runs.status(run).state in ("waiting", "running")
    for take in (runs.start, Folder.ask_to_stop):
        with pytest.raises(UserError, match="is being trained by a Job; stop the Job first"):
            take(run)
    assert back(run).stage == "COMPLETED"
    followed(straight)
    assert_same(run, straight)
    assert runs.status(run).state == "done"
    assert travelling(run).keys() == travelling(straight).keys(), "LoRAs and states"
    for name, file in travelling(run).items():
        if name.startswith("loras/"):
            mine, its = load_file(file), load_file(straight.path / name)
            assert all(torch.equal(mine[key], its[key]) for key in mine.keys() | its.keys())
    log = jobs.log(job, ANN)
    assert any("Saved step=12 file=flow.safetensors" in line for line in log)
    assert len(log) <= jobs.LINES
    child, _ = runs.forked(run, 8, {"rate": 5e-4})
    assert [step for step, *_ in losses(child)] == list(range(1, 9))
    # What the Hub was told, and who has the token: nobody.
    spec = only(yard).spec
    assert spec["spaceId"] == "ann/sweetspot"
    assert spec["command"] == ["python", "-m", "core.train", "--resume", jobs.MOUNT, "--copied"]
    assert spec["timeoutSeconds"] == offered().timeout
    assert spec["volumes"] == [{"type": "bucket", "source": BUCKET, "mountPath": jobs.MOUNT, "path": run.name, "readOnly": False}]
    assert yard.buckets[BUCKET].private
    assert "secrets" not in spec
    left = json.dumps(spec).encode() + b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert ANN.encode() not in left
    assert json.loads(run.job.read_text())["id"] == job.id


def test_a_job_that_is_stopped_goes_on_here(yard: Yard, run: Folder, tmp_path: Path) -> None:
    changed(run, settings={"steps": STEPS})
    straight = Folder(tmp_path / "straight")
    for name, file in travelling(run).items():
        (straight.path / name).parent.mkdir(parents=True, exist_ok=True)
        (straight.path / name).write_bytes(file.read_bytes())
    sent(run)
    while runs.status(run).step < 4:
        time.sleep(0.1 if only(yard).folder.joinpath("state").exists() else 0.5)
        jobs.looked(run, ANN)
    seen = runs.status(run)
    assert (seen.state, bool(seen.checkpoints), list(run.states.glob("*"))) == ("running", True, []), "states are brought at the end"
    assert all((run.loras / name).exists() for name in seen.checkpoints)
    jobs.stopped(run, ANN)
    job = back(run)
    status = runs.status(run)
    assert (job.stage, status.state, status.error) == ("CANCELED", "stopped", None)
    assert 4 <= status.step < STEPS
    followed(run)
    followed(straight)
    assert_same(run, straight)


def test_what_is_written_back_is_whole_files(run: Folder, tmp_path: Path) -> None:
    """A mounted bucket takes no other: what was there is another file than what comes."""
    run.say([{"kind": "loss", "step": 0}])
    os.link(run.events, tmp_path / "before")
    copy = Copy(run, tmp_path / "copy")
    copy.folder.save_state(1, {}, {}, keep=False)
    copy.folder.say([{"kind": "loss", "step": 1}])
    copy.keep_up()
    copy.folder.save_state(2, {}, {}, keep=False)
    copy.folder.say([{"kind": "loss", "step": 2}])
    copy.keep_up()
    assert [line["step"] for line in run.said()] == [0, 1, 2]
    assert [file.name for file in run.states.iterdir()] == ["000002.safetensors"]
    assert (tmp_path / "before").read_text().count("\n") == 1
    copy.folder.say([{"kind": "loss", "step": 3}])
    copy.keep_up()
    assert len(run.said()) == 3, "nothing new but a line, and it is not time"
    copy.write_back()
    assert len(run.said()) == 4


def test_the_price_is_known_before(hub: Hub) -> None:
    there = offers.hardware(ANN)
    assert [each.line() for each in there] == ["CPU Basic (16 GB), $0.01 an hour", "1x Nvidia L4 (24 GB), $0.80 an hour"]
    assert offers.offer(there, "l4x1", 27).line() == "1x Nvidia L4 (24 GB): about $0.40, at most $1.20 (its timeout, 90 min)"
    for name, minutes, sentence in [
        ("h900", 1, r"hardware: 'h900' cannot be had; it takes cpu-basic, l4x1\."),
        (None, 1, "hardware: 'None'"),
        *[("l4x1", minutes, r"minutes: .* is not allowed; say how many the training may take, up to 1440\.") for minutes in (None, 0, -1, 1e9, float("nan"))],
    ]:
        with pytest.raises(UserError, match=sentence):
            offers.offer(there, name, minutes)
    assert {each.path for each in hub.asked} == {"/api/jobs/hardware"}, "nothing was started"


@pytest.mark.parametrize(
    ("where", "kind", "sentence"),
    [
        ("GET /api/whoami-v2", "401", "job: the run was not sent: the Hub does not know the login any more; log in again."),
        ("POST /api/buckets/", "403", "job: the run was not sent: the login may not do that: on a Space it needs the scope jobs"),
        ("GET .*/xet-write-token", "403", "job: the run was not sent: the login may not do that"),
        ("POST .*/batch", "429", "job: the run was not sent: the Hub asks to wait"),
        ("POST /api/jobs/ann", "402", "job: it was not started: the account has no credit for Jobs"),
        ("POST /api/jobs/ann", "403", "job: it was not started: the login may not do that: on a Space it needs the scope jobs"),
        ("POST /api/jobs/ann", "429", "job: it was not started: the Hub asks to wait"),
        ("POST /api/jobs/ann", "503", "job: it was not started: the Hub answered 503; try again."),
        ("POST /api/jobs/ann", "cut", "job: it was not started: the Hub's answer was lost; look at your Jobs there before you send it again."),
    ],
)
def test_a_fault_is_one_sentence_and_the_run_stays_here(hub: Hub, yard: Yard, run: Folder, where: str, kind: Kind, sentence: str) -> None:
    yard.full = True
    hub.fail(where, kind, times=20)
    with pytest.raises(UserError) as error:
        sent(run)
    assert str(error.value).startswith(sentence), f"{error.value!r} from {error.value.__cause__!r}"
    told = "".join(traceback.format_exception(error.value))
    assert ANN not in told
    assert not run.is_away()
    assert not run.job.exists()
    hub.faults.clear()
    assert sent(run).stage == "SCHEDULING", "pressing again sends it"


def test_who_may_not_and_what_may_not(hub: Hub, yard: Yard, run: Folder) -> None:
    yard.full = True
    for space in ("", "sweetspot", "ann/sweet spot", "https://elsewhere/ann/sweetspot", "ann/../x"):
        with pytest.raises(UserError, match=r"space: .* is not allowed; name the Space whose image trains, as owner/name\."):
            jobs.sent(run, offered(), space, ANN)
    HfApi(token=ANN).create_bucket(BUCKET)
    with pytest.raises(UserError, match=f"bucket: {BUCKET} is public, and your pictures would be"):
        sent(run)
    assert not yard.buckets[BUCKET].files
    yard.buckets[BUCKET].private = True
    sent(run)
    for ask in (jobs.looked, jobs.stopped):
        with pytest.raises(UserError, match="job: it cannot be looked at: the Hub does not know the login any more"):
            ask(run, "hf_nobody")
    assert jobs.stopped(run, ANN) is not None
    assert runs.status(run).state == "stopped"
    assert only(yard).stage == "CANCELED"


@pytest.mark.parametrize(
    ("stage", "message", "sentence"),
    [
        ("ERROR", "exit code 137", "The Job ended (ERROR: exit code 137): saved at step 4 of 12; start it again to go on."),
        ("ERROR", "Job timed out", "The Job reached its timeout of 15 min: saved at step 4 of 12; start it again to go on."),
        ("DELETED", None, "The Job ended (DELETED: no reason is given): saved at step 4 of 12; start it again to go on."),
        ("gone", None, "The Job ended (DELETED: it is gone from the Hub.): saved at step 4 of 12; start it again to go on."),
    ],
)
def test_a_job_that_ends_badly_says_why(yard: Yard, run: Folder, tmp_path: Path, stage: str, message: str | None, sentence: str) -> None:
    yard.full = True
    run.save_state(4, {}, {}, keep=True)
    sent(run)
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png")
    HfApi(token=ANN).batch_bucket_files(BUCKET, add=[(tmp_path / "made.png", f"{run.name}/previews/000004-0-1.png")])
    only(yard).end(stage, message)
    if stage == "gone":
        yard.jobs.clear()
    back(run)
    assert (run.previews / "000004-0-1.png").read_bytes() == (tmp_path / "made.png").read_bytes(), "what it made is here all the same"
    status = runs.status(run)
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
def test_what_no_run_makes_is_not_taken(yard: Yard, run: Folder, tmp_path: Path, name: str, content: bytes) -> None:
    """Whoever has the bucket may write anything into it."""
    yard.full = True
    sent(run)
    good = {"kind": "validation", "step": 1, "loss": 0.5, "t": 1.0, "memory": 1}
    files = {"events.jsonl": json.dumps(good).encode() + b"\n", "loras/a.safetensors": b"1", "run.json": b"{}", "../b": b"2", "state/a": b"3", name: content}
    HfApi(token=ANN).batch_bucket_files(BUCKET, add=[(data, f"{run.name}/{path}") for path, data in files.items()])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and yard.folder not in file.parents and file.name != "waiting"}
    only(yard).end("CANCELED")
    with pytest.raises(UserError, match=rf"job: {re.escape(name)} in its bucket is nothing that a run makes\."):
        jobs.looked(run, ANN)
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and yard.folder not in file.parents}
    assert after == before


def test_a_preview_that_would_fill_the_memory_is_not_taken(yard: Yard, run: Folder, tmp_path: Path) -> None:
    yard.full = True
    sent(run)
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    HfApi(token=ANN).batch_bucket_files(BUCKET, add=[(tmp_path / "large.png", f"{run.name}/previews/000001-0-1.png")])
    only(yard).end("CANCELED")
    with pytest.raises(UserError, match="is nothing that a run makes"):
        jobs.looked(run, ANN)
