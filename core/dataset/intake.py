"""Imports a person's files as a dataset: decodes and rewrites each usable picture.

Every file that is left out is named with its reason.
"""

import codecs
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from core.dataset.dataset import Dataset, Sample, SkippedFile, clean_caption, clean_name
from core.dataset.files import Entry
from core.dataset.kohya import read_kohya_config
from core.dataset.layout import CAPTION_SUFFIXES, CaptionedPicture, Layout, Subset, read_folder_layout
from core.dataset.pictures import UnusableFile, decode_picture
from core.dataset.sources import open_file_trees
from core.schema import limits
from core.schema.errors import UserError
from core.system.atomic_files import replace_file

JAPANESE_ENCODING = "cp932"
"""The encoding that Windows writes in Japan."""


def import_dataset(
    sources: Sequence[Path], folder: Path, *, regularisation: bool = False, trusted: bool = False
) -> Dataset:
    """Import zips, folders, and pictures and captions dropped together into the new `folder`.

    Saves nothing but the pictures, as 0001.png and so on, upright RGB. `trusted` sources may hold
    links and name other folders of this machine.

    Raises `UserError` if nothing can be used, for more than `core.schema.limits` allows, and for a
    layout that would not mean what it seems to; `folder` is then removed again.
    """
    folder.mkdir(parents=True)
    try:
        with open_file_trees(sources, trusted) as found:
            layouts = [read_kohya_config(box, trusted) or read_folder_layout(box) for box in found]
            skipped = [file for files in (*found, *layouts) for file in files.skipped]
            return _import_layouts(layouts, skipped, folder, regularisation)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _import_layouts(
    layouts: Sequence[Layout], skipped: list[SkippedFile], folder: Path, regularisation: bool
) -> Dataset:
    told = [layout.settings for layout in layouts if layout.settings]
    if len(told) > 1:
        raise UserError("dataset", f"{len(told)} .toml files describe the training; use only one.")
    ones = [(one, subset) for layout in layouts for subset in layout.subsets for one in subset.pictures]
    if len(ones) > limits.DATASET_PICTURES:
        raise UserError(
            "dataset", f"{len(ones):,} images are too many; the limit is {limits.DATASET_PICTURES:,}."
        )
    samples, pixels, heard = [], 0, defaultdict[str, list[str]](list)
    for one, subset in ones:
        name = clean_name(one.picture.name)
        try:
            picture, frames = decode_picture(one.picture.read())
        except UnusableFile as error:
            skipped.append(SkippedFile(name=name, reason=str(error)))
            continue
        if (pixels := pixels + picture.width * picture.height) > limits.DATASET_PIXELS:
            raise UserError(
                "dataset",
                "the images have too many pixels; "
                f"the limit is {limits.DATASET_PIXELS / 1e9:g} gigapixels in total.",
            )
        if frames > 1:
            heard["Only the first of several frames is used"].append(name)
        file = f"{len(samples) + 1:04}.png"
        picture.save(folder / file, compress_level=1)  # half the time, files up to a third larger
        samples.append(
            Sample(
                file=file,
                name=name,
                caption=_read_caption(one, subset, skipped, heard),
                width=picture.width,
                height=picture.height,
                repeats=subset.repeats,
                regularisation=regularisation or subset.regularisation,
                wording=subset.wording,
                flip=subset.flip,
                group=subset.group,
            )
        )
    if not samples:
        why = f"{skipped[0].name!r}: {skipped[0].reason}" if skipped else "there is no image"
        raise UserError("dataset", f"none of the files can be used; {why}.")
    notes = [note for layout in layouts for note in layout.notes]
    notes += [
        f"{what}: {names[0]!r}." if len(names) == 1 else f"{what}: {len(names)} images, such as {names[0]!r}."
        for what, names in heard.items()
    ]
    return Dataset(
        folder=folder,
        samples=tuple(samples),
        skipped=tuple(skipped),
        notes=tuple(notes),
        settings=dict(*told),
    )


def _read_caption(
    one: CaptionedPicture, subset: Subset, skipped: list[SkippedFile], names_by_note: dict[str, list[str]]
) -> str:
    """Return the text of the caption file, or the folder's class if no caption file is usable.

    The class may be empty.
    """
    name = clean_name(one.picture.name)
    if len(one.captions) > 1:
        names_by_note["Both .txt and .caption exist; the .txt is used"].append(name)
    if one.captions:
        file = one.captions[0]
        if file.suffix.lower() == CAPTION_SUFFIXES[1]:
            names_by_note["The caption is read from a .caption file"].append(name)
        try:
            text, encoding = _read_caption_text(file)
        except UnusableFile as error:
            skipped.append(SkippedFile(name=clean_name(file.name), reason=str(error)))
        else:
            if encoding == JAPANESE_ENCODING:
                names_by_note["The caption is not UTF-8 and was read as Shift JIS"].append(name)
            return text
    if subset.class_tokens:
        names_by_note[f"Without a caption file, the caption is {clean_name(subset.class_tokens)!r}"].append(
            name
        )
    return clean_caption(subset.class_tokens)


def _read_caption_text(file: Entry) -> tuple[str, str]:
    """Return a caption file's text and encoding.

    Raises `UnusableFile` if it is too long or cannot be decoded.
    """
    data = file.read(4 * limits.CAPTION_LENGTH + len(codecs.BOM_UTF8))
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", JAPANESE_ENCODING):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if len(text) > limits.CAPTION_LENGTH:
            raise UnusableFile(
                f"it has {len(text):,} characters; the limit for a caption is {limits.CAPTION_LENGTH:,}"
            )
        return clean_caption(text), encoding
    raise UnusableFile("its text is not UTF-8, UTF-16 or Shift JIS")


def export_zip(dataset: Dataset, archive: Path) -> Path:
    """Write pictures and captions as a flat zip, which kohya's trainer takes as a folder.

    Leaves out regularisation pictures, which could not be told apart there.
    """
    with (
        replace_file(archive) as unfinished,
        zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as out,  # PNGs are compressed already
    ):
        for sample in dataset.samples:
            if not sample.regularisation:
                out.write(dataset.folder / sample.file, sample.file)
                if sample.caption:  # kohya's trainer stops at an empty file
                    out.writestr(f"{Path(sample.file).stem}.txt", sample.caption)
    return archive
