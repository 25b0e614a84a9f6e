"""`python -m core.train RUN.toml --out FOLDER`, or `--resume FOLDER`; with `accelerate launch -m` on several devices."""

from core import installed  # isort: skip  # noqa: F401  (says what is missing before it is missed)

import argparse
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core import journal, presets
from core.data.dataset import Dataset, joined
from core.data.intake import imported
from core.events import Failed, Loss
from core.train import runs
from core.train.ending import log_of, tell_end
from core.train.fellows import Alone, fellows
from core.train.folder import Folder
from core.train.loop import Said, train
from core.train.travel import Copy
from core.types import UserError

ASKED = {"dataset", "regularisation", "recipe", "model", "trigger", "name", "overrides"}
PRINTED = 20
"""Steps between two lines on the terminal."""


def main() -> None:
    """Train; ends with status 1 and one sentence if it cannot."""
    parser = argparse.ArgumentParser(prog="python -m core.train", description="Train a LoRA. What a run is made from stands in a TOML file.")
    parser.add_argument("run", type=Path, nargs="?", help="a TOML file such as presets/training/example_run.toml")
    parser.add_argument("--out", type=Path, help="the folder of the new run")
    parser.add_argument("--resume", type=Path, help="the folder of a run that goes on")
    parser.add_argument("--copied", action="store_true", help="train a copy of it on this machine's disk, and write back what is new: for a mounted bucket")
    parser.add_argument("--owner", type=int, help=argparse.SUPPRESS)  # the descriptor of the folder's lock, from who started this process
    asked = parser.parse_args()
    journal.guard()
    if bool(asked.run and asked.out) == bool(asked.resume):
        parser.error("give RUN.toml and --out FOLDER, or --resume FOLDER")
    company = fellows()
    try:
        folder = Folder(asked.resume) if asked.resume else Folder(asked.out)
        if asked.run and company.rank == 0:
            begin(asked.run, folder)
        company.wait()
        if not folder.run.exists():
            raise UserError(f"run: {folder.path} holds no run.")
        if (found := runs.status(folder)).state == "done":
            print(f"The run is done, {found.step} of {found.steps} steps: {folder.loras / str(found.lora)}. Fork it to train further.")
            return
        log = log_of(folder) if asked.owner is not None else "the Job's" if asked.copied else "the terminal's"
        with TemporaryDirectory() as disk:
            copy = Copy(folder, Path(disk)) if asked.copied else None
            folder = copy.folder if copy else folder
            if company.rank:
                company.wait()
                follow(folder, company, lambda: None)
                return
            with nullcontext() if asked.owner is not None else folder.owned():
                if asked.owner is None:  # else who started this process did so, and may have been asked to stop it since
                    folder.go_on()
                company.wait()
                try:
                    with tell_end(folder, log):
                        follow(folder, company, copy.keep_up if copy else lambda: None)
                finally:
                    if copy:
                        copy.write_back()
    except UserError as error:
        sys.exit(str(error))


def follow(folder: Folder, company: Alone, after: Callable[[], None]) -> None:
    """Train to the end, a line on the terminal now and then; `after` each event something else may be done."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: folder.ask_to_stop())  # as the page does: it ends after this step, saved
    waiting = partial(print, "Waiting for its turn: another run trains.", flush=True)
    with runs.turn(folder, waiting) if company.rank == 0 else nullcontext(True) as goes_on:
        for event in train(folder, fellows=company) if goes_on else ():
            if isinstance(event, Failed):
                raise UserError(event.message)
            after()
            if company.rank == 0 and (not isinstance(event, Loss) or event.step % PRINTED == 0):
                _print(event)
    if company.rank == 0 and folder.asked_to_stop():
        print(f"Stopped at step {folder.last()}; --resume goes on from there.")


def _print(event: Said) -> None:
    fields = (f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in asdict(event).items())
    print(type(event).__name__, *fields, flush=True)


def begin(file: Path, folder: Folder) -> None:
    """Set up the run that a TOML file asks for; its paths are seen from the file."""
    if not file.is_file():
        raise UserError(f"run: {file} is not there.")
    said = presets.read_toml(file)
    if unknown := sorted(said.keys() - ASKED):
        raise UserError(f"{file.name}: {unknown[0]} is not a field; the fields are {', '.join(sorted(ASKED))}.")
    for name in ("dataset", "recipe"):
        if name not in said:
            raise UserError(f"{file.name}: {name} is missing.")
    with TemporaryDirectory() as work:
        data = _data(said, file.parent, Path(work))
        rest = {name: said[name] for name in ("model", "trigger", "name", "overrides") if name in said}
        run, warnings = runs.settled(data, said["recipe"], **rest)
        runs.prepared(run, data, folder.path)
    for line in [*(f"{skipped.name}: {skipped.reason}" for skipped in data.skipped), *data.notes, *warnings]:
        print(line, file=sys.stderr)


def _data(said: dict[str, Any], beside: Path, work: Path) -> Dataset:
    """The pictures that a run names: a folder, a zip, a kohya dataset TOML, or `drawn` ones of nano's world."""
    if said["dataset"] == "drawn":
        from core.nano.lessons import airbrushed  # the one place where what draws nano's world is part of what runs

        for i, (picture, caption) in enumerate(airbrushed()):
            picture.save(work / f"{i}.png")
            (work / f"{i}.txt").write_text(caption, encoding="utf-8")
        return imported([work], work / "own")
    data = imported([beside / said["dataset"]], work / "own", trusted=True)
    if "regularisation" in said:
        data = joined(data, imported([beside / said["regularisation"]], work / "regularisation", regularisation=True, trusted=True))
    return data


if __name__ == "__main__":
    main()
