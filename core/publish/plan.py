"""What a person filled in to publish a LoRA -> a publication; what is not allowed is said in one sentence before anything is sent."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import edit, hub, limits, lora, models, shelf
from core.checks import FORBIDDEN
from core.data import dataset as datasets
from core.data.tagging import counts
from core.digest import content
from core.lorafile import LoraFile
from core.publish import measured
from core.record import read_picture
from core.train import run as runs
from core.train.folder import Folder
from core.train.run import Run
from core.transfer.plan import home
from core.types import Model, UserError

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,95}/[A-Za-z0-9][A-Za-z0-9._\-]{0,95}")
LICENCES = ("apache-2.0", "mit", "openrail++", "creativeml-openrail-m", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0")
"""Those that the Hub has a name for, and people choose for LoRAs; any other name is written as `other`."""
WORDS = 200  # characters of a title, a trigger or a licence
TEXT = 5000  # characters of a description
PICTURES = 12


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A LoRA as it is to stand on the Hub."""

    repo: str
    """`owner/name`."""
    file: LoraFile
    title: str
    trigger: str
    description: str
    base: Model | None
    """The model that it was trained on; `None` if nobody says."""
    licence: str
    private: bool
    sweeps: tuple[Mapping[str, Any], ...] = ()
    """Reports of this file, one for each base."""
    transfer: Mapping[str, Any] | None = None
    origin: str | None = None
    """The Hub's name of the file, at its commit, where it is from there."""
    run: Run | None = None
    tags: Mapping[str, int]
    """How often each tag stood in the captions."""
    images: int | None = None
    """Pictures that it was trained on."""
    pictures: tuple[tuple[Path, str], ...] = ()
    """Files and their prompts."""
    dataset: datasets.Dataset | None = None
    """What it was trained on, where that is to be seen by all; otherwise only its counts are told."""

    @property
    def name(self) -> str:
        """What the file is called."""
        return f"{shelf.slug(self.file.path.stem)[:100]}.safetensors"


def plan(values: Mapping[str, Any]) -> Publication:
    """The publication that is asked for.

    `lora` (a path) or `run` (a folder), `repo`; and where they are said `title`, `trigger`, `description`, `license`, `private`,
    `home`, `sweep` (a report, or several), `transfer`, `pictures` (files made here) and
    `dataset` (send the training pictures, too). Raises `UserError` beginning with the field.
    """
    path, run, data = _source(values)
    found = lora.file(str(path))
    repo = str(values.get("repo") or "").strip()
    if not REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise UserError(f"repo: {repo[:60]!r} is not allowed; it takes owner/name of letters, digits, '-', '_' and '.'.")
    texts = {name: _text(name, values.get(name), most) for name, most in (("title", WORDS), ("trigger", WORDS), ("description", TEXT), ("license", WORDS))}
    named = values.get("home") or (run.model if run else home(found))
    base = models.named("home", named) if named else None
    if not texts["license"] and (base is None or base.licence == "unknown"):
        raise UserError("license: nobody says what the LoRA was trained on, so it cannot be inherited; say which it has.")
    private, shown = values.get("private", True), values.get("dataset") or False
    for field, value in (("private", private), ("dataset", shown)):
        if not isinstance(value, bool):
            raise UserError(f"{field}: {str(value)[:40]!r} is not allowed; it takes true or false.")
    if shown and data is None:
        raise UserError("dataset: a file has no training pictures to send; it takes a run.")
    said, own = values.get("sweep") or [], content(found.path)
    sweeps = tuple(measured.sweep(report, own, edit.history(found)) for report in (said if isinstance(said, list | tuple) else [said]))
    if len(sweeps) > limits.COLUMNS:
        raise UserError(f"sweep: {len(sweeps)} reports are too many; it takes up to {limits.COLUMNS}.")
    transfer = measured.transfer(values["transfer"], own) if values.get("transfer") else None
    trigger = texts["trigger"] if values.get("trigger") is not None else (run.trigger if run else found.trigger or "")
    return Publication(
        repo=repo,
        file=found,
        title=texts["title"] or (run.name if run else found.path.stem),
        trigger=trigger,
        description=texts["description"],
        base=base,
        licence=texts["license"] or (base.licence if base else ""),
        private=private,
        sweeps=sweeps,
        transfer=transfer,
        origin=hub.origin(found.path),
        run=run,
        tags=counts(data) if data else found.tags,
        images=sum(not sample.regularisation for sample in data.samples) if data else None,
        pictures=_pictures(values.get("pictures")),
        dataset=data if shown else None,
    )


def _source(values: Mapping[str, Any]) -> tuple[Path, Run | None, datasets.Dataset | None]:
    """The file, and the run and the pictures that it comes from."""
    if values.get("run"):
        folder = Folder(Path(str(values["run"])))
        if (file := runs.last(folder)) is None:
            raise UserError("run: it has no LoRA yet.")
        return file, runs.read(folder), datasets.load(folder.dataset)
    if not values.get("lora"):
        raise UserError("lora: choose one, or a run.")
    return Path(str(values["lora"])), None, None


def _text(field: str, value: Any, most: int) -> str:
    text = "" if value is None else value
    if not isinstance(text, str):
        raise UserError(f"{field}: {str(text)[:40]!r} is not text.")
    if len(text) > most:
        raise UserError(f"{field}: {len(text):,} characters are too many; it takes up to {most:,}.")
    return FORBIDDEN.sub("", text).strip()


def _pictures(said: Any) -> tuple[tuple[Path, str], ...]:
    """Files with the prompts that stand in them."""
    files: Sequence[Any] = said if isinstance(said, list | tuple) else [said] if said else []
    if len(files) > PICTURES:
        raise UserError(f"pictures: {len(files)} are too many; it takes up to {PICTURES}.")
    return tuple((Path(str(file)), read_picture(Path(str(file))).fields["prompt"]) for file in files)
