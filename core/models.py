"""The table of base models: find one on disk or the Hub, load it, keep it, swap it.

A model that cannot be had is said so in one sentence, and the one that is loaded stays.
"""

import logging
import os
from collections.abc import Generator
from functools import cache
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from core import encode, hub, modelfiles, opening, paths, presets, pristine, pulled
from core.aside import drain
from core.device import Machine, this_machine
from core.events import Opening
from core.memory import enough_memory, let_go, release
from core.types import Model, UserError

ROOM = 1.2
"""Times a model's weights that have to be free for it to be opened beside another."""

log = logging.getLogger(__name__)
_loaded: dict[str, StableDiffusionXLPipeline] = {}  # at most one; by the model's name
_digests: dict[str, str] = {}  # of its parts that other models may have, too
_seal: dict[str, pristine.Mark] = {}  # what it is like with nothing put on


def load(name: str) -> StableDiffusionXLPipeline:
    """The pipeline of the model `name`, as `open_model` opens it, by a call that cannot be stopped."""
    return drain(open_model(name))


def open_model(name: str) -> Generator[Opening, None, StableDiffusionXLPipeline]:
    """The pipeline of the model `name`, on this machine's device, after an `Opening` for each step; at once if it is the loaded one.

    Raises `UserError` when the model is unknown, not on this machine and not to be had, incomplete, or too large for the
    memory. Then, and when the generator is closed on the way, the model that was loaded stays, or where two do not fit
    into memory, none.
    """
    if name in _loaded:
        return _loaded[name]
    model = find(name)
    try:
        with enough_memory(f"model: {model.title} does not fit into this machine's memory: end other programs, or choose a smaller model"):
            pipeline, digests = yield from _opened(model)
            seal = pristine.seal(pipeline)
    except UserError as error:
        raise UserError(f"{str(error).removesuffix('.')}; {_staying()}") from error
    except BaseException as error:
        let_go(error)  # half a model
        release()
        raise
    _loaded.clear()
    _loaded[name] = pipeline
    _digests.clear()
    _digests.update(digests)
    _seal.clear()
    _seal.update(seal)
    release()
    log.info("loaded %s", name.partition("@")[2][:40] or name)  # of what a visitor named, the commit
    return pipeline


def _opened(model: Model) -> Generator[Opening, None, tuple[StableDiffusionXLPipeline, dict[str, str]]]:
    """The pipeline on its device in the place of the loaded one, which waits in CPU memory if it fits; and its parts' digests."""
    source, previous = modelfiles.folder(model), loaded()
    digests = yield from opening.digests(model, source)
    kept = {part: getattr(_loaded[previous], part) for part, own in digests.items() if own == _digests.get(part)} if previous is not None else {}
    if previous is not None and modelfiles.size(model, source, without=kept) * ROOM > _free():
        _loaded.clear()  # two would not fit; it is opened again when it is wanted
        release()
        previous = None
    pipeline = yield from opening.opened(model, source, kept)
    try:
        if previous is not None:
            _loaded[previous].to("cpu")
        _place(pipeline, this_machine())
    except Exception:
        pipeline.to("cpu")  # what of it found room makes way for the old one
        release()
        if previous is not None:
            _place(_loaded[previous], this_machine())
        raise
    return pipeline, digests


def fetched(name: str) -> None:
    """The model's files on this machine, so that loading waits for no download. Raises `UserError` as `load`."""
    try:
        for each in (name, *find(name).merge):
            modelfiles.folder(find(each))
    except UserError as error:
        raise UserError(f"{error}; {_staying()}") from error


def checked() -> None:
    """Make sure that the loaded model is as it was loaded: every weight bit for bit, nothing hung on its layers.

    One that is not is a mistake of ours or of the driver's; it is loaded anew and the log says what was found.
    """
    if (name := loaded()) is None or not (changed := pristine.difference(_loaded[name], _seal)):
        return
    log.error("%s was not as it was loaded: %s; it is loaded anew", name.partition("@")[2][:40] or name, changed)
    _loaded.clear()
    try:
        load(name)
    except UserError:  # it is tried again when it is wanted
        log.error("%s cannot be loaded anew", name.partition("@")[2][:40] or name)


def loaded() -> str | None:
    """The name of the model that is loaded."""
    return next(iter([*_loaded]), None)  # a copy: anybody asks while another thread loads


def current() -> StableDiffusionXLPipeline:
    """The pipeline that is loaded; before one is, nano's, which is loaded: on torch's thread only."""
    return _loaded[name] if (name := loaded()) else load("nano")


def find(name: str) -> Model:
    """The model of that name, one of the table or a Hub id at a commit; else `UserError` with the names there are."""
    if hub.is_id(name):
        return pulled.base(pulled.exact_base(name))
    if name not in presets.models():
        raise UserError(f"model: {str(name)[:80]!r} is unknown; it takes {', '.join(presets.models())}, or a Hub id owner/name.")
    return presets.models()[name]


def named(field: str, name: object) -> Model:
    """As `find`, for another field than `model`."""
    try:
        return find(str(name))
    except UserError as error:
        raise UserError(f"{field}:{str(error).partition(':')[2]}") from error


def fingerprint(name: str) -> str:
    """What tells one state of a model from another: its commit, or its files' sizes and times."""
    model = find(name)
    if model.revision is not None:
        return f"{model.source}@{model.revision}" + (f":{model.file}" if model.file else "")
    if model.merge:
        return f"{model.name}:" + "+".join(map(fingerprint, model.merge))
    sources = [paths.locate(source) for source in (model.source, model.unet) if source]
    files = [file for source in sources for file in (sorted(source.rglob("*.safetensors")) if source.is_dir() else [source])]
    return f"{model.name}:" + ",".join(f"{told.st_size}.{told.st_mtime_ns}" for told in (file.stat() for file in files if file.exists()))


def absence(model: Model) -> str | None:
    """What a person should know before choosing a model that is not on this machine; `None` if it is."""
    if model.revision is None:
        return None if paths.locate(model.source).exists() else f"**Not on this machine**: put the checkpoint at `{paths.locate(model.source)}`."
    if modelfiles.here(model):
        return None
    return f"**Not on this machine**: it is fetched from the Hub ([{model.source}](https://huggingface.co/{model.source}), about 7 GB) with the first picture."


def tokens(prompt: str) -> int:
    """How many of CLIP's places, 75 in a chunk, the prompt takes in the loaded model, or in nano's tokens while none is. Loads no model."""
    pipelines = [*_loaded.values()]
    return encode.tokens(pipelines[0].tokenizer if pipelines else _nanos_tokenizer(), prompt)


@cache
def _nanos_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(paths.locate(find("nano").source) / "tokenizer", local_files_only=True)


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


def _free() -> int:
    """Bytes of the machine's memory that can be had."""
    told = Path("/proc/meminfo")
    if not told.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return next(int(line.split()[1]) * 1024 for line in told.read_text().splitlines() if line.startswith("MemAvailable"))


def _staying() -> str:
    return f"{loaded()} stays loaded." if _loaded else "no model is loaded."
