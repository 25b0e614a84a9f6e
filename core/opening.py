"""A base model's files as a pipeline in CPU memory: whole, or refused in one sentence; it can be stopped on the way.

Parts that the loaded model has from the same weights are taken from it: most of SDXL's descendants differ in the U-Net alone.
"""

import logging
from collections.abc import Collection, Generator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from core import digest, presets, sizes
from core.device import this_machine
from core.events import Opening
from core.memory import ran_out_of_memory
from core.modelfiles import SHARED, WEIGHED, check_configs, count_bytes, find_configs, folder, list_part, locate, own_code, weighed
from core.types import Model, UserError

ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
UNET = "model.diffusion_model."
"""How the names of the U-Net's weights begin in a checkpoint."""
STEP = 2**26
"""Bytes from one `Opening` to the next: a fraction of a second from memory, about one from a slow disk."""
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
Parts = Mapping[str, torch.nn.Module]

log = logging.getLogger(__name__)


def opened(model: Model, source: Path, parts: Parts) -> Generator[Opening, None, StableDiffusionXLPipeline]:
    """The pipeline in CPU memory, complete, from the model's `folder`, with `parts` of another; an `Opening` for each part and `STEP` bytes.

    Raises `UserError` for whatever is missing or is no SDXL.
    """
    pipeline = yield from _mapped(model, source, parts)
    pipeline.set_progress_bar_config(disable=True)
    yield from _copied(pipeline, model, [part for part in WEIGHED if part not in parts])
    return pipeline


def _copied(pipeline: StableDiffusionXLPipeline, model: Model, parts: Collection[str]) -> Generator[Opening, None, None]:
    """Bring the weights of the parts from their mapped files into memory, in this machine's precision.

    Where they stay mapped, at another alignment BLAS adds up in another order: here the same weights are the same picture. And a file
    that is changed meanwhile would change the model.
    """
    total = sum(weight.nbytes for part in parts for weight in getattr(pipeline, part).parameters())
    done = shown = 0
    for part in parts:
        for weight in getattr(pipeline, part).parameters():
            done += weight.nbytes
            weight.data = weight.data.to(this_machine().dtype, copy=True, memory_format=torch.contiguous_format)
            if done - shown >= STEP:
                shown = done
                yield Opening(what=model.title, done=done, total=total)


def _mapped(model: Model, source: Path, parts: Parts) -> Generator[Opening, None, StableDiffusionXLPipeline]:
    """The pipeline with weights in their files' precision and, where the libraries leave them so, still in the mapped files."""
    config = find_configs(model, source)
    options: dict[str, Any] = {"dtype": this_machine().dtype, "local_files_only": True}
    for place in {config, source} if source.is_dir() else {config}:
        if named := own_code(place):
            raise UserError(f"model: {model.title} brings code of its own ({named}), and none is run here")
    for place in (config, source):
        if said := sizes.outsized(place):
            raise UserError(f"model: {model.title} has {said}")
    try:
        check_configs(config, model)
        if source.is_dir():
            weighed(source, model)
        begun = Opening(what=model.title, done=0, total=count_bytes(model, source))
        taken: dict[str, Any] = {**parts, "unet": _unet(model, source, config)}
        yield begun
        unfilled = []  # weights that no file has, so that they are drawn at random
        if source.is_dir():
            options |= {"variant": model.variant, "use_safetensors": True}
            for part, kind in ENCODERS.items():
                if part not in taken:
                    its = {**options, "dtype": _precision(list_part(source, part, model))}
                    taken[part], told = kind.from_pretrained(source / part, output_loading_info=True, **its)
                    yield begun
                    unfilled += [f"{part}.{key}" for key in told["missing_keys"]]
            pipeline = StableDiffusionXLPipeline.from_pretrained(source, **taken, **options)
        else:
            options["dtype"] = _precision([source])
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


def _unet(model: Model, source: Path, config: Path) -> UNet2DConditionModel:
    """A model's U-Net by itself, in its file's precision; of a merge the mean of its models', tensor by tensor."""
    if not model.merge:
        if model.unet:
            place = locate(model.unet)
            return UNet2DConditionModel.from_pretrained(
                place, torch_dtype=_precision([*place.glob("*.safetensors")]), local_files_only=True, use_safetensors=True
            )
        if source.is_dir():
            dtype = _precision(list_part(source, "unet", model))
            return UNet2DConditionModel.from_pretrained(
                source, subfolder="unet", variant=model.variant, torch_dtype=dtype, local_files_only=True, use_safetensors=True
            )
        return UNet2DConditionModel.from_single_file(
            str(source), config=str(config), subfolder="unet", torch_dtype=_precision([source], UNET), local_files_only=True
        )
    unets = (_unet(each, place := folder(each), find_configs(each, place)) for each in map(presets.models().__getitem__, model.merge))
    merged = next(unets)
    merged.to(dtype=this_machine().dtype)  # type: ignore[call-arg]  (its decorator hides `self`)
    for number, other in enumerate(unets, 2):
        theirs = other.state_dict()
        with torch.no_grad():
            for key, value in merged.state_dict().items():
                value.lerp_(theirs[key].to(value), 1 / number)
    return merged


def _precision(files: Collection[Path], prefix: str = "") -> torch.dtype:
    """The one that all of the weights are kept in, so that they need not be read yet; this machine's for a mixture."""
    kept: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            kept |= {opened.get_slice(key).get_dtype() for key in opened.keys() if key.startswith(prefix)}  # noqa: SIM118  (no mapping)
    kept = {kind for kind in kept if "F" in kind}  # counters are whole numbers
    return DTYPES.get(kept.pop(), this_machine().dtype) if len(kept) == 1 else this_machine().dtype


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
    files = {part: [source / part / "config.json", *list_part(source, part, model)] for part in SHARED}
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
    read, shown, total = 0, 0, count_bytes(model, source)
    while True:
        try:
            read += next(blocks)
        except StopIteration as end:
            return end.value
        if read - shown >= STEP:
            shown = read
            yield Opening(what=model.title, done=0, total=total)
