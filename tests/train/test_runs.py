"""Runs as people have them, in processes of their own.

Killed, stopped, resumed, queued and branched; bad machines; bad choices.
"""

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

from core.dataset import dataset as datasets
from core.generate import pipeline
from core.runtime import torch_thread
from core.schema.errors import UserError
from core.schema.events import Note, Saved
from core.system import call_log
from core.train import __main__, runs
from core.train.trainer import run_record
from core.train.trainer.loop import train
from core.train.trainer.run_folder import RunFolder
from core.train.trainer.settings import load_recipes
from tabs.train import progress
from tests.small_disk import mount_small_disk
from tests.train.parts import (
    CAPTIONS,
    SMALL_SIZES,
    assert_same,
    make_dataset,
    prepare_run,
    read_losses,
    run_training,
    set_up_run,
)

ROOT = Path(__file__).resolve().parent.parent.parent
KILL_SCRIPT = """if True:
    import os, random, signal, sys, time
    from pathlib import Path
    import torch
    from core.train.trainer.run_folder import RunFolder
    from core.train.trainer.loop import train
    torch.set_num_threads(1)  # so that the forked ones have no threads to miss

    def begun(folder):
        child = os.fork()
        if child:
            return child
        with folder.lock():
            for _ in train(folder):
                pass
        os._exit(0)

    kills, chance = int(sys.argv[1]), random.Random(7)
    straight, *broken = [RunFolder(Path(path)) for path in sys.argv[2:]]
    assert os.waitpid(begun(straight), 0)[1] == 0
    for folder in broken:
        killed = 0
        for _ in range(kills):
            said, child = len(folder.read_events()), begun(folder)
            while len(folder.read_events()) < said + 2:  # it goes on, wherever it stood
                time.sleep(0.002)
            time.sleep(chance.random() * 0.15)
            os.kill(child, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            folder.load_state()  # whole, or it raises
        print(killed)
        assert os.waitpid(begun(folder), 0)[1] == 0
"""
"""Runs the first run to its end; kills the others again and again, then lets them end."""


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test and its processes a folder of runs, and return it."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("SWEETSPOT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "runs"


def build_command(folder: RunFolder) -> list[str]:
    return [sys.executable, "-m", "core.train", "--resume", str(folder.path)]


def wait_for_state(
    folder: RunFolder, states: tuple[str, ...] = ("done", "failed", "stopped"), seconds: float = 120
) -> runs.RunStatus:
    """Wait until the run is in one of these states, and return its status."""
    end = time.monotonic() + seconds
    while (found := runs.read_status(folder)).state not in states:
        assert time.monotonic() < end, (
            f"{found} after {seconds} s; "
            f"{folder.log_file.read_text() if folder.log_file.exists() else 'no log'}"
        )
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_case_20_a_run_that_is_killed_at_random_points_ends_as_one_that_is_not(
    tmp_path: Path, kills: int
) -> None:
    """After SIGKILL a resumed run ends with the same losses and weights, bit for bit.

    Two runs are killed `kills` times each, most of the times while they save.
    """
    data = make_dataset(tmp_path / "data")
    steps = {"steps": 40, "batch": 1, "save_every": 1, "optimizer": "AdamW", **SMALL_SIZES}
    straight, *broken = (set_up_run(data, **steps) for _ in range(3))
    script = [
        sys.executable,
        "-c",
        KILL_SCRIPT,
        str(kills),
        straight.path,
        *(folder.path for folder in broken),
    ]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(kills)] * 2, (
        f"processes that were killed before they were done: {done.stdout}"
    )
    for folder in broken:
        assert_same(straight, folder)
        assert (straight.loras / "flow.safetensors").read_bytes()[-1000:] == (
            folder.loras / "flow.safetensors"
        ).read_bytes()[-1000:]
        assert not list(folder.path.rglob(".*.tmp"))


def test_stop_resume_and_a_queue(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    first, second = set_up_run(data, steps=400), set_up_run(data, steps=3)
    runs.start_run(first)
    assert runs.read_status(first).state in ("waiting", "running"), (
        "a run has an owner from the moment that it is started"
    )
    wait_for_state(first, ("running",))
    runs.start_run(second)
    while not read_losses(first):
        time.sleep(0.1)
    assert runs.read_status(second).state == "waiting"
    first.request_stop()
    stopped = wait_for_state(first)
    assert stopped.state == "stopped"
    assert 0 < stopped.step < 400
    assert wait_for_state(second).state == "done", "the next in the queue did not begin"
    runs.start_run(first)
    wait_for_state(first, ("running",))
    while len(read_losses(first)) <= stopped.step:
        time.sleep(0.1)
    assert read_losses(first)[stopped.step][0] == stopped.step + 1, "it went on at another step"
    first.request_stop()
    wait_for_state(first)


def test_who_looks_at_a_run_is_not_taken_for_its_trainer(tmp_path: Path) -> None:
    """Many connections that ask for `/health` or a run's state do not get in its trainer's way.

    The trainer gets the lock all the same, and they do not take each other for a trainer.
    """
    folder, over, seen = set_up_run(make_dataset(tmp_path / "data")), threading.Event(), list[bool]()

    def watch_owner() -> None:
        while not over.is_set():
            seen.append(folder.is_locked())

    lookers = [threading.Thread(target=watch_owner) for _ in range(8)]
    for looker in lookers:
        looker.start()
    try:
        time.sleep(0.2)
        assert not any(seen), "those who look see each other"
        for _ in range(20):
            with folder.lock():
                assert folder.is_locked()
        with folder.lock(), pytest.raises(UserError, match="is being trained already"):
            runs.start_run(folder)
    finally:
        over.set()
        for looker in lookers:
            looker.join()


def test_a_fork_goes_on_from_a_checkpoint_with_its_own_settings(tmp_path: Path) -> None:
    parent = set_up_run(make_dataset(tmp_path / "data"), steps=8, save_every=4)
    run_training(parent)
    child, run = runs.fork_run(parent, 4, {"rate": 2e-3, "steps": 10})
    assert run.parent == "flow@4"
    run_training(child)
    assert read_losses(child)[:4] == read_losses(parent)[:4]
    assert read_losses(child)[4][1] == read_losses(parent)[4][1], (
        "the step after the fork begins from the parent's weights"
    )
    assert read_losses(child)[4][2] > 1.5 * read_losses(parent)[4][2], "the new rate counts at once"
    assert len(read_losses(child)) == 10
    with pytest.raises(UserError, match=r"step: 5 was not saved. The saved steps are 4, 8\."):
        runs.fork_run(parent, 5, {})
    with pytest.raises(UserError, match="rank: 2 would be a different LoRA"):
        runs.fork_run(parent, 4, {"rank": 2})
    for steps in (3, 4):
        with pytest.raises(
            UserError,
            match=rf"steps: {steps} are not beyond step 4, from which the branch continues. Use more\.",
        ):
            runs.fork_run(parent, 4, {"steps": steps})


def test_stop_is_heeded_while_pictures_are_prepared(tmp_path: Path) -> None:
    folder = set_up_run(make_dataset(tmp_path / "data"))
    folder.request_stop()
    assert not run_training(folder)
    assert len(list(folder.latents.iterdir())) == 1, "of four pictures"
    assert runs.read_status(folder).state == "stopped"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            torch.OutOfMemoryError("no memory"),
            "this machine ran out of memory; preview_every = 0 turns them off.",
        ),
        (RuntimeError("a bug"), "they failed (RuntimeError)."),
    ],
    ids=["memory", "bug"],
)
def test_no_preview_ends_a_training(
    error: Exception, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    folder = set_up_run(make_dataset(tmp_path / "data"), steps=4, preview_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "denoise", fail)
        run_training(folder)
    status = runs.read_status(folder)
    assert (status.state, status.previews) == ("done", ())
    assert status.notes == (
        f"Previews of step 2 were skipped: {why}",
        f"Previews of step 4 were skipped: {why}",
    )
    assert "preview" in read_status_text(folder).lower()


def test_stop_is_heeded_while_previews_are_made(tmp_path: Path) -> None:
    folder = set_up_run(make_dataset(tmp_path / "data"), steps=8, preview_every=4, save_every=4)
    with folder.lock():
        events = train(folder)
        while not isinstance(torch_thread.run_on_torch_thread(next, events), Saved):
            pass
        folder.request_stop()
        rest = torch_thread.run_on_torch_thread(list, events)
    assert [type(event) for event in rest] == [Note]
    assert (folder.find_last_step(), runs.read_status(folder).notes) == (
        4,
        ("Previews of step 4 were skipped: the run was asked to stop.",),
    )


def test_a_loss_that_is_no_number_is_said_and_the_last_state_stays(tmp_path: Path) -> None:
    # harmless up to step 4
    late = {"scheduler": "piecewise_constant", "step_rules": "0.0001:4,1", "rate": 10.0, "clip": 0}
    folder = set_up_run(make_dataset(tmp_path / "data"), steps=50, save_every=4, **late)
    run_training(folder)
    status = runs.read_status(folder)
    assert status.state == "failed"
    assert re.match(
        rf"The (loss|gradient) became (nan|inf) at step {status.step + 1}: lower the learning rate \(10\)",
        status.error or "",
    ), status.error
    found = folder.load_state()
    assert found is not None
    assert found[1]["values"].isfinite().all(), "a state with NaN was kept"
    child, _ = runs.fork_run(folder, 4, {"rate": 1e-4, "steps": 6, "scheduler": "constant", "step_rules": ""})
    run_training(child)
    assert runs.read_status(child).state == "done"


def test_case_25_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with mount_small_disk(tmp_path / "disk", 6) as disk:
        folder, _ = prepare_run(make_dataset(tmp_path / "data"), disk / "run", steps=12, save_every=2)
        run_training(folder, 5)
        ballast = disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(2**23))
        run_training(folder)
        status = runs.read_status(folder)
        assert (status.state, status.error) == (
            "failed",
            "The disk is full. Free up space and resume; the last state is kept.",
        )
        ballast.unlink()
        run_training(folder)
        straight, _ = prepare_run(
            datasets.load_dataset(folder.dataset), tmp_path / "straight", steps=12, save_every=2
        )
        run_training(straight)
        assert_same(straight, folder)


def test_a_run_whose_process_is_killed_is_not_told_as_stopped(tmp_path: Path) -> None:
    folder = set_up_run(make_dataset(tmp_path / "data"), steps=2000, save_every=5)
    assert "to continue." not in read_status_text(folder), "it was never begun"
    runs.start_run(folder)
    while folder.find_last_step() < 5:
        time.sleep(0.05)
    subprocess.run(["pkill", "-KILL", "-f", f"resume {folder.path}"], check=True)
    told = wait_for_state(folder)
    assert told.state == "failed"
    assert told.error == (
        "Its process was killed or ran out of memory. "
        f"Resume it to continue from step {folder.find_last_step()}. Its log is {folder.log_file}."
    )
    assert "to continue." not in read_status_text(folder)
    folder.clear_stop()
    folder.request_stop()
    run_training(folder)
    assert runs.read_status(folder).state == "stopped"
    assert "to continue" in read_status_text(folder)


def test_an_error_that_nobody_foresaw_is_told_with_the_place_of_its_log(tmp_path: Path) -> None:
    folder = set_up_run(make_dataset(tmp_path / "data"), steps=3)
    folder.states.mkdir()
    torn = folder.states / "000001.safetensors"
    torn.write_bytes(b"torn")
    runs.start_run(folder)
    told = wait_for_state(folder)
    assert told.state == "failed"
    assert re.fullmatch(
        rf"Training failed \(SafetensorError: .*\)\. The last state is kept; the log is {folder.log_file}\.",
        told.error or "",
    ), told.error
    assert "Traceback" in folder.log_file.read_text()
    torn.unlink()
    run_training(folder)
    assert runs.read_status(folder).state == "done"
    with pytest.raises(UserError, match=r"is done, 3 of 3 steps; branch from it"):
        runs.start_run(folder)


def read_status_text(folder: RunFolder) -> str:
    """Return what the page says of the run."""
    return str(progress.show_run(folder.name, None)["status"])


def start_terminal(folder: RunFolder) -> subprocess.Popen[str]:
    """Start `--resume` as in a terminal; its lines can be read as they come."""
    return subprocess.Popen(
        [sys.executable, "-m", "core.train", "--resume", folder.path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_terminal_says_that_it_waits_stops_by_ctrl_c_and_goes_on(tmp_path: Path) -> None:
    folder = set_up_run(make_dataset(tmp_path / "data"), steps=4000, save_every=4000)
    with (runs.RUNS / "turn").open("w") as lock:  # as another run does that trains
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start_terminal(folder)
        assert process.stdout is not None
        assert process.stdout.readline() == "Queued: another training is running.\n"
        assert runs.read_status(folder).state == "waiting"
    signal_and_wait(folder, process, signal.SIGINT)
    signal_and_wait(folder, start_terminal(folder), signal.SIGTERM)


def signal_and_wait(folder: RunFolder, process: subprocess.Popen[str], signal_number: int) -> None:
    """Signal the process after another step, and assert that it saves, ends and says so."""
    begin = folder.find_last_step()
    while (read_losses(folder) or [(0,)])[-1][0] <= begin:
        assert process.poll() is None, "it ended without a step"
        time.sleep(0.05)
    process.send_signal(signal_number)
    said, _ = process.communicate(timeout=120)
    assert said.endswith(f"Stopped at step {folder.find_last_step()}; --resume continues from there.\n")
    assert (process.returncode, runs.read_status(folder).state) == (0, "stopped")
    assert folder.find_last_step() > begin


def test_the_example_run_from_a_terminal_and_what_a_terminal_gets_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = (ROOT / "presets" / "training" / "example_run.toml").read_text()
    quick = tmp_path / "quick.toml"
    quick.write_text(example + "steps = 2\npreview_every = 0\n")
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "core.train", quick, "--out", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Saved step=2 file=airbrush.safetensors" in done.stdout
    # its wrappers around this process' streams would stay
    monkeypatch.setattr(call_log, "redact_output", lambda: None)

    def say(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["core.train", *map(str, words)])
        __main__.main()
        return capsys.readouterr().out

    assert (
        say("--resume", out) == f"The run is done, 2 of 2 steps: {out / 'loras' / 'airbrush.safetensors'}. "
        "Branch from it to train further.\n"
    )
    with pytest.raises(SystemExit, match="already exists; resume it"):
        say(quick, "--out", out)
    with pytest.raises(SystemExit, match="contains no run"):
        say("--resume", tmp_path / "none")
    with pytest.raises(SystemExit, match="does not exist"):
        say(tmp_path / "none.toml", "--out", tmp_path / "x")


def launch_two_ranks(module: str, folder: RunFolder) -> subprocess.CompletedProcess[str]:
    """Resume a run in two processes on the CPU, as `accelerate launch` does with two GPUs."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        module,
        "--resume",
        str(folder.path),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    """Each process trains half of every batch."""
    data = make_dataset(tmp_path / "data", sizes=((128, 128),))
    alone, both = set_up_run(data, batch=4, steps=6), set_up_run(data, batch=4, steps=6)
    run_training(alone)
    done = launch_two_ranks("core.train", both)
    assert done.returncode == 0, done.stderr
    for mine, its in zip(read_losses(alone), read_losses(both), strict=True):
        assert mine == pytest.approx(its, rel=1e-4)


def test_a_second_device_that_breaks_off_is_why_the_run_failed(tmp_path: Path) -> None:
    """A person reads the cause, not its consequences.

    Those are that the first process was asked to end, or lost its connection.
    """
    folder = set_up_run(make_dataset(tmp_path / "data"), batch=4, steps=6)
    assert launch_two_ranks("tests.train.broken_rank", folder).returncode
    assert runs.read_status(folder).state == "failed"
    assert (folder.read_failure() or "").startswith(
        "Training failed (RuntimeError: the second card is gone)."
    )


@pytest.mark.parametrize("recipe", [name for name in load_recipes() if name != "nano-quick"])
def test_every_recipe_makes_its_first_steps(recipe: str, tmp_path: Path) -> None:
    captions = CAPTIONS * 3
    data = make_dataset(tmp_path / "data", captions)
    run, _ = runs.plan_run(
        data, recipe, trigger="flow", overrides={"steps": 2, "preview_every": 0, "warmup": 0}
    )
    folder = runs.create_run(run, data, tmp_path / "run")
    run_training(folder)
    assert runs.read_status(folder).state == "done"


def test_what_makes_no_sense_is_said_with_its_number(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", CAPTIONS[:2])
    _, said = runs.plan_run(
        data, "nano-quick", overrides={"steps": 600, "alpha": 9.0, "rate": 5e-3, "warmup": 700}
    )
    assert [line.partition(":")[0] for line in said] == ["alpha", "steps", "learning_rate", "lr_warmup_steps"]
    assert "600 steps of 4 on 2 images show each 1200 times" in said[1]
    assert "0.005 is 10 times the recipe's 0.0005" in said[2]


def test_a_text_rate_that_prodigy_cannot_use_is_said(tmp_path: Path) -> None:
    asked = {"optimizer": "Prodigy", "rate": 1.0, "text_encoders": True}
    _, said = runs.plan_run(make_dataset(tmp_path / "data"), "nano-quick", trigger="flow", overrides=asked)
    assert (
        "text_encoder_lr: Prodigy has one learning rate for everything; "
        "5e-05 is ignored, the text encoders use learning_rate, 1." in said
    )
    _, said = runs.plan_run(
        make_dataset(tmp_path / "same"), "nano-quick", trigger="flow", overrides={**asked, "text_rate": 1.0}
    )
    assert not [line for line in said if line.startswith("text_encoder_lr")]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"recipe": "none"}, "recipe: 'none' is unknown. Use one of: nano-quick"),
        ({"model": "none"}, "model: 'none' is unknown"),
        ({"overrides": {"rank": 0}}, "overrides: rank: 0 is not valid. Use a whole number from 1 to 256."),
        ({"overrides": {"rnk": 1}}, "overrides: 'rnk' is not a setting; the settings are accumulation,"),
        (
            {"overrides": {"rate": 1e-4, "learning_rate": 1e-3}},
            "overrides: 'rate' is the old name of 'learning_rate'; give one of them.",
        ),
        ({"overrides": {"optimizer": "SGD"}}, "overrides: optimizer: 'SGD' is unknown. Use one of: AdamW, "),
        ({"overrides": {"ranks": "OUT9=1"}}, "overrides: ranks: 'OUT9=1' is not valid"),
        ({"overrides": {"ranks": "OUT00=8,OUT00=4"}}, "overrides: ranks: 'OUT00=4' is not valid"),
        ({"overrides": {"ranks": ","}}, "overrides: ranks: ',' names no block"),
        *(
            (
                {"overrides": {"scheduler": "piecewise_constant", "step_rules": rules}},
                f"overrides: step_rules: {rules!r} is not valid",
            )
            for rules in ("1.2.3:5,1", "..:5,.", "1:100,0.1:50,0.01", "1:5,0.1:5,0.01")
        ),
        ({"overrides": {"scheduler": "piecewise_constant"}}, "overrides: step_rules: '' is not valid"),
        ({"overrides": {"resolution": 4096}}, "overrides: resolution: 4096 is not valid"),
        ({"overrides": "rank"}, "overrides: use a table of settings"),
        ({"trigger": "x\ny"}, "trigger: 'x\\ny' is not valid. Use one line"),
    ],
)
def test_what_is_not_allowed_is_one_sentence(said: dict, sentence: str, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    with pytest.raises(UserError) as refused:
        runs.plan_run(data, said.pop("recipe", "nano-quick"), **{"trigger": "flow", **said})
    assert sentence in str(refused.value)


def test_null_turns_off_what_can_be_off_and_leaves_the_rest_to_the_recipe(tmp_path: Path) -> None:
    """A field that a person emptied would else be trained with a number that no recipe names."""
    data, off = make_dataset(tmp_path / "data"), {"ema": None, "rank": None, "learning_rate": None}
    usual, _ = runs.plan_run(data, "nano-quick", trigger="flow", overrides={"ema": 0.9})
    made, _ = runs.plan_run(data, "nano-quick", trigger="flow", overrides=off)
    assert usual.settings.ema == 0.9
    assert made.settings.ema is None
    assert (made.settings.rank, made.settings.learning_rate) == (
        usual.settings.rank,
        usual.settings.learning_rate,
    )


def test_case_09_no_captions_and_no_trigger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trigger: it is empty and no image has a caption"):
        runs.plan_run(make_dataset(tmp_path / "data", ("", "")), "nano-quick")


def test_settings_go_by_their_former_names_too(tmp_path: Path) -> None:
    """Recipes, scripts and runs of before are read."""
    former = {"rate": 2e-4, "text_rate": 3e-5, "warmup": 7, "clip": 0.5}
    run, _ = runs.plan_run(make_dataset(tmp_path / "data"), "nano-quick", trigger="flow", overrides=former)
    made = run.settings
    names = (made.learning_rate, made.text_encoder_lr, made.lr_warmup_steps, made.max_grad_norm)
    assert names == (2e-4, 3e-5, 7, 0.5)
    folder = runs.create_run(run, make_dataset(tmp_path / "again"))
    text = folder.run_file.read_text()
    for name, new in (("rate", "learning_rate"), ("warmup", "lr_warmup_steps")):
        text = text.replace(f'"{new}"', f'"{name}"')
    folder.run_file.write_text(text)
    assert run_record.read_run(folder) == run
