"""Finds images of a LoRA's style: in a folder beside it, of the run that trained it, or on its Hub card."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from PIL import Image

from core.dataset.dataset import Sample, load_dataset
from core.hub import client as hub
from core.models import from_hub
from core.models.from_hub import IMAGE_SUFFIXES
from core.models.lora_library import EXAMPLES_FOLDER
from core.schema import limits
from core.schema.errors import UserError
from core.sweep.plan import check_reference
from core.system.atomic_files import link_or_copy
from core.system.tensor_files import calculate_sha256
from core.train import access
from core.train.trainer.run_folder import RunFolder
from tabs.server import visitor
from tabs.server.page_files import create_folder, expose_run_file


def find_references(lora: str) -> tuple[list[Path], str]:
    """Return images of the style of a LoRA's file, and one sentence that says where they are from.

    No images and no sentence: nothing is known. No images and a sentence: they cannot be read, or fetched.
    """
    path = Path(lora)
    if beside := _list_images_beside(path):
        return beside, "The references are the images in the folder beside this LoRA that has its name."
    if run := _find_run(path):
        try:
            own = [run.dataset / sample.file for sample in _list_samples(run)]
        except UserError as error:  # its images were deleted, or are damaged
            return [], f"The images of the run that trained this LoRA cannot be read: {error}"
        return own, "The references are images of the run that trained this LoRA."
    if not (origin := hub.find_origin(path)):
        return [], ""
    try:
        found = [file for file in from_hub.fetch_gallery(origin) if _is_image(file)]
    except UserError as error:
        return [], f"The images on its card could not be fetched: {error}"
    return found, "The references are the images on its card on Hugging Face." if found else ""


def expose_references(files: Sequence[Path]) -> list[str]:
    """Put images where a page may show them, and return their paths there."""
    folder = create_folder() if files else Path()
    shown = [folder / f"reference-{number:02}{file.suffix.lower()}" for number, file in enumerate(files)]
    for file, at in zip(files, shown, strict=True):
        link_or_copy(file.resolve(), at)
    return list(map(str, shown))


def list_run_images(run: RunFolder) -> list[str]:
    """Return a run's own training images where a page may show them, as many as a sweep takes."""
    place = access.get_public_id(run)
    return [str(expose_run_file(run.dataset / sample.file, place)) for sample in _list_samples(run)]


def _list_samples(run: RunFolder) -> list[Sample]:
    own = [sample for sample in load_dataset(run.dataset).samples if not sample.regularisation]
    return own[: limits.REFERENCES]


def _is_image(file: Path) -> bool:
    """Whether all of a file can be read as an image: nobody chose it, so a sweep must not fail by it."""
    try:
        check_reference(file)
        with Image.open(file) as picture:
            picture.load()
    except (UserError, OSError, ValueError, SyntaxError):
        return False
    return True


def _list_images_beside(lora: Path) -> list[Path]:
    """Return the images in the folder that has a library LoRA's name and lies beside it.

    Of a person's own library, they are shown at home alone, and not through a share link.
    """
    if lora.parent != EXAMPLES_FOLDER and not visitor.is_own_machine():
        return []
    files = sorted(file for file in lora.with_suffix("").glob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    return list(islice(filter(_is_image, files), limits.REFERENCES))


def _find_run(lora: Path) -> RunFolder | None:
    """Return the run that saved this very file, if the visitor may see its images."""
    size = lora.stat().st_size
    for run in visitor.list_trusted_runs():
        same = [file for file in run.loras.glob("*.safetensors") if file.stat().st_size == size]
        if same and calculate_sha256(lora) in map(calculate_sha256, same):
            return run
    return None
