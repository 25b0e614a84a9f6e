"""The table of base models: find one on disk or the Hub, load it, keep it, swap it.

A model that cannot be had is said so in one sentence, and the one that is loaded stays.
"""

import gc
import json
import logging
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from core import encode, presets
from core.device import Machine, this_machine
from core.types import Model, UserError

ROOT = Path(__file__).resolve().parent.parent
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

log = logging.getLogger(__name__)
_loaded: dict[str, StableDiffusionXLPipeline] = {}  # at most one; by the model's name


def load(name: str) -> StableDiffusionXLPipeline:
    """The pipeline of the model `name`, on this machine's device; at once if it is the loaded one.

    Raises `UserError` when the model is unknown, not on this machine and not to be had, incomplete,
    or too large for the device; the model that was loaded stays.
    """
    if name in _loaded:
        return _loaded[name]
    pipeline = _open(find(name))
    previous = loaded()
    if previous is not None:
        _loaded[previous].to("cpu")
    try:
        _place(pipeline, this_machine())
    except torch.OutOfMemoryError as error:
        pipeline.to("cpu")  # what of it found room makes way for the old one
        release()
        if previous is not None:
            _place(_loaded[previous], this_machine())
        raise UserError(f"model: {find(name).title} does not fit into this machine's memory; {_staying()}") from error
    _loaded.clear()
    _loaded[name] = pipeline
    release()
    log.info("loaded %s", name)
    return pipeline


def loaded() -> str | None:
    """The name of the model that is loaded."""
    return next(iter(_loaded), None)


def current() -> StableDiffusionXLPipeline:
    """The pipeline that is loaded; before one is, nano's."""
    return _loaded[name] if (name := loaded()) else load("nano")


def find(name: str) -> Model:
    """The model of that name, or `UserError` with the names there are."""
    if name not in presets.models():
        raise UserError(f"model: {str(name)[:80]!r} is unknown; it takes {', '.join(presets.models())}.")
    return presets.models()[name]


def fingerprint(name: str) -> str:
    """What tells one state of a model from another: its commit, or its files' sizes and times."""
    model = find(name)
    if model.revision is not None:
        return f"{model.source}@{model.revision}"
    source = ROOT / Path(model.source).expanduser()
    files = sorted(source.rglob("*.safetensors")) if source.is_dir() else [source]
    return f"{model.name}:" + ",".join(f"{told.st_size}.{told.st_mtime_ns}" for told in (file.stat() for file in files if file.exists()))


def absence(model: Model) -> str | None:
    """What a person should know before choosing a model that is not on this machine; `None` if it is."""
    if model.revision is None:
        return None if (ROOT / Path(model.source).expanduser()).exists() else f"**Not on this machine**: put the checkpoint at `{model.source}`."
    try:
        _weighed(_fetched(model, CONFIGS, local_files_only=True), model)
    except UserError:
        return (
            f"**Not on this machine**: it is fetched from the Hub ([{model.source}](https://huggingface.co/{model.source}), about 7 GB) with the first picture."
        )
    return None


def release() -> None:
    """Give back what nothing holds any more: cycles of the interpreter, the allocator's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def tokens(prompt: str) -> int:
    """How many of CLIP's places, 75 in a chunk, the prompt takes in the loaded model, or in nano's tokens before one is."""
    return encode.tokens(current(), prompt)


def _open(model: Model) -> StableDiffusionXLPipeline:
    """The pipeline in CPU memory, complete."""
    source = _folder(model)
    config = _local(model.config) if model.config else source if source.is_dir() else _fetched(SDXL, CONFIGS)
    options = {"dtype": this_machine().dtype, "local_files_only": True}
    try:
        _configured(config, model)
        if source.is_dir():
            _weighed(source, model)
            options |= {"variant": model.variant, "use_safetensors": True}
            loads = {part: kind.from_pretrained(source / part, output_loading_info=True, **options) for part, kind in ENCODERS.items()}
            unfilled = [f"{part}.{key}" for part, (_, told) in loads.items() for key in told["missing_keys"]]  # drawn at random
            pipeline = StableDiffusionXLPipeline.from_pretrained(source, **{part: encoder for part, (encoder, _) in loads.items()}, **options)
        else:
            unfilled = []
            pipeline = StableDiffusionXLPipeline.from_single_file(str(source), config=str(config), **options)
        unfilled += [f"{part}.{key}" for part in WEIGHED for key, value in getattr(pipeline, part).state_dict().items() if value.is_meta]
        if unfilled:
            raise UserError(f"model: {model.title} lacks the weight {unfilled[0]}; {_staying()}")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, SingleFileComponentError) as error:
        log.warning("%s cannot be opened", model.name, exc_info=error)
        raise UserError(f"model: {model.title} cannot be opened as an SDXL model ({type(error).__name__}); {_staying()}") from error
    if pipeline.scheduler.config.prediction_type != model.prediction_type:
        # A single file does not say that it predicts v; zero terminal SNR goes with it.
        zero = model.prediction_type == "v_prediction"
        pipeline.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config, prediction_type=model.prediction_type, rescale_betas_zero_snr=zero)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _place(pipeline: StableDiffusionXLPipeline, machine: Machine) -> None:
    """Put the pipeline on the device in the way the machine allows."""
    if machine.attention == "xformers":
        pipeline.enable_xformers_memory_efficient_attention()
    if machine.tile_vae:
        pipeline.vae.enable_tiling()
    if machine.dtype == torch.float16 and pipeline.vae.config.force_upcast:
        pipeline.vae.to(dtype=torch.float32)  # SDXL's VAE overflows in float16
    if machine.offload:
        pipeline.enable_model_cpu_offload()
    else:
        pipeline.to(machine.device)


def _folder(model: Model) -> Path:
    """Where the model lies on this machine, fetched if need be."""
    if model.revision is None:
        return _local(model.source)
    ending = f".{model.variant}.safetensors" if model.variant else ".safetensors"
    return _fetched(model, CONFIGS + [f"{part}/{start}*{ending}" for part, start in WEIGHED.items()])


def _local(source: str) -> Path:
    path = ROOT / Path(source).expanduser()
    if not path.exists():
        raise UserError(f"model: {source} is not there; {_staying()}")
    return path


def _fetched(model: Model, patterns: list[str], local_files_only: bool = False) -> Path:
    """A Hub repository's folder on this machine; anonymous, at its commit, safetensors only."""
    try:
        return Path(snapshot_download(model.source, revision=model.revision, allow_patterns=patterns, token=False, local_files_only=local_files_only))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(f"model: {model.title} ({model.source}) is gated, private or gone on the Hub; {_staying()}") from error
    except (HTTPError, OSError, RuntimeError) as error:  # offline, no such commit, cut off on the way; hf_xet says RuntimeError
        raise UserError(f"model: {model.title} ({model.source}) is not on this machine and the Hub cannot be reached; {_staying()}") from error


def _configured(folder: Path, model: Model) -> None:
    """Raise `UserError` naming the first config or tokenizer file of a diffusers folder that is missing."""
    files = ["model_index.json", *(f"{part}/{config}" for part, config in CONFIGURED.items())]
    for part in ("tokenizer", "tokenizer_2"):  # either spelling will do; without one, transformers makes up an empty vocabulary
        older = [f"{part}/vocab.json", f"{part}/merges.txt"]
        files += older if any((folder / file).exists() for file in older) else [f"{part}/tokenizer.json"]
    for file in files:
        if not (folder / file).exists():
            raise UserError(f"model: {model.title} lacks {file}; {_staying()}")


def _weighed(folder: Path, model: Model) -> None:
    """Raise `UserError` naming the first weight file of a diffusers folder that is missing."""
    variant = f".{model.variant}" if model.variant else ""
    for part in WEIGHED:
        for index in (folder / part).glob(f"*.safetensors.index{variant}.json"):
            for shard in set(json.loads(index.read_text())["weight_map"].values()):
                if not (folder / part / shard).exists():
                    raise UserError(f"model: {model.title} lacks {part}/{shard}; {_staying()}")
        if not any((folder / part).glob("*.safetensors")):
            raise UserError(f"model: {model.title} lacks {part}/*.safetensors; {_staying()}")


def _staying() -> str:
    return f"{loaded()} stays loaded." if _loaded else "no model is loaded."
