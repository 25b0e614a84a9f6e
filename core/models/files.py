"""The files of a base model: which it has, where they are or are fetched from, what is missing.

Also how large they are.
"""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import diffusers
from safetensors import SafetensorError, safe_open

from core.hub import client as hub
from core.hub.names import HubName
from core.schema.errors import UserError
from core.schema.types import Model
from core.system import paths
from core.system.device import detect_machine

SDXL_CONFIGS = Path(__file__).parent / "sdxl"
"""SDXL's configs and CLIP's vocabulary, which open a single file that has no folder of its own.

Both tokenizers have that vocabulary, which lies in `tokenizer` alone.
"""
CONFIG_PATTERNS = ["*.json", "*.txt"]
WEIGHT_FILES = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
"""The parts of a diffusers folder that hold weights, and how their files' names begin."""
CONFIG_FILES = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
    **dict.fromkeys(WEIGHT_FILES, "config.json"),
}
SHARED_PARTS = {
    "text_encoder": "conditioner.embedders.0.",
    "text_encoder_2": "conditioner.embedders.1.",
    "vae": "first_stage_model.",
}
"""The parts that models may share, and how their weights' names begin in a checkpoint."""
LIBRARIES = ("diffusers", "transformers", None)
"""The libraries that the parts of a pipeline may come from."""


def find_custom_code(folder: Path) -> str | None:
    """Return the first config of a diffusers folder that names the repository's own code.

    `None` if none does. Such code is a pipeline that diffusers does not have, a part that is from
    no library, or an `auto_map`: the libraries would look for all of these beside the weights.
    """
    for file in sorted(folder.rglob("*.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):  # the code that needs it reports it
            continue
        if not isinstance(told, dict):
            continue
        foreign = any(key in told for key in ("auto_map", "custom_pipeline", "trust_remote_code"))
        if file.name == "model_index.json":
            foreign |= not (isinstance(kind := told.get("_class_name"), str) and hasattr(diffusers, kind))
            foreign |= any(
                isinstance(made, list) and (not made or made[0] not in LIBRARIES) for made in told.values()
            )
        if foreign:
            return file.relative_to(folder).as_posix()
    return None


def count_bytes(model: Model, source: Path) -> int:
    """Return the size of a model's weight files in bytes."""
    return sum(file.stat().st_size for file in list_weights(model, source))


def count_memory(model: Model, source: Path, without: Collection[str]) -> int:
    """Return the bytes of memory that a model's weights take in this machine's precision.

    Parts in `without` do not count. A file that cannot be read counts with its own size.
    """
    skipped = tuple(SHARED_PARTS[part] for part in without)
    total = 0
    for file in list_weights(model, source, without):
        try:
            with safe_open(file, framework="pt") as opened:
                keys = [
                    key
                    for key in opened.keys()  # noqa: SIM118  (not a mapping)
                    if not key.startswith(skipped)
                ]
                shapes = [opened.get_slice(key).get_shape() for key in keys]
        except SafetensorError:
            total += file.stat().st_size
        else:
            total += sum(map(math.prod, shapes)) * detect_machine().dtype.itemsize
    return total


V_PREDICTION_KEY = "v_pred"
"""The empty tensor by which a single file says that it predicts v."""


class Prediction(NamedTuple):
    """What a model predicts at each step."""

    type: str
    """`epsilon` or `v_prediction`."""
    zero_snr: bool
    """Whether the last step of its noise schedule holds no signal."""


def find_prediction(model: Model, source: Path) -> Prediction:
    """Return what a model predicts: what its table says, or else its files.

    A diffusers folder says it in its scheduler's config. A single file says it by empty tensors,
    `v_pred` and `ztsnr` (NoobAI-XL and its merges), or by modelspec's `prediction_type`.
    """
    own = _read_prediction(source)
    if model.prediction_type in (None, own.type):
        return own
    # Whoever trains a model to predict v trains it down to zero signal, too.
    return Prediction(model.prediction_type, model.prediction_type == "v_prediction")


def _read_prediction(source: Path) -> Prediction:
    """Return what the files of a model say that it predicts."""
    if source.is_dir():
        config = source / "scheduler" / CONFIG_FILES["scheduler"]
        told = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        velocity = told.get("prediction_type") == "v_prediction"
        return Prediction(
            "v_prediction" if velocity else "epsilon", bool(told.get("rescale_betas_zero_snr", False))
        )
    with safe_open(source, framework="pt") as opened:
        keys, said = set(opened.keys()), (opened.metadata() or {}).get("modelspec.prediction_type", "")
    velocity = V_PREDICTION_KEY in keys or said.lower() in ("v", "v_prediction", "v-prediction")
    return Prediction("v_prediction" if velocity else "epsilon", "ztsnr" in keys)


def list_weights(model: Model, source: Path, without: Collection[str] = ()) -> list[Path]:
    """List a model's weight files, without those of the parts in `without`."""
    return (
        [file for part in WEIGHT_FILES if part not in without for file in list_part(source, part, model)]
        if source.is_dir()
        else [source]
    )


def list_part(source: Path, part: str, model: Model) -> list[Path]:
    """Return the weight files of one part of a diffusers folder, in the model's variant."""
    return sorted((source / part).glob(f"{WEIGHT_FILES[part]}*{_weight_suffix(model)}"))


def _weight_suffix(model: Model) -> str:
    return f".{model.variant}.safetensors" if model.variant else ".safetensors"


def fetch_model_files(model: Model) -> Path:
    """Return where the model is on this machine, fetching it if needed."""
    if model.revision is None:
        return locate_source(model.source)
    if model.file:
        there = hub.find_cached_file(model.source, model.revision, model.file)
        name = HubName(repo=model.source, revision=model.revision)
        return there or hub.fetch_file(hub.fetch_listing(name, "model"), model.file, "model")
    return fetch_snapshot(model, _list_patterns(model))


def find_on_disk(model: Model) -> Path | None:
    """Return where the model is on this machine; `None` if it is not, or not all of it."""
    if model.revision is None:
        return source if (source := paths.locate(model.source)).exists() else None
    if model.file:
        return hub.find_cached_file(model.source, model.revision, model.file)
    return find_snapshot(model, _list_patterns(model))


def _list_patterns(model: Model) -> list[str]:
    return CONFIG_PATTERNS + [
        f"{part}/{start}*{_weight_suffix(model)}" for part, start in WEIGHT_FILES.items()
    ]


def locate_source(source: str) -> Path:
    """Return the path of a local source. Raises `UserError` if it does not exist."""
    path = paths.locate(source)
    if not path.exists():
        raise UserError("model", f"{source} does not exist")
    return path


def fetch_snapshot(model: Model, patterns: list[str]) -> Path:
    """Return a Hub repository's folder at the model's commit; fetches only what is not here."""
    assert model.revision
    return find_snapshot(model, patterns) or hub.fetch_folder(model.source, model.revision, patterns, "model")


def find_snapshot(model: Model, patterns: list[str]) -> Path | None:
    """Return a Hub repository's folder at the model's commit if it is complete on this machine."""
    assert model.revision
    there = hub.find_cached_folder(model.source, model.revision, patterns)
    try:
        if there is not None:
            check_configs(there, model)
            if patterns != CONFIG_PATTERNS:
                check_weights(there, model)
    except UserError:  # cut off on the way
        return None
    return there


def check_configs(folder: Path, model: Model) -> None:
    """Raise `UserError` naming the first missing config or tokenizer file of a diffusers folder."""
    files = ["model_index.json", *(f"{part}/{config}" for part, config in CONFIG_FILES.items())]
    for part in ("tokenizer", "tokenizer_2"):
        # Either layout will do; without one, transformers makes up an empty vocabulary.
        older = [f"{part}/vocab.json", f"{part}/merges.txt"]
        files += older if any((folder / file).exists() for file in older) else [f"{part}/tokenizer.json"]
    for file in files:
        if not (folder / file).exists():
            raise UserError("model", f"{model.title} lacks {file}")


def check_weights(folder: Path, model: Model) -> None:
    """Raise `UserError` naming the first missing weight file of a diffusers folder."""
    variant = f".{model.variant}" if model.variant else ""
    for part in WEIGHT_FILES:
        for index in (folder / part).glob(f"*.safetensors.index{variant}.json"):
            for shard in set(json.loads(index.read_text())["weight_map"].values()):
                if not (folder / part / shard).exists():
                    raise UserError("model", f"{model.title} lacks {part}/{shard}")
        if not any((folder / part).glob("*.safetensors")):
            raise UserError("model", f"{model.title} lacks {part}/*.safetensors")


def find_configs(model: Model, source: Path) -> Path:
    """Return the folder of a model's configs and tokenizers."""
    return locate_source(model.config) if model.config else source if source.is_dir() else SDXL_CONFIGS
