"""A dataset as kohya's trainer is told of it: a .toml that names folders, and says how each is used.

Every setting is used, said aloud to be without effect, or refused.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from core import limits
from core.data.dataset import shown
from core.data.files import Box, Entry
from core.data.layout import CAPTIONS, CONFIG, Layout, Subset, checked_repeats, left_out, masks, pictured
from core.data.pictures import Unusable
from core.data.sources import OUTSIDE, on_disk
from core.data.words import Wording
from core.toml import parse_toml
from core.types import UserError

SETTINGS = {
    "resolution": "resolution", "batch_size": "batch", "min_bucket_reso": "least_side", "max_bucket_reso": "most_side", "bucket_reso_steps": "bucket_step",
}  # fmt: skip
"""kohya's name -> the recipes'."""
WORDING = {
    "shuffle_caption": "shuffle", "keep_tokens": "keep_tokens", "keep_tokens_separator": "keep_separator", "caption_separator": "separator",
    "secondary_separator": "secondary_separator", "caption_tag_dropout_rate": "tag_dropout", "caption_dropout_rate": "caption_dropout",
    "caption_dropout_every_n_epochs": "caption_dropout_every", "caption_prefix": "prefix", "caption_suffix": "suffix", "enable_wildcard": "wildcard",
}  # fmt: skip
"""kohya's name -> `Wording`'s."""
BY_KIND = {
    bool: ("enable_bucket", "bucket_no_upscale", "is_reg", "flip_aug", "shuffle_caption", "enable_wildcard"),
    int: (*SETTINGS, "num_repeats", "keep_tokens", "caption_dropout_every_n_epochs"),
    float: ("caption_tag_dropout_rate", "caption_dropout_rate"),
    str: (
        "image_dir", "class_tokens", "caption_extension", "caption_separator", "keep_tokens_separator", "secondary_separator",
        "caption_prefix", "caption_suffix",
    ),
}  # fmt: skip
KINDS = {name: kind for kind, names in BY_KIND.items() for name in names}
SAID = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
WITHOUT: dict[str, Any] = {
    "color_aug": False, "random_crop": False, "face_crop_aug_range": None, "resize_interpolation": None, "alpha_mask": False, "token_warmup_min": 1,
    "token_warmup_step": 0, "custom_attributes": {}, "cache_info": False, "network_multiplier": 1, "validation_seed": None, "validation_split": 0,
    "skip_image_resolution": None,
}  # fmt: skip
"""What has no counterpart here -> the value that asks for nothing."""
FOREIGN = ("metadata_file", "conditioning_data_dir")
"""What only subsets of other kinds of training have."""
OF_SUBSETS = {"image_dir", "is_reg", "alpha_mask"}
OF_DATASETS = {*SETTINGS, "enable_bucket", "bucket_no_upscale", "network_multiplier", "validation_seed", "validation_split", "skip_image_resolution"}


def configured(box: Box, trusted: bool) -> Layout | None:
    """What the box's .toml says: [general] < [[datasets]] < [[datasets.subsets]], the lower wins; `None` if it has none.

    It names folders beside it in the box; if it is `trusted`, any on this machine. Raises `UserError` for a setting that is
    not known, a value that is not allowed, a folder without pictures.
    """
    configs = [(entry, table) for entry in box.entries if entry.suffix.lower() == CONFIG and "datasets" in (table := _read(entry))]
    if not configs:
        return None
    if len(configs) > 1:
        raise UserError(f"dataset: {shown(configs[0][0].name)!r} and {shown(configs[1][0].name)!r} are datasets of kohya's trainer; it takes one.")
    config, table = configs[0]
    if unknown := table.keys() - {"general", "datasets"}:
        raise UserError(f"dataset: {shown(config.name)} holds {min(unknown)[:40]!r}; it takes [general] and [[datasets]].")
    general = _level(table.get("general", {}), "[general]")
    subsets, settings, notes = [], [], dict[str, None]()
    by_folder, looked_at = box.folders(), dict.fromkeys(entry for entry in box.entries if entry is not config)
    for given in _tables(table["datasets"], "[[datasets]]"):
        dataset = general | _level({name: value for name, value in given.items() if name != "subsets"}, "[[datasets]]")
        settings.append(_settings(dataset))
        known: set[str] = set()
        for lowest in _tables(given.get("subsets"), "[[datasets.subsets]]"):
            values = dataset | _level(lowest, "[[datasets.subsets]]")
            notes |= dict.fromkeys(
                f"{name} of the .toml has no counterpart here: it is trained without." for name, off in WITHOUT.items() if values.get(name, off) != off
            )
            if (place := values.get("image_dir", "")) in known:
                notes[f"image_dir: {shown(place)!r} stands twice in one of the [[datasets]]: the first counts."] = None
                continue
            known.add(place)
            entries = _inside(place, config, by_folder, trusted)
            looked_at |= dict.fromkeys(entries)
            subsets.append(_subset(values, entries))
    if any(other != settings[0] for other in settings):
        raise UserError("dataset: the .toml has [[datasets]] of different resolutions, batches or buckets; it takes one kind.")
    skipped = left_out(looked_at, subsets, "the .toml does not name its folder")
    return Layout(subsets=tuple(subsets), skipped=skipped, notes=(*notes, *masks(looked_at, subsets)), settings=settings[0])


def _read(entry: Entry) -> dict[str, Any]:
    try:
        text = entry.read(limits.TOML_BYTES)
    except Unusable as error:
        raise UserError(f"dataset: {shown(entry.name)}: {error}.") from error
    return parse_toml(text, f"dataset: {shown(entry.name)}")


def _tables(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(table, dict) for table in value):
        raise UserError(f"dataset: the .toml has no {where}; it takes a list of tables.")
    return value


def _level(table: Any, where: str) -> dict[str, Any]:
    """The settings that stand at a level, each known there and of its kind."""
    if not isinstance(table, dict):
        raise UserError(f"dataset: {where} of the .toml is not a table.")
    allowed = (KINDS.keys() | WITHOUT.keys()) - (OF_DATASETS if where == "[[datasets.subsets]]" else OF_SUBSETS)
    found = {}
    for name, value in table.items():
        if name in FOREIGN:
            raise UserError(f"{name}: it belongs to another kind of training; it takes folders of pictures with captions beside them.")
        if name not in allowed:
            raise UserError(f"dataset: {name[:40]!r} is not a setting of {where}; it takes those that kohya's trainer has there.")
        if name == "resolution" and isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]  # buckets go by the area; kohya's examples write it so
        kind = KINDS.get(name)
        if kind and type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"{name}: {value!r:.40} is not allowed; it takes {SAID[kind]}.")
        found[name] = value
    return found


def _settings(dataset: Mapping[str, Any]) -> dict[str, int]:
    """What a dataset says of its buckets and batches, by the recipes' names."""
    found = {ours: dataset[theirs] for theirs, ours in SETTINGS.items() if theirs in dataset}
    if "bucket_no_upscale" in dataset:
        found["upscale"] = not dataset["bucket_no_upscale"]
    if dataset.get("enable_bucket") is False:
        if "resolution" not in found:
            raise UserError("enable_bucket: false is not allowed without a resolution, to which all pictures are cut.")
        found |= {"least_side": found["resolution"], "most_side": found["resolution"], "bucket_step": 8, "upscale": True}  # the one square
    return found


def _inside(place: str, config: Entry, by_folder: Mapping[str, list[Entry]], trusted: bool) -> list[Entry]:
    """The files right in the folder that `image_dir` names."""
    name = place.replace("\\", "/")
    if place and not OUTSIDE.match(name) and (found := by_folder.get(str(PurePosixPath(config.folder) / name))):
        return found
    if not place or not (trusted and config.path):
        raise UserError(f"image_dir: {shown(place)!r} is not allowed; it takes a folder with pictures that was brought too, named from the .toml's own.")
    directory = config.path.parent / name
    if not directory.is_dir():
        raise UserError(f"image_dir: {shown(place)!r} is not there.")
    return list(on_disk(directory.iterdir(), directory.parent, trusted).entries)


def _subset(values: Mapping[str, Any], entries: list[Entry]) -> Subset:
    place = values["image_dir"]
    ending = values.get("caption_extension")
    found = pictured(entries, (f".{ending.lstrip('.')}".lower(),) if ending else CAPTIONS)
    if not found:
        raise UserError(f"image_dir: {shown(place)!r} holds no picture; it takes a folder right in which they lie.")
    said = {ours: values[theirs] for theirs, ours in WORDING.items() if theirs in values}
    return Subset(
        pictures=found,
        group=shown(PurePosixPath(place.replace("\\", "/")).name) or "dataset",
        repeats=checked_repeats(values.get("num_repeats", 1), f"image_dir {shown(place)!r}"),
        class_tokens=values.get("class_tokens", ""),
        regularisation=values.get("is_reg", False),
        wording=Wording(**said) if said else None,
        flip=values.get("flip_aug"),
    )
