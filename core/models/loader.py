"""Opens a base model's files as a pipeline in CPU memory.

The pipeline is complete, or the model is refused in one sentence; opening can be stopped on the
way. Parts that the loaded model has from the same weights are reused: most of SDXL's descendants
differ in the U-Net alone.
"""

import logging
from collections.abc import Collection, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from core.models import catalogue, config_limits, tools
from core.models.file_kind import UNET_PREFIX, find_missing_parts, find_obstacle, find_vae_obstacle
from core.models.files import (
    SDXL_CONFIGS,
    SHARED_PARTS,
    WEIGHT_FILES,
    Prediction,
    check_configs,
    check_weights,
    count_bytes,
    fetch_model_files,
    find_configs,
    find_custom_code,
    find_prediction,
    list_part,
    locate_source,
)
from core.schema import presets
from core.schema.errors import UserError
from core.schema.events import LoadProgress
from core.schema.types import Model
from core.system import tensor_files
from core.system.device import detect_machine
from core.system.memory import is_out_of_memory

TEXT_ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
VAE_WEIGHTS = f"{WEIGHT_FILES['vae']}.safetensors"
PROGRESS_BYTES = 2**26
"""Bytes from one `LoadProgress` to the next: a fraction of a second from memory, about one second
from a slow disk."""
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
PipelineParts = Mapping[str, torch.nn.Module | None]

log = logging.getLogger(__name__)


def open_pipeline(
    model: Model, source: Path, parts: PipelineParts
) -> Generator[LoadProgress, None, StableDiffusionXLPipeline]:
    """Open the complete pipeline in CPU memory, from the files at `source`.

    Takes the modules in `parts`, of another model, instead of loading them. Yields a `LoadProgress`
    for each part and each `PROGRESS_BYTES`. Raises `UserError` for whatever is missing or is not
    SDXL.
    """
    pipeline = yield from _map_pipeline(model, source, parts)
    pipeline.set_progress_bar_config(disable=True)
    yield from _copy_weights(pipeline, model, [part for part in WEIGHT_FILES if part not in parts])
    return pipeline


def _copy_weights(
    pipeline: StableDiffusionXLPipeline, model: Model, parts: Collection[str]
) -> Generator[LoadProgress, None, None]:
    """Copy the parts' weights from their mapped files into memory, in this machine's precision.

    While they stay mapped, BLAS adds up in another order at another alignment: once copied, the
    same weights give the same picture. And a file that is changed meanwhile would change the model.
    Raises `UserError` for NaN and infinite numbers, which would make pictures of NaN.
    """
    total = sum(weight.nbytes for part in parts for weight in getattr(pipeline, part).parameters())
    done = shown = 0
    for part in parts:
        for name, weight in getattr(pipeline, part).named_parameters():
            done += weight.nbytes
            if not torch.isfinite(weight).all():
                raise UserError(
                    "model",
                    f"{model.title} contains NaN or infinite numbers ({part}.{name}); the file is broken",
                )
            weight.data = weight.data.to(
                detect_machine().dtype, copy=True, memory_format=torch.contiguous_format
            )
            if done - shown >= PROGRESS_BYTES:
                shown = done
                yield LoadProgress(title=model.title, bytes_done=done, bytes_total=total)


def _map_pipeline(
    model: Model, source: Path, parts: PipelineParts
) -> Generator[LoadProgress, None, StableDiffusionXLPipeline]:
    """Open the pipeline with weights in their files' precision.

    Where the libraries leave them so, the weights are still in the mapped files.
    """
    config = find_configs(model, source)
    options: dict[str, Any] = {"dtype": detect_machine().dtype, "local_files_only": True}
    _refuse_unsafe_files(model, source, config)
    try:
        _check_layout(model, source, config)
        prediction = find_prediction(model, source)
        begun = LoadProgress(title=model.title, bytes_done=0, bytes_total=count_bytes(model, source))
        taken: dict[str, Any] = dict(parts)
        if "unet" not in taken:
            taken["unet"] = _load_unet(model, source, config)
        yield begun
        if model.vae and "vae" not in taken:
            taken["vae"] = _load_vae(model, config)
            yield begun
        if missing := [part for part in _list_missing(model, source) if part not in taken]:
            taken |= yield from _load_from_donor(model, missing)
        unfilled = []  # weights that no file has and that would stay random
        if source.is_dir():
            options |= {"variant": model.variant, "use_safetensors": True}
            for part in [part for part in TEXT_ENCODERS if part not in taken]:
                taken[part], missing_keys = _load_text_encoder(model, source, part, options)
                yield begun
                unfilled += [f"{part}.{key}" for key in missing_keys]
            pipeline = StableDiffusionXLPipeline.from_pretrained(source, **taken, **options)
        else:
            options["dtype"] = _find_dtype([source])
            if config == SDXL_CONFIGS:
                taken["tokenizer_2"] = load_second_tokenizer(config)
            pipeline = StableDiffusionXLPipeline.from_single_file(
                str(source), config=str(config), **taken, **options
            )
        unfilled += _list_unfilled_weights(pipeline)
        if unfilled:
            raise UserError("model", f"{model.title} is missing the weight {unfilled[0]}")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        SafetensorError,
        SingleFileComponentError,
    ) as error:
        # Logs no name: a visitor may have given it.
        log.warning("a model cannot be opened (%s; commit %s)", type(error).__name__, model.revision)
        raise UserError(
            "model", f"{model.title} cannot be opened as an SDXL model ({type(error).__name__})"
        ) from error
    _set_prediction(pipeline, prediction)
    return pipeline


def _load_text_encoder(
    model: Model, source: Path, part: str, options: Mapping[str, Any]
) -> tuple[torch.nn.Module, list[str]]:
    """Load a text encoder of a diffusers folder, in its files' precision; return it and what it lacks."""
    own = {**options, "dtype": _find_dtype(list_part(source, part, model))}
    encoder, told = TEXT_ENCODERS[part].from_pretrained(source / part, output_loading_info=True, **own)
    return encoder, list(told["missing_keys"])


def load_second_tokenizer(config: Path) -> CLIPTokenizer:
    """Load SDXL's second tokenizer, the first one's vocabulary with another padding, which is id 0."""
    return CLIPTokenizer.from_pretrained(config / "tokenizer", pad_token="!", local_files_only=True)


def _refuse_unsafe_files(model: Model, source: Path, config: Path) -> None:
    """Raise `UserError` for a model with code, or with configurations beyond the limits."""
    for place in {config, source} if source.is_dir() else {config}:
        if named := find_custom_code(place):
            raise UserError("model", f"{model.title} contains code ({named}), which is never run here")
    for place in (config, source):
        if said := config_limits.find_excess(place):
            raise UserError("model", f"{model.title} has {said}")


def _check_layout(model: Model, source: Path, config: Path) -> None:
    """Raise `UserError` for a model that lacks files, and for a single file that is no checkpoint of SDXL."""
    if config != SDXL_CONFIGS:
        check_configs(config, model)
    if source.is_dir():
        check_weights(source, model)
    elif obstacle := find_obstacle(source):
        raise UserError("model", f"{model.title} {obstacle}")


def _list_unfilled_weights(pipeline: StableDiffusionXLPipeline) -> list[str]:
    """List the weights that opening left without numbers."""
    return [
        f"{part}.{key}"
        for part in WEIGHT_FILES
        if (module := getattr(pipeline, part)) is not None
        for key, value in module.state_dict().items()
        if value.is_meta
    ]


def _set_prediction(pipeline: StableDiffusionXLPipeline, prediction: Prediction) -> None:
    """Set what the model predicts in the scheduler, whose config is SDXL's own for a single file."""
    config = pipeline.scheduler.config
    if (config.prediction_type, config.get("rescale_betas_zero_snr", False)) != prediction:
        pipeline.scheduler = pipeline.scheduler.from_config(
            config, prediction_type=prediction.type, rescale_betas_zero_snr=prediction.zero_snr
        )


def _load_unet(model: Model, source: Path, config: Path) -> UNet2DConditionModel:
    """Load a model's U-Net alone, in its file's precision.

    For a merge, it is the mean of the merged models, tensor by tensor.
    """
    if not model.merge:
        if model.unet:
            place = locate_source(model.unet)
            return UNet2DConditionModel.from_pretrained(
                place,
                torch_dtype=_find_dtype([*place.glob("*.safetensors")]),
                local_files_only=True,
                use_safetensors=True,
            )
        if source.is_dir():
            dtype = _find_dtype(list_part(source, "unet", model))
            return UNet2DConditionModel.from_pretrained(
                source,
                subfolder="unet",
                variant=model.variant,
                torch_dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
            )
        return UNet2DConditionModel.from_single_file(
            str(source),
            config=str(config),
            subfolder="unet",
            torch_dtype=_find_dtype([source], UNET_PREFIX),
            local_files_only=True,
        )
    unets = (
        _load_unet(each, place := fetch_model_files(each), find_configs(each, place))
        for each in map(presets.get_models().__getitem__, model.merge)
    )
    merged = next(unets)
    merged.to(dtype=detect_machine().dtype)  # type: ignore[call-arg]  (its decorator hides `self`)
    for number, other in enumerate(unets, 2):
        theirs = other.state_dict()
        with torch.no_grad():
            for key, value in merged.state_dict().items():
                value.lerp_(theirs[key].to(value), 1 / number)
    return merged


def _load_vae(model: Model, config: Path) -> AutoencoderKL:
    """Load the VAE that a model has in place of its own, in its file's precision."""
    place = _locate_vae(model)
    if place.is_dir():
        dtype = _find_dtype([*place.glob("*.safetensors")])
        return AutoencoderKL.from_pretrained(
            place, torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    if obstacle := find_vae_obstacle(place):
        raise UserError("vae", f"{place.name} {obstacle}")
    return AutoencoderKL.from_single_file(
        str(place),
        config=str(config),
        subfolder="vae",
        torch_dtype=_find_dtype([place]),
        local_files_only=True,
    )


def _locate_vae(model: Model) -> Path:
    """Return the file, or folder, of the VAE that a model has in place of its own."""
    assert model.vae
    return place if (place := Path(model.vae)).is_absolute() else tools.fetch_tool("vae", model.vae)


def _list_missing(model: Model, source: Path) -> list[str]:
    """List the parts that a checkpoint leaves to its donor.

    Raises `UserError` if it has none.
    """
    missing = {} if source.is_dir() else find_missing_parts(source)
    if model.vae:
        missing.pop("vae", None)
    if missing and model.donor is None:
        lacks = " and ".join(dict.fromkeys(missing.values()))
        raise UserError("model", f"{model.title} lacks {lacks}. Choose the model to take them from")
    return list(missing)


def _load_from_donor(
    model: Model, missing: Collection[str]
) -> Generator[LoadProgress, None, dict[str, torch.nn.Module]]:
    """Load missing parts from the model that gives them, in its files' precision."""
    donor = replace(catalogue.find_donor(model), donor=None)
    pipeline = yield from _map_pipeline(donor, fetch_model_files(donor), {"unet": None})
    return {part: getattr(pipeline, part) for part in missing}


def _find_dtype(files: Collection[Path], prefix: str = "") -> torch.dtype:
    """Return the dtype of all weights, so that they need not be read yet.

    If they are mixed, it is this machine's.
    """
    kept: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            kept |= {
                opened.get_slice(key).get_dtype()
                for key in opened.keys()  # noqa: SIM118  (not a mapping)
                if key.startswith(prefix)
            }
    kept = {kind for kind in kept if "F" in kind}  # counters are whole numbers
    return DTYPES.get(kept.pop(), detect_machine().dtype) if len(kept) == 1 else detect_machine().dtype


def hash_parts(model: Model, source: Path) -> Generator[LoadProgress, None, dict[str, str]]:
    """Return part -> what tells its weights, for each part that models may share.

    Leaves out the parts of a file that cannot be read, and those that come from another model.
    """
    told = yield from _hash_own_parts(model, source)
    if model.vae:
        place = _locate_vae(model)
        weights = place / VAE_WEIGHTS if place.is_dir() else place
        told["vae"] = yield from _report_hashing(model, source, tensor_files.hash_file(weights))
    return told


def _hash_own_parts(model: Model, source: Path) -> Generator[LoadProgress, None, dict[str, str]]:
    """Return part -> the sha256 of its weights in the model's own files."""
    if not source.is_dir():
        try:
            found = yield from _report_hashing(
                model, source, tensor_files.hash_tensors(source, tuple(SHARED_PARTS.items()))
            )
        except SafetensorError as error:
            if is_out_of_memory(error):
                raise
            return {}
        missing = find_missing_parts(source)
        return {part: f"{model.config}:{sha256}" for part, sha256 in found.items() if part not in missing}
    files = {part: [source / part / "config.json", *list_part(source, part, model)] for part in SHARED_PARTS}
    told: dict[str, str] = {}
    for part, (config, *weights) in files.items():
        if weights and config.exists():
            hashes = []
            for file in (config, *weights):
                hashes.append((yield from _report_hashing(model, source, tensor_files.hash_file(file))))
            told[part] = " ".join(hashes)
    return told


Result = TypeVar("Result")


def _report_hashing(
    model: Model, source: Path, blocks: Generator[int, None, Result]
) -> Generator[LoadProgress, None, Result]:
    """Report hashing as steps of a load that has not read any weights yet."""
    read, shown, total = 0, 0, count_bytes(model, source)
    while True:
        try:
            read += next(blocks)
        except StopIteration as end:
            return end.value
        if read - shown >= PROGRESS_BYTES:
            shown = read
            yield LoadProgress(title=model.title, bytes_done=0, bytes_total=total)
