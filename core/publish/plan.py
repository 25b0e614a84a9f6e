"""Turn the form for publishing a LoRA into a publication.

Whatever is not allowed becomes a `UserError` with one sentence, before anything is sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from core.dataset import dataset as datasets
from core.dataset.tagging import count_tags
from core.hub import client as hub
from core.lora import apply as lora
from core.lora import edit
from core.lora.file import LoraFile
from core.models import bases, lora_library
from core.prompts.png_metadata import read_infotext
from core.publish import measured
from core.publish.licences import is_named
from core.schema import limits
from core.schema.bounds import PlainText, Switch
from core.schema.errors import UserError
from core.schema.records import record
from core.schema.types import Model
from core.system.tensor_files import calculate_sha256
from core.train.trainer import run_record
from core.train.trainer.run_folder import RunFolder
from core.train.trainer.run_record import Run
from core.transfer.plan import find_home_model

MAX_LINE_LENGTH = 200  # characters of a title, a trigger or a licence
MAX_DESCRIPTION_LENGTH = 5000  # characters of a description
MAX_PICTURES = 12


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A LoRA as it will be on the Hub."""

    repo: str
    """`owner/name`."""
    file: LoraFile
    title: str
    trigger: str
    description: str
    base: Model | None
    """The model that the LoRA was trained on; `None` if it is unknown."""
    licence: str
    private: bool
    sweeps: tuple[Mapping[str, Any], ...] = ()
    """Reports of sweeps of this file, one for each base model."""
    transfer: Mapping[str, Any] | None = None
    origin: str | None = None
    """The file's name on the Hub, at its commit, if it came from there."""
    run: Run | None = None
    tags: Mapping[str, int]
    """How often each tag occurs in the training captions."""
    images: int | None = None
    """Number of pictures that the LoRA was trained on; `None` if it is unknown."""
    pictures: tuple[tuple[Path, str], ...] = ()
    """Files of example pictures, each with its prompt."""
    dataset: datasets.Dataset | None = None
    """The training images, if they are to be published.

    Without it, only their counts are.
    """

    @property
    def name(self) -> str:
        """The name that the file gets on the Hub."""
        return f"{self.stem}.safetensors"

    @property
    def stem(self) -> str:
        """The name without its ending: of the folders for what belongs to this LoRA alone."""
        return lora_library.slugify(self.file.path.stem)[:100]

    @property
    def examples(self) -> str:
        """The folder of its example pictures in the repository."""
        return f"images/{self.stem}"

    @property
    def reports(self) -> str:
        """The folder of its reports in the repository."""
        return f"reports/{self.stem}"


@record
class PublicationForm:
    """What a person fills in to publish a LoRA: a file, or the LoRA that a run has made."""

    lora: str | None = None
    """The path of a LoRA."""
    run: str | None = None
    """The folder of a run."""
    repo: str = ""
    """`owner/name`."""
    title: Annotated[str, PlainText(MAX_LINE_LENGTH)] = ""
    """Empty for the file's name."""
    trigger: Annotated[str | None, PlainText(MAX_LINE_LENGTH)] = None
    """`None` for the run's or the file's own."""
    description: Annotated[str, PlainText(MAX_DESCRIPTION_LENGTH)] = ""
    license: Annotated[str, PlainText(MAX_LINE_LENGTH)] = ""
    """Empty for the licence of the model that the LoRA was trained on."""
    private: Annotated[bool, Switch()] = True
    home: str | None = None
    """The model that the LoRA was trained on; `None` for what the run or the file tells."""
    sweep: Any = ()
    """The report of a sweep, or several."""
    transfer: Any = None
    """The report of a transfer study."""
    pictures: Any = ()
    """Files of images made here."""
    dataset: Annotated[bool, Switch()] = False
    """Whether a run's training images are published, too."""


def plan_publication(form: PublicationForm) -> Publication:
    """Plan the publication that a form asks for. Raises `UserError` for whatever is not allowed."""
    path, run, data = _find_source(form)
    found = lora.get_lora_file(str(path))
    repo = _check_repo(form.repo.strip())
    home = form.home or (run.model if run else find_home_model(found))
    base = bases.find_model_for_field("home", home) if home else None
    if not form.license and (base is None or not is_named(base.licence)):
        raise UserError(
            "license",
            f"{base.title} says '{base.licence}' of its licence, which names none. Choose one."
            if base
            else "the base model of the LoRA is unknown, so its licence cannot be inherited. Choose one.",
        )
    if form.dataset and data is None:
        raise UserError("dataset", "a file has no training images to include. Choose a run.")
    reports = form.sweep if isinstance(form.sweep, list | tuple) else [form.sweep]
    sha256, history = calculate_sha256(found.path), edit.read_history(found)
    if len(reports) > limits.TRANSFER_MODELS:
        raise UserError(
            "sweep", f"{len(reports)} reports are too many; the limit is {limits.TRANSFER_MODELS}."
        )
    sweeps = tuple(measured.parse_sweep_report(report, sha256, history) for report in reports)
    own_trigger = run.trigger if run else found.trigger or ""
    return Publication(
        repo=repo,
        file=found,
        title=form.title or (run.name if run else found.path.stem),
        trigger=own_trigger if form.trigger is None else form.trigger,
        description=form.description,
        base=base,
        licence=form.license or (base.licence if base else ""),
        private=form.private,
        sweeps=sweeps,
        transfer=None if form.transfer is None else measured.parse_transfer_report(form.transfer, sha256),
        origin=hub.find_origin(found.path),
        run=run,
        tags=count_tags(data) if data else found.tags,
        images=sum(not sample.regularisation for sample in data.samples) if data else None,
        pictures=_read_pictures(form.pictures),
        dataset=data if form.dataset else None,
    )


def _check_repo(repo: str) -> str:
    """Return the name of a repository. Raises `UserError` for one that the Hub refuses."""
    try:
        if repo.count("/") != 1:
            raise HFValidationError
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            "repo",
            f"{repo[:60]!r} is not valid. Use owner/name of up to 96 letters, digits, '-', '_' and '.', "
            "without '--' or '..', '-' or '.' at an end, and '.git' as its end.",
        ) from error
    return repo


def _find_source(form: PublicationForm) -> tuple[Path, Run | None, datasets.Dataset | None]:
    """Return the file, and the run and the images that it comes from."""
    if form.run and form.lora:
        raise UserError("run", "a run and a LoRA are given; leave one of them out.")
    if form.run:
        folder = RunFolder(Path(form.run))
        if (file := run_record.find_final_lora(folder)) is None:
            raise UserError("run", "this run has no LoRA yet.")
        return file, run_record.read_run(folder), datasets.load_dataset(folder.dataset)
    if not form.lora:
        raise UserError("lora", "choose a LoRA, or a run.")
    return Path(form.lora), None, None


def _read_pictures(files: Sequence[Any]) -> tuple[tuple[Path, str], ...]:
    """Return the files with the prompts that are written in them."""
    if len(files) > MAX_PICTURES:
        raise UserError("pictures", f"{len(files)} are too many; the limit is {MAX_PICTURES}.")
    return tuple((Path(str(file)), read_infotext(Path(str(file))).fields["prompt"]) for file in files)
