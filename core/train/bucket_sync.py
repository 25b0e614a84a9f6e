"""Sync a run with a bucket of the user's.

Which of its files travel, and which of those that come back are trusted.

A mounted bucket takes only whole files: nothing can be appended to a file, and locks do not work.
So a Job trains a copy on its own disk and writes back what is new.
"""

import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from huggingface_hub import BucketFile, HfApi
from PIL import Image, UnidentifiedImageError

from core.schema import limits
from core.schema.errors import UserError
from core.schema.events import Loss, Note, Preview, Saved, Validation
from core.schema.records import make_record
from core.system.atomic_files import replace_file
from core.train.trainer.run_folder import FAILURE_BYTES, RunFolder

SYNC_ORDER = ("run.json", "dataset/", "loras/", "previews/", "events.jsonl", "state/", "failure")
"""The order in which files are written: none refers to one that comes later.

So the run can be continued from whatever is there after any of them.
"""
SYNCED_FILES = re.compile(r"(?:dataset|loras|previews|state)/[^/.][^/]*|run\.json|events\.jsonl|failure")
"""Files that are synced; locks, logs and what can be computed again stay."""
SYNC_SECONDS = 10
"""Seconds between two checks for new files, in addition to those at each state."""


def list_run_files(folder: RunFolder) -> dict[str, Path]:
    """Return the files of a run by name, in an order in which they can be written."""
    files = {
        file.relative_to(folder.path).as_posix(): file
        for file in sorted(folder.path.rglob("*"))
        if file.is_file()
    }
    return {
        name: files[name] for name in sorted(filter(SYNCED_FILES.fullmatch, files), key=get_sync_position)
    }


def get_sync_position(name: str) -> int:
    """Return a file's position in `SYNC_ORDER`."""
    return next(i for i, start in enumerate(SYNC_ORDER) if name.startswith(start))


class RunCopy:
    """A copy of a run on this machine's disk."""

    def __init__(self, source: RunFolder, folder: Path):
        self.source, self.folder = source, RunFolder(folder)
        for name, file in list_run_files(source).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
        self._written = {name: _read_file_stamp(file) for name, file in list_run_files(self.folder).items()}
        self._looked = time.monotonic()

    def write_back_if_due(self) -> None:
        """Write back what is new if there is a new state or `SYNC_SECONDS` have passed."""
        states = {f"state/{file.name}" for file in self.folder.states.glob("[!.]*.safetensors")}
        if states - self._written.keys() or time.monotonic() - self._looked > SYNC_SECONDS:
            self.write_back()

    def write_back(self) -> None:
        """Write back all that is new, each file whole, and delete what is gone."""
        now = list_run_files(self.folder)
        for name, file in now.items():
            if (mark := _read_file_stamp(file)) != self._written.get(name):
                with replace_file(self.source.path / name) as unfinished:
                    shutil.copyfile(file, unfinished)
                self._written[name] = mark
        for gone in self._written.keys() - now.keys():
            (self.source.path / gone).unlink(missing_ok=True)
            del self._written[gone]
        self._looked = time.monotonic()


def _read_file_stamp(file: Path) -> tuple[int, int]:
    there = file.stat()
    return there.st_size, there.st_mtime_ns


BUCKET_NAME = "sweetspot-runs"
RESULT_FILES = re.compile(
    r"events\.jsonl|failure|state/\d{6}\.safetensors|loras/[\w-][\w.-]*\.safetensors"
    r"|previews/\d{6}-\d+-[\d.]+\.png"
)
"""Files that a run makes; everything else in the bucket is left there."""
EVENT_TYPES = {"loss": Loss, "validation": Validation, "saved": Saved, "preview": Preview, "note": Note}
EVENT_FILES = {
    "saved": re.compile(r"[\w-][\w.-]*\.safetensors"),
    "preview": re.compile(r"\d{6}-\d+-[\d.]+\.png"),
}
MAX_TEXT_BYTES = 64 * 2**20  # of events.jsonl, or of failure


def upload_run(folder: RunFolder, api: HfApi, bucket: str) -> None:
    """Make the run's folder in the bucket equal to the run here.

    Raises `UserError` for a bucket that others can read.
    """
    api.create_bucket(bucket, private=True, exist_ok=True)
    if not api.bucket_info(bucket).private:
        raise UserError(
            "bucket", f"{bucket} is public, so your images would be, too; make it private on Hugging Face."
        )
    mine = {
        f"{folder.name}/{name}": file for name, file in list_run_files(folder).items() if name != "failure"
    }
    there = {file.path for file in _list_bucket_files(folder, api, bucket).values()}
    api.batch_bucket_files(
        bucket, add=[(file, name) for name, file in mine.items()], delete=sorted(there - mine.keys())
    )


def download_results(
    folder: RunFolder, api: HfApi, bucket: str, known_hashes: Mapping[str, str], *, with_states: bool
) -> dict[str, str]:
    """Download what the run has made so far, all or nothing.

    Returns the hash of each file, which is the next call's `known_hashes`. With `with_states`,
    states are downloaded too, and those that are not in the bucket are deleted. Raises `UserError`
    for a file that no run makes.
    """
    listed = {
        name: file
        for name, file in _list_bucket_files(folder, api, bucket).items()
        if RESULT_FILES.fullmatch(name) and (with_states or not name.startswith("state/"))
    }
    new = sorted(
        (name for name, file in listed.items() if known_hashes.get(name) != file.xet_hash),
        key=get_sync_position,
        reverse=True,
    )
    _check_sizes({name: listed[name].size for name in new}, folder)
    with ExitStack() as stack:  # what is entered first is put in place last
        places = {name: stack.enter_context(replace_file(folder.path / name)) for name in new}
        api.download_bucket_files(bucket, [(listed[name], places[name]) for name in new])
        for name, file in places.items():
            _check_file(name, file)
    kept = {name for name in listed if name.startswith("state/")}
    for state in folder.states.glob("*.safetensors") if kept else ():
        if f"state/{state.name}" not in kept:
            state.unlink()
    return {**known_hashes, **{name: file.xet_hash for name, file in listed.items()}}


def _list_bucket_files(folder: RunFolder, api: HfApi, bucket: str) -> dict[str, BucketFile]:
    """Return the run's files in the bucket by their names in its folder."""
    found = api.list_bucket_tree(bucket, prefix=folder.name, recursive=True)
    return {file.path.removeprefix(f"{folder.name}/"): file for file in found if isinstance(file, BucketFile)}


def _check_sizes(sizes: Mapping[str, int], folder: RunFolder) -> None:
    if max(sizes.get("events.jsonl", 0), sizes.get("failure", 0)) > MAX_TEXT_BYTES:
        raise UserError("job", "its log or error message is longer than that of a run can be.")
    if sum(sizes.values()) > (free := shutil.disk_usage(folder.path).free) // 2:
        raise UserError(
            "disk",
            f"the results of the Job have {sum(sizes.values()):,} bytes, and {free:,} are free, "
            "half of which is reserved.",
        )


def _check_file(name: str, file: Path) -> None:
    try:
        if name == "events.jsonl":
            for line in _read_lines(file):
                _check_event(line)
        elif name == "failure" and file.stat().st_size > FAILURE_BYTES:
            raise ValueError("it is too long")
        elif name.startswith("previews/"):
            with Image.open(file, formats=["PNG"]) as picture:
                if picture.width * picture.height > limits.PICTURE_PIXELS:
                    raise ValueError("it is too large")
    except (
        UserError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise UserError("job", f"{name} in its bucket is not a file that a run makes.") from error


def _read_lines(file: Path) -> Iterator[dict]:
    text = file.read_text(encoding="utf-8")
    yield from map(json.loads, text[: text.rfind("\n") + 1].splitlines())


def _check_event(line: dict) -> None:
    """Check a line of events.jsonl.

    Raises an error that `_check_file` handles if it is no event of a run, or its file is outside
    the run's folder.
    """
    kind = line.pop("kind")
    if not math.isfinite(line.pop("t")) or line.pop("memory") < 0:
        raise ValueError("it says no time, or no memory")
    make_record(EVENT_TYPES[kind], line, kind)
    if kind in EVENT_FILES and not EVENT_FILES[kind].fullmatch(line["file"]):
        raise ValueError("its name is a path")
