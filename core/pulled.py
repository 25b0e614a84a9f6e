"""What a person names by its Hub id, each looked at before it is fetched: a LoRA, an upscaler, a detector, a base model."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from core import hub, sizes
from core.device import this_machine
from core.lorafile import LARGEST, check_kind
from core.modelfiles import CONFIGS, WEIGHED, own_code
from core.types import Model, UserError

TOOLS = {"upscaler": ".safetensors", "detector": ".onnx"}
"""Kinds of tools that a person may bring, and how their files end."""
LARGEST_TOOL = 512 * 2**20  # bytes
LARGEST_BASE = 20 * 2**30
LARGEST_CONFIGS = 50 * 2**20
PIPELINE = "StableDiffusionXLPipeline"
INPUTS = {"conv_in.weight": 4, "model.diffusion_model.input_blocks.0.0.weight": 4}
"""The U-Net's first layer and its input channels; one for inpainting has 9."""


def lora(text: str) -> Path:
    """A LoRA's file; refused by its header, before the rest is fetched. Raises `UserError`."""
    repo, commit, name = hub.parts(text)
    if commit and name and (there := hub.here(repo, commit, name)):
        hub.remember(there, text)
        return there
    found = hub.listing(text, "lora")
    name = _chosen(found, name, ".safetensors", "lora")
    if hub.here(found.repo, found.commit, name) is None:
        if found.sizes[name] > LARGEST:
            raise UserError(f"lora: {name} has {found.sizes[name]:,} bytes; a LoRA has up to {LARGEST:,}.")
        check_kind(hub.tensors(found, name, "lora"), f"lora: {name}")
    return hub.file(found, name, "lora")


def exact(kind: str, text: str) -> str:
    """The name at its commit of a tool that a person brings. Raises `UserError`."""
    _, commit, name = hub.parts(text)
    if commit and name:
        return text
    found = hub.listing(text, kind)
    return found.exact(_chosen(found, name, TOOLS[kind], kind))


def tool(kind: str, text: str) -> Path:
    """A tool's file, by its exact name. Raises `UserError`."""
    repo, commit, name = hub.parts(text)
    if kind not in TOOLS or not commit or not name or not name.endswith(TOOLS[kind]):
        raise UserError(f"{kind}: {text[:60]!r} is not allowed; it takes owner/name:file{TOOLS.get(kind, '')}.")
    if there := hub.here(repo, commit, name):
        return there
    found = hub.listing(text, kind)
    name = _chosen(found, name, TOOLS[kind], kind)
    if found.sizes[name] > LARGEST_TOOL:
        raise UserError(f"{kind}: {name} has {found.sizes[name]:,} bytes; it takes up to {LARGEST_TOOL:,}.")
    if kind == "upscaler":
        hub.tensors(found, name, kind)
    return hub.file(found, name, kind)


@lru_cache(64)
def base(text: str) -> Model:
    """A base model by its exact name, as a table's entry: a diffusers folder of SDXL's, or a checkpoint. Raises `UserError`."""
    repo, commit, name = hub.parts(text)
    assert commit
    if name:
        if hub.here(repo, commit, name) is None:
            found = hub.listing(text, "model")
            _sdxl(hub.tensors(found, _chosen(found, name, ".safetensors", "model"), "model"), found, name)
        return Model(name=text, title=f"{repo}:{name}", source=repo, revision=commit, file=name, licence=_licence(text))
    configs = hub.folder_here(repo, commit, CONFIGS) or _configs(hub.listing(text, "model"))
    told = _json(configs / "scheduler/scheduler_config.json", repo)
    return Model(
        name=text,
        title=repo,
        source=repo,
        revision=commit,
        variant=_variant(text, configs),
        prediction_type=str(told.get("prediction_type", "epsilon")),
        native_size=_native(configs, repo),
        licence=_licence(text),
    )


def exact_base(text: str) -> str:
    """The base's name at the commit that it has now; of a repository without a diffusers folder with its one checkpoint. Raises `UserError`."""
    _, commit, name = hub.parts(text)
    if commit and (name or hub.folder_here(hub.parts(text)[0], commit, CONFIGS)):
        return text
    found = hub.listing(text, "model")
    if name is None and "model_index.json" in found.sizes:
        return found.exact()
    return found.exact(_chosen(found, name, ".safetensors", "model"))


def _chosen(found: hub.Listing, name: str | None, ending: str, field: str) -> str:
    """The file that is meant, if the repository has it."""
    there = [file for file in found.sizes if file.endswith(ending)]
    if name is None and len(there) == 1:
        return there[0]
    if name is None:
        what = f"holds {len(there)} {ending[1:]} files ({', '.join(there[:5])})" if there else f"holds no {ending[1:]} file"
        raise UserError(f"{field}: {found.repo} {what}; name one as {found.repo}:file{ending}.")
    if name not in there:
        raise UserError(f"{field}: {found.repo} has no {name[:60]}; it has {', '.join(there[:5]) or f'no {ending[1:]} file'}.")
    return name


def _configs(found: hub.Listing) -> Path:
    """The configs and tokenizers of a folder that is an SDXL's, all of its weights looked at by their headers."""
    small = [size for name, size in found.sizes.items() if name.endswith((".json", ".txt"))]
    if sum(small) > LARGEST_CONFIGS or sum(found.sizes.values()) == 0:
        raise UserError(f"model: {found.repo}'s configs have {sum(small):,} bytes; it takes up to {LARGEST_CONFIGS:,}.")
    folder = hub.folder(found.repo, found.commit, CONFIGS, "model")
    index = _json(folder / "model_index.json", found.repo)
    if index.get("_class_name") != PIPELINE:
        raise UserError(f"model: {found.repo} is a {str(index.get('_class_name'))[:60]}; it takes {PIPELINE}.")
    if named := own_code(folder):
        raise UserError(f"model: {found.repo} brings code of its own ({named}), and none is run here.")
    if said := sizes.outsized(folder):
        raise UserError(f"model: {found.repo} has {said}.")
    for part, start in WEIGHED.items():
        files = [name for name in found.sizes if name.startswith(f"{part}/{start}") and name.endswith(".safetensors")]
        if not files:
            raise UserError(f"model: {found.repo} has no {part}/{start}*.safetensors.")
        if part == "unet":
            for name in files:
                _sdxl(hub.tensors(found, name, "model"), found, name, whole=False)
    weights = sum(size for name, size in found.sizes.items() if name.endswith(".safetensors"))
    if weights > 3 * LARGEST_BASE:  # several precisions of one
        raise UserError(f"model: {found.repo} has {weights:,} bytes of weights; it takes up to {3 * LARGEST_BASE:,}.")
    return folder


def _sdxl(tensors: Any, found: hub.Listing, name: str, whole: bool = True) -> None:
    """Raise `UserError` unless the tensors are those of an SDXL that makes pictures from text alone."""
    if found.sizes[name] > LARGEST_BASE:
        raise UserError(f"model: {name} has {found.sizes[name]:,} bytes; it takes up to {LARGEST_BASE:,}.")
    if len(tensors) > sizes.TENSORS:
        raise UserError(f"model: {name} has {len(tensors):,} tensors; it takes up to {sizes.TENSORS:,}.")
    first = next((key for key in INPUTS if key in tensors), None)
    if first and tensors[first].shape[1] != INPUTS[first]:
        raise UserError(f"model: {name} takes {tensors[first].shape[1]} channels, as a model for inpainting does; it takes one with {INPUTS[first]}.")
    if whole and not (first and any(key.startswith("conditioner.embedders.1.") for key in tensors)):
        raise UserError(f"model: {found.repo}'s {name} is not a whole SDXL checkpoint.")


def _variant(text: str, configs: Path) -> str | None:
    """`fp16` where the machine would make it so anyway and the repository has every part of it."""
    _, commit, _ = hub.parts(text)
    assert commit
    half = [f"{part}/{start}.fp16.safetensors" for part, start in WEIGHED.items()]
    full = [f"{part}/{start}.safetensors" for part, start in WEIGHED.items()]
    if all((configs / name).exists() for name in full):
        return None
    if all((configs / name).exists() for name in half):
        return "fp16"
    sizes = hub.listing(text, "model").sizes
    either = all(name in sizes for name in full) and this_machine().device == "cpu"  # which computes in float32
    return "fp16" if all(name in sizes for name in half) and not either else None


def _native(configs: Path, repo: str) -> int:
    """The side in pixels of the pictures that it was trained on: what its U-Net calls its sample size, times the VAE's 8."""
    size = _json(configs / "unet/config.json", repo).get("sample_size", 128)
    return 8 * size if isinstance(size, int) and 8 <= size <= 256 else 1024


def _licence(text: str) -> str:
    """As its card says; of one that is here and whose card cannot be asked for, none."""
    try:
        return hub.listing(text, "model").licence or "unknown"
    except UserError:
        return "unknown"


def _json(file: Path, repo: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"model: {repo} has no {file.parent.name}/{file.name} that can be read.") from error
    if not isinstance(found, dict):
        raise UserError(f"model: {repo}'s {file.parent.name}/{file.name} is no table.")
    return found
