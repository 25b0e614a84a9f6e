"""The table of base models: find one on disk or the Hub, load it, keep it, swap it.

A model that cannot be had is said so in one sentence, and the one that is loaded stays.
"""

import gc
import json
import logging
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors import SafetensorError

from core import presets
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

log = logging.getLogger(__name__)
_loaded: dict[str, StableDiffusionXLPipeline] = {}  # at most one; by the model's name


def load(name: str) -> StableDiffusionXLPipeline:
    """The pipeline of the model `name`, on this machine's device; at once if it is the loaded one.

    Raises `UserError` when the model is unknown, not on this machine and not to be had, incomplete,
    or too large for the device; the model that was loaded stays.
    """
    if name in _loaded:
        return _loaded[name]
    model = find(name)
    pipeline = _open(model)
    previous = dict(_loaded)
    _loaded.clear()
    try:
        for old in previous.values():
            old.to("cpu")
        _place(pipeline, this_machine())
    except torch.OutOfMemoryError as error:
        release()
        for old in previous.values():
            _place(old, this_machine())
        _loaded.update(previous)
        raise UserError(f"model: {model.title} does not fit into this machine's memory; {_staying()}") from error
    _loaded[name] = pipeline
    previous.clear()
    release()
    log.info("loaded %s", name)
    return pipeline


def loaded() -> str | None:
    """The name of the model that is loaded."""
    return next(iter(_loaded), None)


def find(name: str) -> Model:
    """The model of that name, or `UserError` with the names there are."""
    if name not in presets.models():
        raise UserError(f"model: {str(name)[:80]!r} is unknown; it takes {', '.join(presets.models())}.")
    return presets.models()[name]


def release() -> None:
    """Give back what nothing holds any more: cycles of the interpreter, the allocator's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def tokens(text: str) -> int:
    """How many of CLIP's 75 places the text takes in the loaded model."""
    pipeline = next(iter(_loaded.values()))
    return len(pipeline.tokenizer(text).input_ids) - 2


def _open(model: Model) -> StableDiffusionXLPipeline:
    """The pipeline in CPU memory, complete."""
    source = _folder(model)
    dtype = this_machine().dtype
    try:
        if source.is_dir():
            _complete(source, model)
            pipeline = StableDiffusionXLPipeline.from_pretrained(source, variant=model.variant, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
        else:
            config = _local(model.config) if model.config else _fetched(SDXL, CONFIGS)
            pipeline = StableDiffusionXLPipeline.from_single_file(str(source), config=str(config), torch_dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
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


def _fetched(model: Model, patterns: list[str]) -> Path:
    """A Hub repository's folder on this machine; anonymous, at its commit, safetensors only."""
    try:
        return Path(snapshot_download(model.source, revision=model.revision, allow_patterns=patterns, token=False))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(f"model: {model.title} ({model.source}) is gated, private or gone on the Hub; {_staying()}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise UserError(f"model: {model.title} ({model.source}) is not on this machine and the Hub cannot be reached; {_staying()}") from error


def _complete(folder: Path, model: Model) -> None:
    """Raise `UserError` naming the first file of a diffusers folder that is missing."""
    for file in ("model_index.json", *(f"{part}/{config}" for part, config in CONFIGURED.items())):
        if not (folder / file).exists():
            raise UserError(f"model: {model.title} lacks {file}; {_staying()}")
    for part in WEIGHED:
        for index in (folder / part).glob("*.safetensors.index.json"):
            for shard in set(json.loads(index.read_text())["weight_map"].values()):
                if not (folder / part / shard).exists():
                    raise UserError(f"model: {model.title} lacks {part}/{shard}; {_staying()}")
        if not any((folder / part).glob("*.safetensors")):
            raise UserError(f"model: {model.title} lacks {part}/*.safetensors; {_staying()}")


def _staying() -> str:
    return f"{loaded()} stays loaded." if _loaded else "no model is loaded."
