"""A run's way into a bucket of the person's own and back; nothing that comes back is believed before it is looked at."""

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from huggingface_hub import BucketFile, HfApi
from PIL import Image, UnidentifiedImageError

from core import limits, presets
from core.atomic import replacing
from core.events import Loss, Note, Preview, Saved, Validation
from core.train.folder import FAILURE, Folder
from core.train.travel import place, travelling
from core.types import UserError

NAME = "sweetspot-runs"
RESULT = re.compile(r"events\.jsonl|failure|state/\d{6}\.safetensors|loras/[\w-][\w.-]*\.safetensors|previews/\d{6}-\d+-[\d.]+\.png")
"""What a run makes; all else in the bucket is left there."""
EVENTS = {"loss": Loss, "validation": Validation, "saved": Saved, "preview": Preview, "note": Note}
FILES = {"saved": re.compile(r"[\w-][\w.-]*\.safetensors"), "preview": re.compile(r"\d{6}-\d+-[\d.]+\.png")}
LARGEST_TEXT = 64 * 2**20  # bytes of events.jsonl


def put(folder: Folder, api: HfApi, bucket: str) -> None:
    """Make the run's folder of the bucket what the run is here. Raises `UserError` for a bucket that others can read."""
    api.create_bucket(bucket, private=True, exist_ok=True)
    if not api.bucket_info(bucket).private:
        raise UserError(f"bucket: {bucket} is public, and your pictures would be; make it private on the Hub.")
    mine = {f"{folder.name}/{name}": file for name, file in travelling(folder).items() if name != "failure"}
    there = {file.path for file in _listed(folder, api, bucket).values()}
    api.batch_bucket_files(bucket, add=[(file, name) for name, file in mine.items()], delete=sorted(there - mine.keys()))


def brought(folder: Folder, api: HfApi, bucket: str, had: Mapping[str, str], *, states: bool) -> dict[str, str]:
    """Bring what the run has made by now, all or nothing; returns the hash of each file, which is the next call's `had`.

    With `states`, those too, and those of the bucket alone stay. Raises `UserError` for what no run makes.
    """
    listed = {name: file for name, file in _listed(folder, api, bucket).items() if RESULT.fullmatch(name) and (states or not name.startswith("state/"))}
    new = sorted((name for name, file in listed.items() if had.get(name) != file.xet_hash), key=place, reverse=True)
    _check_sizes({name: listed[name].size for name in new}, folder)
    with ExitStack() as stack:  # what is entered first takes its place last
        places = {name: stack.enter_context(replacing(folder.path / name)) for name in new}
        api.download_bucket_files(bucket, [(listed[name], places[name]) for name in new])
        for name, file in places.items():
            _check(name, file)
    kept = {name for name in listed if name.startswith("state/")}
    for state in folder.states.glob("*.safetensors") if kept else ():
        if f"state/{state.name}" not in kept:
            state.unlink()
    return {**had, **{name: file.xet_hash for name, file in listed.items()}}


def _listed(folder: Folder, api: HfApi, bucket: str) -> dict[str, BucketFile]:
    """The run's files in the bucket by their names in its folder."""
    found = api.list_bucket_tree(bucket, prefix=folder.name, recursive=True)
    return {file.path.removeprefix(f"{folder.name}/"): file for file in found if isinstance(file, BucketFile)}


def _check_sizes(sizes: Mapping[str, int], folder: Folder) -> None:
    if max(sizes.get("events.jsonl", 0), sizes.get("failure", 0)) > LARGEST_TEXT:
        raise UserError("job: what it says of itself is longer than a run can say.")
    if sum(sizes.values()) > (free := shutil.disk_usage(folder.path).free) // 2:
        raise UserError(f"disk: what the Job has made has {sum(sizes.values()):,} bytes, and {free:,} are free; half of them are left to others.")


def _check(name: str, file: Path) -> None:
    try:
        if name == "events.jsonl":
            for line in _lines(file):
                _check_event(line)
        elif name == "failure" and file.stat().st_size > FAILURE:
            raise ValueError("it is too long")
        elif name.startswith("previews/"):
            with Image.open(file, formats=["PNG"]) as picture:
                if picture.width * picture.height > limits.PICTURE_PIXELS:
                    raise ValueError("it is too large")
    except (UserError, ValueError, KeyError, TypeError, RecursionError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"job: {name} in its bucket is nothing that a run makes.") from error


def _lines(file: Path) -> Iterator[dict]:
    text = file.read_text(encoding="utf-8")
    yield from map(json.loads, text[: text.rfind("\n") + 1].splitlines())


def _check_event(line: dict) -> None:
    """Raises what `_check` knows for a line that is no event of a run, or whose file is not in its folder."""
    kind = line.pop("kind")
    if not math.isfinite(line.pop("t")) or line.pop("memory") < 0:
        raise ValueError("it says no time, or no memory")
    presets.record(EVENTS[kind], line, kind)
    if kind in FILES and not FILES[kind].fullmatch(line["file"]):
        raise ValueError("its name is a path")
