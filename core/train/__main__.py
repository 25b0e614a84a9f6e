"""Train from the command line.

`python -m core.train RUN.toml --out FOLDER`, or `--resume FOLDER`; with `accelerate launch -m` on
several devices.
"""

# First, because it says which requirement is missing before an import fails.
from core.system import requirements_check  # isort: skip  # noqa: F401

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

from core.dataset.dataset import Dataset, merge_datasets
from core.dataset.intake import import_dataset
from core.schema import presets
from core.schema.errors import UserError
from core.schema.events import Failed, Loss
from core.system import call_log
from core.train import runs
from core.train.bucket_sync import RunCopy
from core.train.trainer.distributed import SingleProcess, init_distributed
from core.train.trainer.loop import TrainingEvent, train
from core.train.trainer.run_end import describe_log, record_end, record_failure
from core.train.trainer.run_folder import RunFolder

RUN_KEYS = {"dataset", "regularisation", "recipe", "model", "trigger", "name", "overrides"}
PRINT_EVERY = 20
"""Steps between two lines on the terminal."""


def main() -> None:
    """Train; exits with status 1 and one sentence if that is impossible."""
    parser = argparse.ArgumentParser(
        prog="python -m core.train", description="Train a LoRA from a run that a TOML file describes."
    )
    parser.add_argument(
        "run", type=Path, nargs="?", help="a TOML file such as presets/training/example_run.toml"
    )
    parser.add_argument("--out", type=Path, help="the folder of the new run")
    parser.add_argument("--resume", type=Path, help="the folder of a run to resume")
    parser.add_argument(
        "--copied",
        action="store_true",
        help="train a copy of it on this machine's disk, and write new files back: for a mounted bucket",
    )
    # Descriptor of the folder's lock, given by the process that started this one.
    parser.add_argument("--owner", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    call_log.redact_output()
    if bool(asked.run and asked.out) == bool(asked.resume):
        parser.error("give RUN.toml and --out FOLDER, or --resume FOLDER")
    company = init_distributed()
    try:
        folder = RunFolder(asked.resume) if asked.resume else RunFolder(asked.out)
        if asked.run and company.rank == 0:
            create_run_from_toml(asked.run, folder)
        company.wait_for_everyone()
        if not folder.run_file.exists():
            raise UserError("run", f"{folder.path} contains no run.")
        if (found := runs.read_status(folder)).state == "done":
            print(
                f"The run is done, {found.step} of {found.steps} steps: {folder.loras / str(found.lora)}. "
                "Branch from it to train further."
            )
            return
        log = (
            describe_log(folder)
            if asked.owner is not None
            else "the Job's"
            if asked.copied
            else "the terminal's"
        )
        with TemporaryDirectory() as disk:
            copy = RunCopy(folder, Path(disk)) if asked.copied else None
            folder = copy.folder if copy else folder
            if company.rank:
                company.wait_for_everyone()
                with record_failure(folder, log):
                    train_to_end(folder, company, lambda: None)
                return
            with nullcontext() if asked.owner is not None else folder.lock():
                # Otherwise the process that started this one cleared it; a stop since then counts.
                if asked.owner is None:
                    folder.clear_stop()
                company.wait_for_everyone()
                try:
                    with record_end(folder, log):
                        train_to_end(folder, company, copy.write_back_if_due if copy else lambda: None)
                finally:
                    if copy:
                        copy.write_back()
    except UserError as error:
        sys.exit(str(error))


def train_to_end(folder: RunFolder, processes: SingleProcess, on_event: Callable[[], None]) -> None:
    """Train to the end, with a line on the terminal now and then.

    `on_event` is called after each event.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        # As a stop from the page: the run ends after this step, saved.
        signal.signal(number, lambda *_: folder.request_stop())
    waiting = partial(print, "Queued: another training is running.", flush=True)
    with runs.wait_for_turn(folder, waiting) if processes.rank == 0 else nullcontext(True) as goes_on:
        for event in train(folder, processes=processes) if goes_on else ():
            if isinstance(event, Failed):
                raise UserError(None, event.message)
            on_event()
            if processes.rank == 0 and (not isinstance(event, Loss) or event.step % PRINT_EVERY == 0):
                _print_event(event)
    if processes.rank == 0 and folder.is_stop_requested():
        print(f"Stopped at step {folder.find_last_step()}; --resume continues from there.")


def _print_event(event: TrainingEvent) -> None:
    fields = (
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in asdict(event).items()
    )
    print(type(event).__name__, *fields, flush=True)


def create_run_from_toml(file: Path, folder: RunFolder) -> None:
    """Create the run that a TOML file describes; its paths are relative to the file."""
    if not file.is_file():
        raise UserError("run", f"{file} does not exist.")
    said = presets.read_preset_toml(file)
    if unknown := sorted(said.keys() - RUN_KEYS):
        raise UserError(
            file.name, f"{unknown[0]} is not a field; the fields are {', '.join(sorted(RUN_KEYS))}."
        )
    for name in ("dataset", "recipe"):
        if name not in said:
            raise UserError(file.name, f"{name} is missing.")
    with TemporaryDirectory() as work:
        data = _load_dataset(said, file.parent, Path(work))
        rest = {name: said[name] for name in ("model", "trigger", "name", "overrides") if name in said}
        run, warnings = runs.plan_run(data, said["recipe"], **rest)
        runs.create_run(run, data, folder.path)
    for line in [*(f"{skipped.name}: {skipped.reason}" for skipped in data.skipped), *data.notes, *warnings]:
        print(line, file=sys.stderr)


def _load_dataset(table: dict[str, Any], base_folder: Path, work: Path) -> Dataset:
    """Load the pictures that a run names.

    `dataset` is a folder, a zip, a kohya dataset TOML, or `drawn` for pictures of nano's world.
    """
    if table["dataset"] == "drawn":
        # The only import at run time of what draws nano's world.
        from core.nano.lessons import make_airbrush_set

        for i, (picture, caption) in enumerate(make_airbrush_set()):
            picture.save(work / f"{i}.png")
            (work / f"{i}.txt").write_text(caption, encoding="utf-8")
        return import_dataset([work], work / "own")
    data = import_dataset([base_folder / table["dataset"]], work / "own", trusted=True)
    if "regularisation" in table:
        data = merge_datasets(
            data,
            import_dataset(
                [base_folder / table["regularisation"]],
                work / "regularisation",
                regularisation=True,
                trusted=True,
            ),
        )
    return data


if __name__ == "__main__":
    main()
