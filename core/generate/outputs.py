"""Keeps finished pictures: in `outputs/`, by a pattern that a person can set in `outputs.toml`.

On a Space nothing is kept. No picture ever takes the place of another, whichever process writes it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from core.schema.errors import UserError
from core.schema.toml import read_toml
from core.schema.types import Request
from core.system import paths
from core.system.atomic_files import copy_to_new_file
from core.system.device import is_space

SETTINGS_FILE = "outputs.toml"
"""Beside `models/`: `folder` says where pictures go, `pattern` how they are called."""
PATTERN = "[date]/[number]-[seed]"
PATTERN_LENGTH = 100
SUFFIX = ".png"
FIELDS = ("date", "time", "number", "seed", "model")
FIELD = re.compile(r"\[([^\[\]]*)\]")
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
"""What Windows takes in no file name."""
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for its devices."""
VALUE_BYTES = 60
"""Of what stands for a field; a whole name may have 255."""
PAGE_FOLDER = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
"""Folders of a page's own files, which lay in `outputs/` before it kept pictures."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where finished pictures go, and how they are called."""

    folder: Path
    pattern: str = PATTERN
    """Folders and file name without its suffix, with fields in square brackets."""


def find_outputs() -> Outputs | None:
    """Return where pictures are kept; `None` on a Space. Raises `UserError` for a bad `outputs.toml`."""
    if is_space():
        return None
    file = paths.MODELS.with_name(SETTINGS_FILE)
    table = read_toml(file, SETTINGS_FILE) if file.is_file() else {}
    if unknown := [name for name in table if name not in ("folder", "pattern")]:
        raise UserError(SETTINGS_FILE, f"{unknown[0][:40]!r} is not valid. Use folder and pattern.")
    for name, value in table.items():
        if not isinstance(value, str) or not value:
            raise UserError(SETTINGS_FILE, f"{name}: use a text in quotes.")
    folder = paths.OUTPUTS
    if "folder" in table and "SWEETSPOT_OUTPUTS" not in os.environ:
        folder = file.parent / os.path.expanduser(table["folder"])  # noqa: PTH111  (an unknown `~user` stays)
    pattern = table.get("pattern", PATTERN)
    _check_pattern(pattern)
    return Outputs(folder=folder, pattern=pattern)


def _check_pattern(pattern: str) -> None:
    parts = pattern.split("/")
    unknown = [field for field in FIELD.findall(pattern) if field not in FIELDS]
    literal = FIELD.sub("", pattern.replace("/", ""))
    if unknown:
        sentence = f"[{unknown[0][:40]}] is not valid. Use {', '.join(f'[{field}]' for field in FIELDS)}."
    elif "[number]" in "/".join(parts[:-1]):
        sentence = "[number] is not valid in a folder. Use it in the file name."
    elif found := FORBIDDEN.search(literal):
        sentence = f"{found[0]!r} is not valid in a file name. Use / between folders."
    elif any(not part.strip(" .") or part.startswith(".") for part in parts):
        sentence = "a folder or name is empty or begins with a dot."
    elif len(pattern) > PATTERN_LENGTH:
        sentence = f"{len(pattern)} characters are too many; the limit is {PATTERN_LENGTH}."
    else:
        return
    raise UserError(SETTINGS_FILE, f"pattern: {sentence}")


def keep_picture(
    file: Path, request: Request, outputs: Outputs | None
) -> tuple[Path | None, tuple[str, ...]]:
    """Copy a finished picture to the outputs, if there are any; return the copy, and what to say.

    A full disk or a folder that cannot be written costs the copy: it is `None`, and a sentence
    says why.
    """
    if outputs is None:
        return None, ()
    try:
        return _copy_picture(file, request, outputs), ()
    except OSError as error:
        return None, (f"Not kept in {outputs.folder}: {error.strerror or error}.",)


def _copy_picture(file: Path, request: Request, outputs: Outputs) -> Path:
    now = datetime.now()
    values = {
        "date": f"{now:%Y-%m-%d}",
        "time": f"{now:%H-%M-%S}",
        "seed": str(request.seed),
        "model": request.model,
    }
    *folders, name = outputs.pattern.split("/")
    folder = outputs.folder.joinpath(*(_fill_part(part, values) for part in folders))
    folder.mkdir(parents=True, exist_ok=True)
    for target in _list_free_names(folder, name, values):
        try:
            copy_to_new_file(file, target)
        except FileExistsError:  # another process was first
            continue
        return target
    raise AssertionError("numbers do not end")


def _list_free_names(folder: Path, name: str, values: Mapping[str, str]) -> Iterator[Path]:
    """Yield file names that nothing has yet, by number; without `[number]`, from the second on with one."""
    for number in count(_find_next_number(folder, name)):
        stem = _fill_part(name, {**values, "number": f"{number:05d}"})
        if "[number]" not in name and number > 1:
            stem += f"-{number}"
        if not (target := folder / f"{stem}{SUFFIX}").exists():
            yield target


def _find_next_number(folder: Path, name: str) -> int:
    """Return one more than the highest number that a file by this pattern has."""
    if "[number]" not in name:
        return 1
    pattern = re.escape(f"{name}{SUFFIX}").replace(re.escape("[number]"), r"(\d+)", 1)
    pattern = re.sub(r"\\\[[a-z]+\\\]", ".*", pattern)  # any other field
    found = (re.fullmatch(pattern, file.name) for file in folder.iterdir())
    return 1 + max((int(match[1]) for match in found if match), default=0)


def _fill_part(part: str, values: Mapping[str, str]) -> str:
    """Return a part of the pattern with its fields filled in, as a name that every system takes."""
    filled = FIELD.sub(lambda field: _clean_value(values[field[1]]), part).strip(" .") or "_"
    return f"_{filled}" if DEVICES.fullmatch(filled) else filled


def _clean_value(value: str) -> str:
    return FORBIDDEN.sub("_", value).encode()[:VALUE_BYTES].decode(errors="ignore")


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures below a folder, newest first. No file is opened.

    Left out are what is hidden or a link, and the folders of a page's own files. Raises `UserError`
    for a folder that cannot be read.
    """
    try:
        return [Path(file) for _, file in sorted(_scan(str(folder)), reverse=True)]
    except OSError as error:
        raise UserError("outputs", f"{error.filename} cannot be read: {error.strerror}.") from error


def _scan(folder: str) -> Iterator[tuple[int, str]]:
    """Yield time (ns) and path of each picture below a folder; one that is not there has none."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            if not PAGE_FOLDER.fullmatch(entry.name):
                yield from _scan(entry.path)
        elif entry.name.lower().endswith(SUFFIX) and entry.is_file(follow_symlinks=False):
            try:
                told = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # deleted meanwhile
                continue
            if told.st_size:  # a name that is taken, and whose picture is on its way
                yield told.st_mtime_ns, entry.path


def delete_picture(file: Path, folder: Path) -> None:
    """Delete a picture below a folder, and nothing else.

    Raises `UserError` for any other file, for a link, and for one that cannot be deleted.
    """
    real = file.resolve()
    if file.suffix.lower() != SUFFIX or file.is_symlink() or not real.is_relative_to(folder.resolve()):
        raise UserError("image", f"{file.name} is no image of the history.")
    try:
        real.unlink(missing_ok=True)
    except OSError as error:
        raise UserError("image", f"{file.name} cannot be deleted: {error.strerror}.") from error
