"""A base model's files, found here or fetched, as a pipeline in CPU memory: whole, or refused in one sentence; it can be stopped on the way.

Parts that the loaded model has from the same weights are taken from it: most of SDXL's descendants differ in the U-Net alone.
"""

import json
import logging
import math
from collections.abc import Collection, Generator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from core import digest, hub, paths, presets, sizes
from core.device import this_machine
from core.events import Opening
from core.memory import ran_out_of_memory
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
ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
SHARED = {"text_encoder": "conditioner.embedders.0.", "text_encoder_2": "conditioner.embedders.1.", "vae": "first_stage_model."}
"""The parts that models may have in common, and how their weights' names begin in a checkpoint."""
UNET = "model.diffusion_model."
"""How those of the U-Net begin there."""
STEP = 2**26
"""Bytes from one `Opening` to the next: a fraction of a second from memory, about one from a slow disk."""
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
LIBRARIES = ("diffusers", "transformers", None)
"""That the parts of a pipeline are from."""
Parts = Mapping[str, torch.nn.Module]

log = logging.getLogger(__name__)


def opened(model: Model, source: Path, parts: Parts) -> Generator[Opening, None, StableDiffusionXLPipeline]:
    """The pipeline in CPU memory, complete, from the model's `folder`, with `parts` of another; an `Opening` every `STEP` bytes.

    Raises `UserError` for whatever is missing or is no SDXL.
    """
    pipeline = _mapped(model, source, parts)
    pipeline.set_progress_bar_config(disable=True)
    yield from _copied(pipeline, model, [part for part in WEIGHED if part not in parts])
    return pipeline


def _copied(pipeline: StableDiffusionXLPipeline, model: Model, parts: Collection[str]) -> Generator[Opening, None, None]:
    """Bring the weights of the parts from their mapped files into memory, the U-Net's in this machine's precision.

    Where they stay mapped, at another alignment BLAS adds up in another order: here the same weights are the same picture. And a file
    that is changed meanwhile would change the model.
    """
    total = sum(weight.nbytes for part in parts for weight in getattr(pipeline, part).parameters())
    done = shown = 0
    for part in parts:
        for weight in getattr(pipeline, part).parameters():
            done += weight.nbytes
            weight.data = weight.data.to(this_machine().dtype if part == "unet" else weight.dtype, copy=True)
            if done - shown >= STEP:
                shown = done
                yield Opening(what=model.title, done=done, total=total)


def _mapped(model: Model, source: Path, parts: Parts) -> StableDiffusionXLPipeline:
    """The pipeline with weights that are, where the libraries leave them so, still in their mapped files."""
    config = _configs(model, source)
    options: dict[str, Any] = {"dtype": this_machine().dtype, "local_files_only": True}
    for place in {config, source} if source.is_dir() else {config}:
        if named := own_code(place):
            raise UserError(f"model: {model.title} brings code of its own ({named}), and none is run here")
    for place in (config, source):
        if said := sizes.outsized(place):
            raise UserError(f"model: {model.title} has {said}")
    try:
        _configured(config, model)
        if source.is_dir():
            weighed(source, model)
        taken: dict[str, Any] = {**parts, "unet": _unet(model, source, config)}
        unfilled = []  # weights that no file has, so that they are drawn at random
        if source.is_dir():
            options |= {"variant": model.variant, "use_safetensors": True}
            for part, kind in ENCODERS.items():
                if part not in taken:
                    taken[part], told = kind.from_pretrained(source / part, output_loading_info=True, **options)
                    unfilled += [f"{part}.{key}" for key in told["missing_keys"]]
            pipeline = StableDiffusionXLPipeline.from_pretrained(source, **taken, **options)
        else:
            pipeline = StableDiffusionXLPipeline.from_single_file(str(source), config=str(config), **taken, **options)
        unfilled += [f"{part}.{key}" for part in WEIGHED for key, value in getattr(pipeline, part).state_dict().items() if value.is_meta]
        if unfilled:
            raise UserError(f"model: {model.title} lacks the weight {unfilled[0]}")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, SingleFileComponentError) as error:
        log.warning("a model cannot be opened (%s; commit %s)", type(error).__name__, model.revision)  # a visitor may have named it
        raise UserError(f"model: {model.title} cannot be opened as an SDXL model ({type(error).__name__})") from error
    if pipeline.scheduler.config.prediction_type != model.prediction_type:
        # A single file does not say that it predicts v; zero terminal SNR goes with it.
        zero = model.prediction_type == "v_prediction"
        pipeline.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config, prediction_type=model.prediction_type, rescale_betas_zero_snr=zero)
    return pipeline


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


def _unet(model: Model, source: Path, config: Path) -> UNet2DConditionModel:
    """A model's U-Net by itself, in its file's precision; of a merge the mean of its models', tensor by tensor."""
    if not model.merge:
        if model.unet:
            place = _local(model.unet)
            return UNet2DConditionModel.from_pretrained(
                place, torch_dtype=_precision([*place.glob("*.safetensors")]), local_files_only=True, use_safetensors=True
            )
        if source.is_dir():
            dtype = _precision(_weights(source, "unet", model))
            return UNet2DConditionModel.from_pretrained(
                source, subfolder="unet", variant=model.variant, torch_dtype=dtype, local_files_only=True, use_safetensors=True
            )
        return UNet2DConditionModel.from_single_file(
            str(source), config=str(config), subfolder="unet", torch_dtype=_precision([source], UNET), local_files_only=True
        )
    unets = (_unet(each, place := folder(each), _configs(each, place)) for each in map(presets.models().__getitem__, model.merge))
    merged = next(unets)
    merged.to(dtype=this_machine().dtype)  # type: ignore[call-arg]  (its decorator hides `self`)
    for number, other in enumerate(unets, 2):
        theirs = other.state_dict()
        with torch.no_grad():
            for key, value in merged.state_dict().items():
                value.lerp_(theirs[key].to(value), 1 / number)
    return merged


def _configs(model: Model, source: Path) -> Path:
    """The folder of its configs and tokenizers."""
    return _local(model.config) if model.config else source if source.is_dir() else fetched(SDXL, CONFIGS)


def _precision(files: Collection[Path], prefix: str = "") -> torch.dtype:
    """The one that all of the weights are kept in, so that they need not be read yet; this machine's for a mixture."""
    kept: set[torch.dtype | None] = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            kept |= {DTYPES.get(opened.get_slice(key).get_dtype()) for key in opened.keys() if key.startswith(prefix)}  # noqa: SIM118  (no mapping)
    return (kept.pop() if len(kept) == 1 else None) or this_machine().dtype


def digests(model: Model, source: Path) -> Generator[Opening, None, dict[str, str]]:
    """Part -> the sha256 of its weights, for each part that models may have in common; none for a file that cannot be read."""
    if not source.is_dir():
        try:
            found = yield from _checking(model, source, digest.hash_tensors(source, tuple(SHARED.items())))
        except SafetensorError as error:
            if ran_out_of_memory(error):
                raise
            return {}
        return {part: f"{model.config}:{sha256}" for part, sha256 in found.items()}
    files = {part: [source / part / "config.json", *_weights(source, part, model)] for part in SHARED}
    told: dict[str, str] = {}
    for part, (config, *weights) in files.items():
        if weights and config.exists():
            hashes = []
            for file in (config, *weights):
                hashes.append((yield from _checking(model, source, digest.hash_file(file))))
            told[part] = " ".join(hashes)
    return told


Kept = TypeVar("Kept")


def _checking(model: Model, source: Path, blocks: Generator[int, None, Kept]) -> Generator[Opening, None, Kept]:
    """What is hashed, as steps of an opening that has not come far."""
    read, shown, total = 0, 0, sum(file.stat().st_size for file in _files(model, source))
    while True:
        try:
            read += next(blocks)
        except StopIteration as end:
            return end.value
        if read - shown >= STEP:
            shown = read
            yield Opening(what=model.title, done=0, total=total)


def size(model: Model, source: Path, without: Collection[str]) -> int:
    """Bytes of memory that its weights take in this machine's precision, `without` some parts; of a file that cannot be read, its own."""
    skipped = tuple(SHARED[part] for part in without)
    total = 0
    for file in _files(model, source, without):
        try:
            with safe_open(file, framework="pt") as opened:
                shapes = [opened.get_slice(key).get_shape() for key in opened.keys() if not key.startswith(skipped)]  # noqa: SIM118  (no mapping)
        except SafetensorError:
            total += file.stat().st_size
        else:
            total += sum(map(math.prod, shapes)) * this_machine().dtype.itemsize
    return total


def _files(model: Model, source: Path, without: Collection[str] = ()) -> list[Path]:
    """Where its weights are."""
    return [file for part in WEIGHED if part not in without for file in _weights(source, part, model)] if source.is_dir() else [source]


def _weights(source: Path, part: str, model: Model) -> list[Path]:
    return sorted((source / part).glob(f"{WEIGHED[part]}*{_ending(model)}"))


def _ending(model: Model) -> str:
    return f".{model.variant}.safetensors" if model.variant else ".safetensors"


def folder(model: Model) -> Path:
    """Where the model lies on this machine, fetched if need be."""
    if model.revision is None:
        return _local(model.source)
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


def _local(source: str) -> Path:
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
            _configured(there, model)
            if patterns != CONFIGS:
                weighed(there, model)
    except UserError:  # cut off on the way
        return None
    return there


def _configured(folder: Path, model: Model) -> None:
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
