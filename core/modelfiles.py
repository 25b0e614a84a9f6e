"""The files of a base model: which it has, where they lie or are fetched from, what is missing, how large they are."""

import json
import math
from collections.abc import Collection
from pathlib import Path

import diffusers
from safetensors import SafetensorError, safe_open

from core import hub, paths, presets
from core.device import this_machine
from core.types import Model, UserError

SDXL = presets.models()["sdxl-base"]
"""Whose configs and tokenizers a single file without a folder of its own is opened with."""
CONFIGS = ["*.json", "*.txt"]
WEIGHED = {"text_encoder": "model", "text_encoder_2": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
"""The parts of a diffusers folder that hold weights, and how their files begin."""
CONFIGURED = {
    "scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json", "tokenizer_2": "tokenizer_config.json",
    **dict.fromkeys(WEIGHED, "config.json"),
}  # fmt: skip
SHARED = {"text_encoder": "conditioner.embedders.0.", "text_encoder_2": "conditioner.embedders.1.", "vae": "first_stage_model."}
"""The parts that models may have in common, and how their weights' names begin in a checkpoint."""
LIBRARIES = ("diffusers", "transformers", None)
"""That the parts of a pipeline are from."""


def own_code(folder: Path) -> str | None:
    """The first config of a diffusers folder that names code of the repository's own; `None` if none does.

    A pipeline that diffusers does not have, a part that is from no library, an `auto_map`: the libraries would look for
    all of these beside the weights.
    """
    for file in sorted(folder.rglob("*.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):  # whoever needs it says so
            continue
        if not isinstance(told, dict):
            continue
        foreign = any(key in told for key in ("auto_map", "custom_pipeline", "trust_remote_code"))
        if file.name == "model_index.json":
            foreign |= not (isinstance(kind := told.get("_class_name"), str) and hasattr(diffusers, kind))
            foreign |= any(isinstance(made, list) and (not made or made[0] not in LIBRARIES) for made in told.values())
        if foreign:
            return file.relative_to(folder).as_posix()
    return None


def count_bytes(model: Model, source: Path) -> int:
    """Of its files."""
    return sum(file.stat().st_size for file in list_weights(model, source))


def size(model: Model, source: Path, without: Collection[str]) -> int:
    """Bytes of memory that its weights take in this machine's precision, `without` some parts; of a file that cannot be read, its own."""
    skipped = tuple(SHARED[part] for part in without)
    total = 0
    for file in list_weights(model, source, without):
        try:
            with safe_open(file, framework="pt") as opened:
                shapes = [opened.get_slice(key).get_shape() for key in opened.keys() if not key.startswith(skipped)]  # noqa: SIM118  (no mapping)
        except SafetensorError:
            total += file.stat().st_size
        else:
            total += sum(map(math.prod, shapes)) * this_machine().dtype.itemsize
    return total


def list_weights(model: Model, source: Path, without: Collection[str] = ()) -> list[Path]:
    """Where its weights are."""
    return [file for part in WEIGHED if part not in without for file in list_part(source, part, model)] if source.is_dir() else [source]


def list_part(source: Path, part: str, model: Model) -> list[Path]:
    return sorted((source / part).glob(f"{WEIGHED[part]}*{_ending(model)}"))


def _ending(model: Model) -> str:
    return f".{model.variant}.safetensors" if model.variant else ".safetensors"


def folder(model: Model) -> Path:
    """Where the model lies on this machine, fetched if need be."""
    if model.revision is None:
        return locate(model.source)
    if model.file:
        there = hub.here(model.source, model.revision, model.file)
        return there or hub.file(hub.listing(f"{model.source}@{model.revision}", "model"), model.file, "model")
    return fetched(model, _patterns(model))


def here(model: Model) -> bool:
    """Whether all of a model from the Hub is on this machine."""
    assert model.revision
    return (hub.here(model.source, model.revision, model.file) if model.file else fetched_before(model, _patterns(model))) is not None


def _patterns(model: Model) -> list[str]:
    return CONFIGS + [f"{part}/{start}*{_ending(model)}" for part, start in WEIGHED.items()]


def locate(source: str) -> Path:
    path = paths.locate(source)
    if not path.exists():
        raise UserError(f"model: {source} is not there")
    return path


def fetched(model: Model, patterns: list[str]) -> Path:
    """A Hub repository's folder on this machine, at its commit; nobody is asked for what is here already."""
    assert model.revision
    return fetched_before(model, patterns) or hub.folder(model.source, model.revision, patterns, "model")


def fetched_before(model: Model, patterns: list[str]) -> Path | None:
    """The same if all of it is here."""
    assert model.revision
    there = hub.folder_here(model.source, model.revision, patterns)
    try:
        if there is not None:
            check_configs(there, model)
            if patterns != CONFIGS:
                weighed(there, model)
    except UserError:  # cut off on the way
        return None
    return there


def check_configs(folder: Path, model: Model) -> None:
    """Raise `UserError` naming the first config or tokenizer file of a diffusers folder that is missing."""
    files = ["model_index.json", *(f"{part}/{config}" for part, config in CONFIGURED.items())]
    for part in ("tokenizer", "tokenizer_2"):  # either spelling will do; without one, transformers makes up an empty vocabulary
        older = [f"{part}/vocab.json", f"{part}/merges.txt"]
        files += older if any((folder / file).exists() for file in older) else [f"{part}/tokenizer.json"]
    for file in files:
        if not (folder / file).exists():
            raise UserError(f"model: {model.title} lacks {file}")


def weighed(folder: Path, model: Model) -> None:
    """Raise `UserError` naming the first weight file of a diffusers folder that is missing."""
    variant = f".{model.variant}" if model.variant else ""
    for part in WEIGHED:
        for index in (folder / part).glob(f"*.safetensors.index{variant}.json"):
            for shard in set(json.loads(index.read_text())["weight_map"].values()):
                if not (folder / part / shard).exists():
                    raise UserError(f"model: {model.title} lacks {part}/{shard}")
        if not any((folder / part).glob("*.safetensors")):
            raise UserError(f"model: {model.title} lacks {part}/*.safetensors")


def find_configs(model: Model, source: Path) -> Path:
    """The folder of its configs and tokenizers."""
    return locate(model.config) if model.config else source if source.is_dir() else fetched(SDXL, CONFIGS)
