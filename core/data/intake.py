"""What a person brings -> a dataset: every usable picture decoded and written anew, every file left out named with its reason."""

import codecs
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from core import limits
from core.atomic import replacing
from core.data.dataset import Dataset, Sample, Skipped, shown, tidied
from core.data.files import Entry
from core.data.kohya import configured
from core.data.layout import CAPTIONS, Layout, Pictured, Subset, folders
from core.data.pictures import Unusable, upright
from core.data.sources import boxes
from core.types import UserError

JAPANESE = "cp932"
"""What Windows writes in Japan."""


def imported(sources: Sequence[Path], into: Path, *, regularisation: bool = False, trusted: bool = False) -> Dataset:
    """Read zips, folders, and pictures and captions dropped together, into the new folder `into`; nothing is saved but the pictures.

    They are written as 0001.png and so on, upright RGB. `trusted` sources may hold links and name other folders of this
    machine. Raises `UserError` if nothing can be used, for more than `core.limits` allows, and for a layout that would not
    mean what it seems to; then `into` is gone again.
    """
    into.mkdir(parents=True)
    try:
        with boxes(sources, trusted) as found:
            layouts = [configured(box, trusted) or folders(box) for box in found]
            skipped = [file for files in (*found, *layouts) for file in files.skipped]
            return _read(layouts, skipped, into, regularisation)
    except BaseException:
        shutil.rmtree(into)
        raise


def _read(layouts: Sequence[Layout], skipped: list[Skipped], into: Path, regularisation: bool) -> Dataset:
    told = [layout.settings for layout in layouts if layout.settings]
    if len(told) > 1:
        raise UserError(f"dataset: {len(told)} .toml files say how to train; it takes one.")
    ones = [(one, subset) for layout in layouts for subset in layout.subsets for one in subset.pictures]
    if len(ones) > limits.DATASET_PICTURES:
        raise UserError(f"dataset: {len(ones):,} pictures are too many; it takes up to {limits.DATASET_PICTURES:,}.")
    samples, pixels, heard = [], 0, defaultdict[str, list[str]](list)
    for one, subset in ones:
        name = shown(one.picture.name)
        try:
            picture, frames = upright(one.picture.read())
        except Unusable as error:
            skipped.append(Skipped(name=name, reason=str(error)))
            continue
        if (pixels := pixels + picture.width * picture.height) > limits.DATASET_PIXELS:
            raise UserError(f"dataset: the pictures have too many pixels; it takes up to {limits.DATASET_PIXELS / 1e9:g} gigapixels in all.")
        if frames > 1:
            heard["Of several frames the first is taken"].append(name)
        file = f"{len(samples) + 1:04}.png"
        picture.save(into / file, compress_level=1)  # in half of the time, if up to a third larger
        samples.append(
            Sample(
                file=file,
                name=name,
                caption=_caption(one, subset, skipped, heard),
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
        why = f"{skipped[0].name!r}: {skipped[0].reason}" if skipped else "no picture was brought"
        raise UserError(f"dataset: nothing can be used; {why}.")
    notes = [note for layout in layouts for note in layout.notes]
    notes += [f"{what}: {names[0]!r}." if len(names) == 1 else f"{what}: {len(names)} pictures, such as {names[0]!r}." for what, names in heard.items()]
    return Dataset(folder=into, samples=tuple(samples), skipped=tuple(skipped), notes=tuple(notes), settings=dict(*told))


def _caption(one: Pictured, subset: Subset, skipped: list[Skipped], heard: dict[str, list[str]]) -> str:
    """The text of the caption's file; without a usable one the folder's class, which may be empty."""
    name = shown(one.picture.name)
    if len(one.captions) > 1:
        heard["Of .txt and .caption the .txt is taken"].append(name)
    if one.captions:
        file = one.captions[0]
        if file.suffix.lower() == CAPTIONS[1]:
            heard["The caption is read from a .caption file"].append(name)
        try:
            text, encoding = _text(file)
        except Unusable as error:
            skipped.append(Skipped(name=shown(file.name), reason=str(error)))
        else:
            if encoding == JAPANESE:
                heard["The caption is no UTF-8 and was read as Shift JIS"].append(name)
            return text
    if subset.class_tokens:
        heard[f"Without a caption file, the caption is {shown(subset.class_tokens)!r}"].append(name)
    return tidied(subset.class_tokens)


def _text(file: Entry) -> tuple[str, str]:
    """A caption file's text and encoding. Raises `Unusable`."""
    data = file.read(4 * limits.CAPTION + len(codecs.BOM_UTF8))
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", JAPANESE):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if len(text) > limits.CAPTION:
            raise Unusable(f"it has {len(text):,} characters; a caption has up to {limits.CAPTION:,}")
        return tidied(text), encoding
    raise Unusable("it is text neither in UTF-8 nor in UTF-16 or Shift JIS")


def written(dataset: Dataset, archive: Path) -> Path:
    """Pictures and captions as a zip, flat, as kohya's trainer takes a folder; without regularisation pictures, which there could not be told apart."""
    with replacing(archive) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as out:  # PNGs are packed already
        for sample in dataset.samples:
            if not sample.regularisation:
                out.write(dataset.folder / sample.file, sample.file)
                if sample.caption:  # its trainer stops at an empty file
                    out.writestr(f"{Path(sample.file).stem}.txt", sample.caption)
    return archive
