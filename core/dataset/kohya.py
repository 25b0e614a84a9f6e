"""Reads a dataset config of kohya's trainer: a .toml that names folders and how each is used.

Every setting is used, reported as having no effect, or refused.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from core.dataset.caption_variation import CaptionVariation
from core.dataset.dataset import clean_name
from core.dataset.files import Entry, FileTree
from core.dataset.layout import (
    CAPTION_SUFFIXES,
    CONFIG_SUFFIX,
    Layout,
    Subset,
    check_repeats,
    describe_masks,
    list_skipped,
    pair_with_captions,
)
from core.dataset.pictures import UnusableFile
from core.dataset.sources import PATH_TRAVERSAL, scan_files
from core.schema import limits
from core.schema.errors import UserError
from core.schema.toml import parse_toml

SETTING_NAMES = {
    "resolution": "resolution",
    "batch_size": "batch",
    "min_bucket_reso": "least_side",
    "max_bucket_reso": "most_side",
    "bucket_reso_steps": "bucket_step",
}
"""kohya's name -> the field of `TrainingSettings`."""
CAPTION_SETTING_NAMES = {
    "shuffle_caption": "shuffle",
    "keep_tokens": "keep_tokens",
    "keep_tokens_separator": "keep_separator",
    "caption_separator": "separator",
    "secondary_separator": "secondary_separator",
    "caption_tag_dropout_rate": "tag_dropout",
    "caption_dropout_rate": "caption_dropout",
    "caption_dropout_every_n_epochs": "caption_dropout_every",
    "caption_prefix": "prefix",
    "caption_suffix": "suffix",
    "enable_wildcard": "wildcard",
}
"""kohya's name -> the field of `CaptionVariation`."""
SETTINGS_BY_TYPE = {
    bool: ("enable_bucket", "bucket_no_upscale", "is_reg", "flip_aug", "shuffle_caption", "enable_wildcard"),
    int: (*SETTING_NAMES, "num_repeats", "keep_tokens", "caption_dropout_every_n_epochs"),
    float: ("caption_tag_dropout_rate", "caption_dropout_rate"),
    str: (
        "image_dir",
        "class_tokens",
        "caption_extension",
        "caption_separator",
        "keep_tokens_separator",
        "secondary_separator",
        "caption_prefix",
        "caption_suffix",
    ),
}
SETTING_TYPES = {name: kind for kind, names in SETTINGS_BY_TYPE.items() for name in names}
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
UNSUPPORTED_SETTINGS: dict[str, Any] = {
    "color_aug": False,
    "random_crop": False,
    "face_crop_aug_range": None,
    "resize_interpolation": None,
    "alpha_mask": False,
    "token_warmup_min": 1,
    "token_warmup_step": 0,
    "custom_attributes": {},
    "cache_info": False,
    "network_multiplier": 1,
    "validation_seed": None,
    "validation_split": 0,
    "skip_image_resolution": None,
}
"""Settings with no counterpart here -> the value that turns each off."""
OTHER_TRAINING_SETTINGS = ("metadata_file", "conditioning_data_dir")
"""Settings that only the subsets of other kinds of training have."""
SUBSET_SETTINGS = {"image_dir", "is_reg", "alpha_mask"}
DATASET_SETTINGS = {
    *SETTING_NAMES,
    "enable_bucket",
    "bucket_no_upscale",
    "network_multiplier",
    "validation_seed",
    "validation_split",
    "skip_image_resolution",
}


def read_kohya_config(tree: FileTree, trusted: bool) -> Layout | None:
    """Read the dataset config in a file tree; `None` if it has no such .toml.

    Settings come from [general] < [[datasets]] < [[datasets.subsets]]; the lower level wins. The
    .toml names folders beside it in the tree; a `trusted` one may name any folder on this machine.

    Raises `UserError` for an unknown setting, a value that is not allowed, or a folder without
    pictures.
    """
    if (named := _find_config(tree)) is None:
        return None
    config, table = named
    if unknown := table.keys() - {"general", "datasets"}:
        raise UserError(
            "dataset",
            f"{clean_name(config.name)} contains {min(unknown)[:40]!r}; "
            "only [general] and [[datasets]] are supported.",
        )
    general = _read_level(table.get("general", {}), "[general]")
    subsets, settings, notes = [], [], dict[str, None]()
    by_folder, looked_at = (
        tree.group_by_folder(),
        dict.fromkeys(entry for entry in tree.entries if entry is not config),
    )
    for given in _check_tables(table["datasets"], "[[datasets]]"):
        dataset = general | _read_level(
            {name: value for name, value in given.items() if name != "subsets"}, "[[datasets]]"
        )
        settings.append(_map_settings(dataset))
        known: set[str] = set()
        for lowest in _check_tables(given.get("subsets"), "[[datasets.subsets]]"):
            values = dataset | _read_level(lowest, "[[datasets.subsets]]")
            notes |= dict.fromkeys(
                f"{name} in the .toml is not supported here and is ignored."
                for name, off in UNSUPPORTED_SETTINGS.items()
                if values.get(name, off) != off
            )
            if (place := values.get("image_dir", "")) in known:
                notes[
                    f"image_dir: {clean_name(place)!r} appears twice in one of the [[datasets]]; "
                    "the first is used."
                ] = None
                continue
            known.add(place)
            entries = _list_image_dir(place, config, by_folder, trusted)
            looked_at |= dict.fromkeys(entries)
            subsets.append(_make_subset(values, entries))
    if any(other != settings[0] for other in settings):
        raise UserError(
            "dataset",
            "the .toml has [[datasets]] of different resolutions, batches or buckets; they must be the same.",
        )
    skipped = list_skipped(looked_at, subsets, "the .toml does not name its folder")
    return Layout(
        subsets=tuple(subsets),
        skipped=skipped,
        notes=(*notes, *describe_masks(looked_at, subsets)),
        settings=settings[0],
    )


def _find_config(tree: FileTree) -> tuple[Entry, dict[str, Any]] | None:
    """Return the .toml with [[datasets]] and its table; raises `UserError` if there are two."""
    configs = [
        (entry, table)
        for entry in tree.entries
        if entry.suffix.lower() == CONFIG_SUFFIX and "datasets" in (table := _read_toml(entry))
    ]
    if len(configs) > 1:
        raise UserError(
            "dataset",
            f"{clean_name(configs[0][0].name)!r} and {clean_name(configs[1][0].name)!r} "
            "are both datasets of kohya's trainer; use only one.",
        )
    return configs[0] if configs else None


def _read_toml(entry: Entry) -> dict[str, Any]:
    try:
        text = entry.read(limits.TOML_BYTES)
    except UnusableFile as error:
        raise UserError("dataset", f"{clean_name(entry.name)}: {error}.") from error
    return parse_toml(text, f"dataset: {clean_name(entry.name)}")


def _check_tables(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(table, dict) for table in value):
        raise UserError("dataset", f"the .toml has no {where}, which must be a list of tables.")
    return value


def _read_level(table: Any, where: str) -> dict[str, Any]:
    """Return the settings of one level, each known at that level and of the right type."""
    if not isinstance(table, dict):
        raise UserError("dataset", f"{where} of the .toml is not a table.")
    allowed = (SETTING_TYPES.keys() | UNSUPPORTED_SETTINGS.keys()) - (
        DATASET_SETTINGS if where == "[[datasets.subsets]]" else SUBSET_SETTINGS
    )
    found = {}
    for name, value in table.items():
        if name in OTHER_TRAINING_SETTINGS:
            raise UserError(
                name,
                "it belongs to another kind of training; "
                "only folders of images with captions beside them are supported.",
            )
        if name not in allowed:
            raise UserError("dataset", f"{name[:40]!r} is not a setting of {where} that is supported here.")
        if name == "resolution" and isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]  # a square as kohya's examples write it; buckets go by the area
        kind = SETTING_TYPES.get(name)
        if kind and type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(name, f"{value!r:.40} is not valid. Use {TYPE_NAMES[kind]}.")
        found[name] = value
    return found


def _map_settings(dataset: Mapping[str, Any]) -> dict[str, int]:
    """Return a dataset's bucket and batch settings by `TrainingSettings` field."""
    found = {ours: dataset[theirs] for theirs, ours in SETTING_NAMES.items() if theirs in dataset}
    if "bucket_no_upscale" in dataset:
        found["upscale"] = not dataset["bucket_no_upscale"]
    if dataset.get("enable_bucket") is False:
        if "resolution" not in found:
            raise UserError(
                "enable_bucket", "false is only valid with a resolution, to which all images are cropped."
            )
        found |= {  # one square bucket
            "least_side": found["resolution"],
            "most_side": found["resolution"],
            "bucket_step": 8,
            "upscale": True,
        }
    return found


def _list_image_dir(
    image_dir: str, config: Entry, by_folder: Mapping[str, list[Entry]], trusted: bool
) -> list[Entry]:
    """List the files directly in the folder that `image_dir` names."""
    name = image_dir.replace("\\", "/")
    if (
        image_dir
        and not PATH_TRAVERSAL.match(name)
        and (found := by_folder.get(str(PurePosixPath(config.folder) / name)))
    ):
        return found
    if not image_dir or not (trusted and config.path):
        raise UserError(
            "image_dir",
            f"{clean_name(image_dir)!r} is not valid. "
            "Use a folder of images that was added with the .toml, named relative to it.",
        )
    directory = config.path.parent / name
    if not directory.is_dir():
        raise UserError("image_dir", f"{clean_name(image_dir)!r} does not exist.")
    return list(scan_files(directory.iterdir(), directory.parent, trusted).entries)


def _make_subset(values: Mapping[str, Any], entries: list[Entry]) -> Subset:
    place = values["image_dir"]
    ending = values.get("caption_extension")
    found = pair_with_captions(entries, (f".{ending.lstrip('.')}".lower(),) if ending else CAPTION_SUFFIXES)
    if not found:
        raise UserError(
            "image_dir",
            f"{clean_name(place)!r} contains no images. Use the folder that directly contains them.",
        )
    said = {ours: values[theirs] for theirs, ours in CAPTION_SETTING_NAMES.items() if theirs in values}
    return Subset(
        pictures=found,
        group=clean_name(PurePosixPath(place.replace("\\", "/")).name) or "dataset",
        repeats=check_repeats(values.get("num_repeats", 1), f"image_dir {clean_name(place)!r}"),
        class_tokens=values.get("class_tokens", ""),
        regularisation=values.get("is_reg", False),
        wording=CaptionVariation(**said) if said else None,
        flip=values.get("flip_aug"),
    )
