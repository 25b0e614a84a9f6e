"""Runs as people have them: processes of their own that are killed, stopped, resumed, queued and forked; bad machines; bad choices."""

import fcntl
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from core import generate as generation
from core import gpu
from core.data import dataset as datasets
from core.events import Note, Saved
from core.train import runs
from core.train.folder import Folder
from core.train.loop import train
from core.train.settings import recipes
from core.types import UserError
from tabs import watching
from tests.train.parts import CAPTIONS, SMALL, assert_same, dataset, followed, losses, prepared, set_up

ROOT = Path(__file__).resolve().parent.parent.parent
KILLED = """if True:
    import os, random, signal, sys, time
    from pathlib import Path
    import torch
    from core.train.folder import Folder
    from core.train.loop import train
    torch.set_num_threads(1)  # so that the forked ones have no threads to miss

    def begun(folder):
        child = os.fork()
        if child:
            return child
        with folder.owned():
            for _ in train(folder):
                pass
        os._exit(0)

    kills, chance = int(sys.argv[1]), random.Random(7)
    straight, *broken = [Folder(Path(path)) for path in sys.argv[2:]]
    assert os.waitpid(begun(straight), 0)[1] == 0
    for folder in broken:
        killed = 0
        for _ in range(kills):
            said, child = len(folder.said()), begun(folder)
            while len(folder.said()) < said + 2:  # it goes on, wherever it stood
                time.sleep(0.002)
            time.sleep(chance.random() * 0.15)
            os.kill(child, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            folder.state()  # whole, or it raises
        print(killed)
        assert os.waitpid(begun(folder), 0)[1] == 0
"""
"""Goes straight through the first run; kills the others again and again, then lets them end."""


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runs of a test lie, for its processes, too."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("SWEETSPOT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "runs"


def command(folder: Folder) -> list[str]:
    return [sys.executable, "-m", "core.train", "--resume", str(folder.path)]


def ended(folder: Folder, states: tuple[str, ...] = ("done", "failed", "stopped"), seconds: float = 120) -> runs.Status:
    """The run once it has come to one of these states."""
    end = time.monotonic() + seconds
    while (found := runs.status(folder)).state not in states:
        assert time.monotonic() < end, f"{found} after {seconds} s; {folder.log.read_text() if folder.log.exists() else 'no log'}"
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_case_20_a_run_that_is_killed_at_random_points_ends_as_one_that_is_not(tmp_path: Path, kills: int) -> None:
    """SIGKILL most of the times while it saves, over two runs that are resumed so many times each: the same losses and weights, bit for bit."""
    data = dataset(tmp_path / "data")
    steps = {"steps": 40, "batch": 1, "save_every": 1, "optimizer": "AdamW", **SMALL}
    straight, *broken = (set_up(data, **steps) for _ in range(3))
    script = [sys.executable, "-c", KILLED, str(kills), straight.path, *(folder.path for folder in broken)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(kills)] * 2, f"processes that were killed before they were done: {done.stdout}"
    for folder in broken:
        assert_same(straight, folder)
        assert (straight.loras / "flow.safetensors").read_bytes()[-1000:] == (folder.loras / "flow.safetensors").read_bytes()[-1000:]
        assert not list(folder.path.rglob(".*.tmp"))


def test_stop_resume_and_a_queue(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    first, second = set_up(data, steps=400), set_up(data, steps=3)
    runs.start(first)
    assert runs.status(first).state in ("waiting", "running"), "a run has an owner from the moment that it is started"
    ended(first, ("running",))
    runs.start(second)
    while not losses(first):
        time.sleep(0.1)
    assert runs.status(second).state == "waiting"
    first.ask_to_stop()
    stopped = ended(first)
    assert stopped.state == "stopped"
    assert 0 < stopped.step < 400
    assert ended(second).state == "done", "the next in the queue did not begin"
    runs.start(first)
    ended(first, ("running",))
    while len(losses(first)) <= stopped.step:
        time.sleep(0.1)
    assert losses(first)[stopped.step][0] == stopped.step + 1, "it went on at another step"
    first.ask_to_stop()
    ended(first)


def test_who_looks_at_a_run_is_not_taken_for_its_trainer(tmp_path: Path) -> None:
    """Many connections that ask for `/health` or its state again and again: who trains it gets it all the same, and they see nobody else."""
    folder, over, seen = set_up(dataset(tmp_path / "data")), threading.Event(), list[bool]()

    def looks() -> None:
        while not over.is_set():
            seen.append(folder.is_owned())

    lookers = [threading.Thread(target=looks) for _ in range(8)]
    for looker in lookers:
        looker.start()
    try:
        time.sleep(0.2)
        assert not any(seen), "those who look see each other"
        for _ in range(20):
            with folder.owned():
                assert folder.is_owned()
        with folder.owned(), pytest.raises(UserError, match="is being trained already"):
            runs.start(folder)
    finally:
        over.set()
        for looker in lookers:
            looker.join()


def test_a_fork_goes_on_from_a_checkpoint_with_its_own_settings(tmp_path: Path) -> None:
    parent = set_up(dataset(tmp_path / "data"), steps=8, save_every=4)
    followed(parent)
    child, run = runs.forked(parent, 4, {"rate": 2e-3, "steps": 10})
    assert run.parent == "flow@4"
    followed(child)
    assert losses(child)[:4] == losses(parent)[:4]
    assert losses(child)[4][1] == losses(parent)[4][1], "the step after the fork begins from the parent's weights"
    assert losses(child)[4][2] > 1.5 * losses(parent)[4][2], "the new rate counts at once"
    assert len(losses(child)) == 10
    with pytest.raises(UserError, match=r"step: 5 is not kept; it takes 4, 8\."):
        runs.forked(parent, 5, {})
    with pytest.raises(UserError, match="rank: 2 would be another LoRA"):
        runs.forked(parent, 4, {"rank": 2})
    for steps in (3, 4):
        with pytest.raises(UserError, match=rf"steps: {steps} are not beyond step 4, from which the fork goes on; it takes more\."):
            runs.forked(parent, 4, {"steps": steps})


def test_stop_is_heeded_while_pictures_are_prepared(tmp_path: Path) -> None:
    folder = set_up(dataset(tmp_path / "data"))
    folder.ask_to_stop()
    assert not followed(folder)
    assert len(list(folder.latents.iterdir())) == 1, "of four pictures"
    assert runs.status(folder).state == "stopped"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (torch.OutOfMemoryError("no memory"), "this machine ran out of memory; preview_every = 0 makes none."),
        (RuntimeError("a bug"), "they broke off (RuntimeError)."),
    ],
    ids=["memory", "bug"],
)
def test_no_preview_ends_a_training(error: Exception, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise error

    folder = set_up(dataset(tmp_path / "data"), steps=4, preview_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(generation, "denoise", fails)
        followed(folder)
    status = runs.status(folder)
    assert (status.state, status.previews) == ("done", ())
    assert status.notes == (f"Previews of step 2 are left out: {why}", f"Previews of step 4 are left out: {why}")
    assert "preview" in sentence(folder).lower()


def test_stop_is_heeded_while_previews_are_made(tmp_path: Path) -> None:
    folder = set_up(dataset(tmp_path / "data"), steps=8, preview_every=4, save_every=4)
    with folder.owned():
        events = train(folder)
        while not isinstance(gpu.lane(next, events), Saved):
            pass
        folder.ask_to_stop()
        rest = gpu.lane(list, events)
    assert [type(event) for event in rest] == [Note]
    assert (folder.last(), runs.status(folder).notes) == (4, ("Previews of step 4 are left out: the run was asked to stop.",))


def test_a_loss_that_is_no_number_is_said_and_the_last_state_stays(tmp_path: Path) -> None:
    late = {"scheduler": "piecewise_constant", "step_rules": "0.0001:4,1", "rate": 10.0, "clip": 0}  # harmless up to step 4
    folder = set_up(dataset(tmp_path / "data"), steps=50, save_every=4, **late)
    followed(folder)
    status = runs.status(folder)
    assert status.state == "failed"
    assert re.match(rf"The (loss|gradient) became (nan|inf) at step {status.step + 1}: lower rate \(10\)", status.error or ""), status.error
    found = folder.state()
    assert found is not None
    assert found[1]["values"].isfinite().all(), "a state with NaN was kept"
    child, _ = runs.forked(folder, 4, {"rate": 1e-4, "steps": 6, "scheduler": "constant", "step_rules": ""})
    followed(child)
    assert runs.status(child).state == "done"


def test_case_25_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        folder, _ = prepared(dataset(tmp_path / "data"), disk / "run", steps=12, save_every=2)
        followed(folder, 5)
        ballast = disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(2**23))
        followed(folder)
        status = runs.status(folder)
        assert (status.state, status.error) == ("failed", "The disk is full: make room and go on; the last state stays.")
        ballast.unlink()
        followed(folder)
        straight, _ = prepared(datasets.load(folder.dataset), tmp_path / "straight", steps=12, save_every=2)
        followed(straight)
        assert_same(straight, folder)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_run_whose_process_is_killed_is_not_told_as_stopped(tmp_path: Path) -> None:
    folder = set_up(dataset(tmp_path / "data"), steps=2000, save_every=5)
    assert "nothing is lost" not in sentence(folder), "it was never begun"
    runs.start(folder)
    while folder.last() < 5:
        time.sleep(0.05)
    subprocess.run(["pkill", "-KILL", "-f", f"resume {folder.path}"], check=True)
    told = ended(folder)
    assert told.state == "failed"
    assert told.error == (
        f"Its process was killed, or ran out of memory, and could not say so. Resume it, and it goes on from step {folder.last()}. Its log is {folder.log}."
    )
    assert "nothing is lost" not in sentence(folder)
    folder.go_on()
    folder.ask_to_stop()
    followed(folder)
    assert runs.status(folder).state == "stopped"
    assert "nothing is lost" in sentence(folder)


def test_an_error_that_nobody_foresaw_is_told_with_the_place_of_its_log(tmp_path: Path) -> None:
    folder = set_up(dataset(tmp_path / "data"), steps=3)
    folder.states.mkdir()
    torn = folder.states / "000001.safetensors"
    torn.write_bytes(b"torn")
    runs.start(folder)
    told = ended(folder)
    assert told.state == "failed"
    assert re.fullmatch(rf"It broke off \(SafetensorError: .*\)\. The last state stays; the log is {folder.log}\.", told.error or ""), told.error
    assert "Traceback" in folder.log.read_text()
    torn.unlink()
    followed(folder)
    assert runs.status(folder).state == "done"
    with pytest.raises(UserError, match=r"is done, 3 of 3 steps; fork it"):
        runs.start(folder)


def sentence(folder: Folder) -> str:
    """What the page says of it."""
    return str(watching.watched(folder.name, None)[0])


def terminal(folder: Folder) -> subprocess.Popen[str]:
    """`--resume` in a terminal, its lines to be read as they come."""
    return subprocess.Popen([sys.executable, "-m", "core.train", "--resume", folder.path], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_terminal_says_that_it_waits_stops_by_ctrl_c_and_goes_on(tmp_path: Path) -> None:
    folder = set_up(dataset(tmp_path / "data"), steps=4000, save_every=4000)
    with (runs.RUNS / "turn").open("w") as lock:  # as another run that trains
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = terminal(folder)
        assert process.stdout is not None
        assert process.stdout.readline() == "Waiting for its turn: another run trains.\n"
        assert runs.status(folder).state == "waiting"
    stopped(folder, process, signal.SIGINT)
    stopped(folder, terminal(folder), signal.SIGTERM)


def stopped(folder: Folder, process: subprocess.Popen[str], number: int) -> None:
    """Let the run make another step, then signal its process: it ends saved, and says so."""
    begin = folder.last()
    while (losses(folder) or [(0,)])[-1][0] <= begin:
        assert process.poll() is None, "it ended without a step"
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert said.endswith(f"Stopped at step {folder.last()}; --resume goes on from there.\n")
    assert (process.returncode, runs.status(folder).state) == (0, "stopped")
    assert folder.last() > begin


def test_the_example_run_from_a_terminal_and_what_a_terminal_gets_wrong(tmp_path: Path) -> None:
    example = (ROOT / "presets" / "training" / "example_run.toml").read_text()
    quick = tmp_path / "quick.toml"
    quick.write_text(example + "steps = 2\npreview_every = 0\n")
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-m", "core.train", quick, "--out", out], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Saved step=2 file=airbrush.safetensors" in done.stdout
    done = subprocess.run([sys.executable, "-m", "core.train", "--resume", out], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"The run is done, 2 of 2 steps: {out / 'loras' / 'airbrush.safetensors'}. Fork it to train further.\n")
    for said, sentence in (
        ([quick, "--out", out], "is there already; resume it"),
        (["--resume", tmp_path / "none"], "holds no run"),
        ([tmp_path / "none.toml", "--out", tmp_path / "x"], "is not there"),
    ):
        done = subprocess.run([sys.executable, "-m", "core.train", *said], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert sentence in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    """`accelerate launch` on two CPUs: each has half of every batch."""
    data = dataset(tmp_path / "data", sizes=((128, 128),))
    alone, both = set_up(data, batch=4, steps=6), set_up(data, batch=4, steps=6)
    followed(alone)
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    launch += ["--main_process_port", "0", "-m", "core.train", "--resume", str(both.path)]
    done = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    for mine, its in zip(losses(alone), losses(both), strict=True):
        assert mine == pytest.approx(its, rel=1e-4)


@pytest.mark.parametrize("recipe", [name for name in recipes() if name != "nano-quick"])
def test_every_recipe_makes_its_first_steps(recipe: str, tmp_path: Path) -> None:
    captions = CAPTIONS * 3
    data = dataset(tmp_path / "data", captions)
    run, _ = runs.settled(data, recipe, trigger="flow", overrides={"steps": 2, "preview_every": 0, "warmup": 0})
    folder = runs.prepared(run, data, tmp_path / "run")
    followed(folder)
    assert runs.status(folder).state == "done"


def test_what_makes_no_sense_is_said_with_its_number(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", CAPTIONS[:2])
    _, said = runs.settled(data, "nano-quick", overrides={"steps": 600, "alpha": 9.0, "rate": 5e-3, "warmup": 700})
    assert [line.partition(":")[0] for line in said] == ["alpha", "steps", "rate", "warmup"]
    assert "600 steps of 4 on 2 pictures show each 1200 times" in said[1]
    assert "0.005 is 10 times the recipe's 0.0005" in said[2]


def test_a_text_rate_that_prodigy_cannot_use_is_said(tmp_path: Path) -> None:
    asked = {"optimizer": "Prodigy", "rate": 1.0, "text_encoders": True}
    _, said = runs.settled(dataset(tmp_path / "data"), "nano-quick", trigger="flow", overrides=asked)
    assert "text_rate: Prodigy has one rate for all that it trains; 5e-05 is not used, the text encoders take rate, 1." in said
    _, said = runs.settled(dataset(tmp_path / "same"), "nano-quick", trigger="flow", overrides={**asked, "text_rate": 1.0})
    assert not [line for line in said if line.startswith("text_rate")]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"recipe": "none"}, "recipe: 'none' is unknown; it takes nano-quick"),
        ({"model": "none"}, "model: 'none' is unknown"),
        ({"overrides": {"rank": 0}}, "overrides: rank: 0 is not allowed; it takes a whole number from 1 to 256."),
        ({"overrides": {"rnk": 1}}, "overrides: 'rnk' is not a setting; the settings are accumulation,"),
        ({"overrides": {"optimizer": "SGD"}}, "overrides: optimizer: 'SGD' is unknown; it takes AdamW, "),
        ({"overrides": {"ranks": "OUT9=1"}}, "overrides: ranks: 'OUT9=1' is not allowed"),
        ({"overrides": {"scheduler": "piecewise_constant"}}, "overrides: step_rules: '' is not allowed"),
        ({"overrides": {"resolution": 4096}}, "overrides: resolution: 4096 is not allowed"),
        ({"overrides": "rank"}, "overrides: it takes a table of settings"),
        ({"trigger": "x\ny"}, "trigger: 'x\\ny' is not allowed; it takes one line"),
    ],
)
def test_what_is_not_allowed_is_one_sentence(said: dict, sentence: str, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    with pytest.raises(UserError) as refused:
        runs.settled(data, said.pop("recipe", "nano-quick"), **{"trigger": "flow", **said})
    assert sentence in str(refused.value)


def test_case_09_no_captions_and_no_trigger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trigger: it is empty and no picture has a caption"):
        runs.settled(dataset(tmp_path / "data", ("", "")), "nano-quick")
