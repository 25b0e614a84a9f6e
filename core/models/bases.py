"""The base model on this machine: loads one, keeps it, swaps it.

A model that is not available is refused in one sentence, and the loaded one stays.
"""

import hashlib
import logging
import os
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from core.models import files as models_files
from core.models import loader, tools, weight_seal
from core.models.catalogue import find_donor, find_model
from core.prompts import conditioning
from core.schema.errors import UserError
from core.schema.events import LoadProgress
from core.schema.types import EmbeddingUse, Model, Request
from core.system import paths
from core.system.concurrency import drain
from core.system.device import Machine, detect_machine
from core.system.memory import clear_frames, release_memory, translate_out_of_memory
from core.system.tensor_files import calculate_sha256

MEMORY_MARGIN = 1.2
"""Free memory that opening a model beside another takes, as a multiple of its weights."""

log = logging.getLogger(__name__)
_pipelines: dict[str, StableDiffusionXLPipeline] = {}  # at most one, by the model's name
_states: dict[str, str] = {}  # of its files when they were read, by its name
_part_hashes: dict[str, str] = {}  # of the parts that other models may share
_seal: dict[str, weight_seal.WeightMark] = {}  # its marks with nothing applied


def load_model(name: str) -> StableDiffusionXLPipeline:
    """Return the pipeline of the model `name`, as `open_model` does, but without a way to stop."""
    return drain(open_model(name))


def open_model(name: str) -> Generator[LoadProgress, None, StableDiffusionXLPipeline]:
    """Open the model `name` on this machine's device; return at once if it is already loaded.

    Yields a `LoadProgress` for each step. Raises `UserError` if the model is unknown, neither on
    this machine nor available, incomplete, or too large for the memory. Then, and if the generator
    is closed on the way, the loaded model stays, or none does if two do not fit into memory.
    """
    if name in _pipelines and _is_as_loaded(name):
        return _pipelines[name]
    model, state = find_model(name), fingerprint_model(name)
    try:
        with translate_out_of_memory(
            "model",
            f"{model.title} does not fit into this machine's memory: "
            "close other programs, or choose a smaller model",
        ):
            pipeline, digests = yield from _open_on_device(model)
            seal = weight_seal.seal_weights(pipeline)
    except UserError as error:
        raise UserError(error.field, f"{error.sentence.removesuffix('.')}; {_describe_loaded()}") from error
    except BaseException as error:
        clear_frames(error)  # they hold half a model
        release_memory()
        raise
    _pipelines.clear()
    _pipelines[name] = pipeline
    _states.clear()
    _states[name] = state
    _part_hashes.clear()
    _part_hashes.update(digests)
    _seal.clear()
    _seal.update(seal)
    release_memory()
    log.info("loaded %s", name.partition("@")[2][:40] or name)  # a visitor's model by its commit
    return pipeline


def _is_as_loaded(name: str) -> bool:
    """Return whether a loaded model is still the one of that name.

    A person may replace a checkpoint, or set another VAE for it.
    """
    return fingerprint_model(name) == _states.get(name)


def _open_on_device(
    model: Model,
) -> Generator[LoadProgress, None, tuple[StableDiffusionXLPipeline, dict[str, str]]]:
    """Open the pipeline on its device in place of the loaded one; return it and its parts' hashes.

    The loaded one waits in CPU memory if it fits.
    """
    source, previous = models_files.fetch_model_files(model), get_loaded_name()
    digests = yield from loader.hash_parts(model, source)
    kept = (
        {
            part: getattr(_pipelines[previous], part)
            for part, own in digests.items()
            if own == _part_hashes.get(part)
        }
        if previous is not None
        else {}
    )
    if (
        previous is not None
        and models_files.count_memory(model, source, without=kept) * MEMORY_MARGIN > _free_memory()
    ):
        _pipelines.clear()  # two would not fit; the old one is reloaded when it is needed
        release_memory()
        previous = None
    pipeline = yield from loader.open_pipeline(model, source, kept)
    try:
        if previous is not None:
            _pipelines[previous].to("cpu")
        _move_to_device(pipeline, detect_machine())
    except Exception:
        pipeline.to("cpu")  # its moved parts make room for the old one
        release_memory()
        if previous is not None:
            _move_to_device(_pipelines[previous], detect_machine())
        raise
    return pipeline, digests


def fetch_model(name: str) -> None:
    """Fetch the model's files to this machine, so that loading waits for no download.

    Raises `UserError` if the model is unknown or not available.
    """
    try:
        model = find_model(name)
        for each in (name, *model.merge, *([model.donor] if model.donor else [])):
            models_files.fetch_model_files(find_model(each))
        if model.vae and not Path(model.vae).is_absolute():
            tools.fetch_tool("vae", model.vae)
    except UserError as error:
        raise UserError(error.field, f"{error.sentence}; {_describe_loaded()}") from error


def verify_weights() -> None:
    """Verify that the loaded model is unchanged: weights bit for bit, no hooks on its layers.

    A difference is a bug of the studio or of the driver; the model is reloaded and the log says
    what was found.
    """
    if (name := get_loaded_name()) is None or not (
        changed := weight_seal.find_difference(_pipelines[name], _seal)
    ):
        return
    log.error("%s was not as it was loaded: %s; it is reloaded", name.partition("@")[2][:40] or name, changed)
    _pipelines.clear()
    try:
        load_model(name)
    except UserError:  # tried again when the model is needed
        log.error("%s cannot be reloaded", name.partition("@")[2][:40] or name)


def get_loaded_name() -> str | None:
    """Return the name of the loaded model; `None` if none is."""
    return next(iter([*_pipelines]), None)  # a copy: another thread may be loading


def get_current_pipeline() -> StableDiffusionXLPipeline:
    """Return the loaded pipeline, or load nano's if none is. Call it on torch's thread only."""
    return _pipelines[name] if (name := get_loaded_name()) else load_model("nano")


def find_prediction(name: str) -> models_files.Prediction:
    """Return what a model on this machine predicts."""
    model = find_model(name)
    return models_files.find_prediction(model, models_files.fetch_model_files(model))


def find_model_for_field(field: str, name: Any) -> Model:
    """Return the model of that name; an error names `field` instead of `model`.

    Raises `UserError` if the model is unknown.
    """
    try:
        return find_model(name)
    except UserError as error:
        raise UserError(field, error.sentence) from error


def fingerprint_model(name: str) -> str:
    """Return what tells one state of a model from another.

    That is its commit, or its files' sizes and times, and what a person set for it.
    """
    return _fingerprint(find_model(name))


def _fingerprint(model: Model) -> str:
    changes = {
        "predicts": model.prediction_type,
        "vae": model.vae and _fingerprint_vae(model.vae),
        # A donor without its own: two that name each other would never end.
        "donor": model.donor and _fingerprint(replace(find_donor(model), donor=None)),
    }
    return _fingerprint_own(model) + "".join(f";{what}:{value}" for what, value in changes.items() if value)


def _fingerprint_vae(name: str) -> str:
    """Return what tells a VAE from others and, for a file of one's own, its states."""
    file = tools.list_owner_files("vae").get(name, Path(name))
    return f"{file.name}:{_fingerprint_files([file])}" if file.is_file() else name


def _fingerprint_own(model: Model) -> str:
    """Return what tells one state of a model's own files from another."""
    if model.revision is not None:
        return f"{model.source}@{model.revision}" + (f":{model.file}" if model.file else "")
    if model.merge:
        return f"{model.name}:" + "+".join(map(fingerprint_model, model.merge))
    return f"{model.name}:{_fingerprint_files(_list_weights(model))}"


def _fingerprint_files(files: Sequence[Path]) -> str:
    return ",".join(f"{told.st_size}.{told.st_mtime_ns}" for told in (file.stat() for file in files))


def hash_weights(name: str) -> str | None:
    """Return 10 hex digits that tell the weights of an embedded model from earlier ones.

    The embedded family is trained anew now and then, and draws other pictures from then on. `None`
    for any other model: a commit or a file's own name tells which it is.
    """
    model = find_model(name)
    return _hash_files(name, fingerprint_model(name)) if model.is_nano and not model.revision else None


@cache
def _hash_files(name: str, _fingerprint: str) -> str:
    """Return the hash of a model's files, read once for each state that they are in."""
    model = find_model(name)
    hashes = [calculate_sha256(file) for file in _list_weights(model)]
    hashes += [_hash_files(each, fingerprint_model(each)) for each in model.merge]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:10]


def _list_weights(model: Model) -> list[Path]:
    """Return the files of a local model's weights that are there."""
    sources = [paths.locate(source) for source in (model.source, model.unet) if source]
    files = [
        file
        for source in sources
        for file in (sorted(source.rglob("*.safetensors")) if source.is_dir() else [source])
    ]
    return [file for file in files if file.exists()]


def describe_absence(model: Model) -> str | None:
    """Return what a person should know before choosing a model that is not on this machine.

    `None` if the model is here.
    """
    if models_files.find_on_disk(model):
        return None
    if model.revision is None:
        return f"**File missing**: put the checkpoint at `{paths.locate(model.source)}`."
    return (
        "**Not downloaded yet**: the first image downloads it from Hugging Face "
        f"([{model.source}](https://huggingface.co/{model.source}), about 7 GB)."
    )


def count_prompt_tokens(prompt: str, embeddings: Sequence[EmbeddingUse] = ()) -> int:
    """Count the prompt's tokens, 75 in a chunk, with the loaded model's tokenizer.

    Uses nano's tokenizer if no model is loaded. Loads no model.
    """
    return conditioning.count_tokens(_get_tokenizer(), prompt, embeddings)


def check_prompt_length(request: Request) -> None:
    """Raise `UserError` for `prompt` or `negative` where `conditioning.count_chunks` refuses it.

    Counts with the tokenizer that `count_prompt_tokens` takes.
    """
    conditioning.count_chunks(_get_tokenizer(), request)


def _get_tokenizer() -> CLIPTokenizer:
    pipelines = [*_pipelines.values()]
    return pipelines[0].tokenizer if pipelines else _load_nano_tokenizer()


@cache
def _load_nano_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(
        paths.locate(find_model("nano").source) / "tokenizer", local_files_only=True
    )


def _move_to_device(pipeline: StableDiffusionXLPipeline, machine: Machine) -> None:
    """Put the pipeline on the device in the way that the machine allows."""
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


def _free_memory() -> int:
    """Return the bytes of the machine's memory that are available."""
    told = Path("/proc/meminfo")
    if not told.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return next(
        int(line.split()[1]) * 1024
        for line in told.read_text().splitlines()
        if line.startswith("MemAvailable")
    )


def _describe_loaded() -> str:
    return f"{get_loaded_name()} is still loaded." if _pipelines else "no model is loaded."
