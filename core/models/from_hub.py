"""Resolves what a person names by its Hub id: a LoRA, an upscaler, a detector, a base model.

Each is inspected before it is fetched.
"""

import json
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import safe_open

from core.hub import client as hub
from core.lora.file import ADAPTER_CONFIG, MAX_ADAPTER_CONFIG_BYTES, MAX_FILE_BYTES, check_lora_kind
from core.models import config_limits
from core.models.files import CONFIG_PATTERNS, V_PREDICTION_KEY, WEIGHT_FILES, find_custom_code
from core.models.lora_sidecars import MAX_SIDECAR_BYTES
from core.schema import limits
from core.schema.errors import UserError
from core.schema.types import Model
from core.system.device import detect_machine

TOOL_SUFFIXES = {"upscaler": ".safetensors", "detector": ".onnx"}
"""Kinds of tools that a person may name, and the suffixes of their files."""
MAX_TOOL_BYTES = 512 * 2**20
MAX_GALLERY_BYTES = 64 * 2**20
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_BASE_BYTES = 20 * 2**30
MAX_CONFIG_BYTES = 50 * 2**20
PIPELINE_CLASS = "StableDiffusionXLPipeline"
INPUT_CHANNELS = {"conv_in.weight": 4, "model.diffusion_model.input_blocks.0.0.weight": 4}
"""The U-Net's first layer and its input channels; one for inpainting has 9."""


def fetch_lora(hub_id: str) -> Path:
    """Return a LoRA's file, fetching it if needed.

    Raises `UserError` for a LoRA that is refused by its size or header, before the rest is fetched.
    """
    repo, commit, name = hub.split_hub_id(hub_id)
    if commit and name and (there := hub.find_cached_file(repo, commit, name)):
        hub.record_origin(there, hub_id)
        return there
    found = hub.fetch_listing(hub_id, "lora")
    name = _choose_file(found, name, ".safetensors", "lora")
    if hub.find_cached_file(found.repo, found.commit, name) is None:
        if found.sizes[name] > MAX_FILE_BYTES:
            raise UserError(
                "lora", f"{name} has {found.sizes[name]:,} bytes; the limit for a LoRA is {MAX_FILE_BYTES:,}."
            )
        check_lora_kind(hub.fetch_tensor_shapes(found, name, "lora"), name)
    for folder in list(PurePosixPath(name).parents)[:2]:
        config = str(folder / ADAPTER_CONFIG)
        if 0 < found.sizes.get(config, 0) <= MAX_ADAPTER_CONFIG_BYTES:
            hub.fetch_file(found, config, "lora")  # PEFT's alpha stands there
    beside = str(PurePosixPath(name).with_suffix(".json"))
    if 0 < found.sizes.get(beside, 0) <= MAX_SIDECAR_BYTES:
        hub.fetch_file(found, beside, "lora")  # its card's numbers: strength and trigger
    return hub.fetch_file(found, name, "lora")


def fetch_gallery(hub_id: str) -> list[Path]:
    """Return the images that the card of a LoRA shows, in its order, fetching them if needed.

    At most `limits.REFERENCES` images, and `MAX_GALLERY_BYTES` of them. Raises `UserError` if the Hub
    does not answer.
    """
    found, left = hub.fetch_listing(hub_id, "references"), MAX_GALLERY_BYTES
    files: list[Path] = []
    for name in [name for name in found.gallery if name.lower().endswith(IMAGE_SUFFIXES)]:
        left -= found.sizes[name]
        if left >= 0 and len(files) < limits.REFERENCES:
            files.append(hub.fetch_file(found, name, "references"))
    return files


def pin_tool(kind: str, hub_id: str) -> str:
    """Return the exact name, with its commit, of a tool that a person names. Raises `UserError`."""
    _, commit, name = hub.split_hub_id(hub_id)
    if commit and name:
        return hub_id
    found = hub.fetch_listing(hub_id, kind)
    return found.format_exact_name(_choose_file(found, name, TOOL_SUFFIXES[kind], kind))


def fetch_hub_tool(kind: str, hub_id: str) -> Path:
    """Return a tool's file by its exact name, fetching it if needed.

    Raises `UserError` for a name that is not exact, and for a file that is missing or too large.
    """
    repo, commit, name = hub.split_hub_id(hub_id)
    if kind not in TOOL_SUFFIXES or not commit or not name or not name.endswith(TOOL_SUFFIXES[kind]):
        raise UserError(
            kind, f"{hub_id[:60]!r} is not valid. Use owner/name:file{TOOL_SUFFIXES.get(kind, '')}."
        )
    if there := hub.find_cached_file(repo, commit, name):
        return there
    found = hub.fetch_listing(hub_id, kind)
    name = _choose_file(found, name, TOOL_SUFFIXES[kind], kind)
    if found.sizes[name] > MAX_TOOL_BYTES:
        raise UserError(kind, f"{name} has {found.sizes[name]:,} bytes; the limit is {MAX_TOOL_BYTES:,}.")
    if kind == "upscaler":
        hub.fetch_tensor_shapes(found, name, kind)
    return hub.fetch_file(found, name, kind)


@lru_cache(64)
def resolve_base(hub_id: str) -> Model:
    """Return the table entry of a base model by its exact name.

    The model is an SDXL diffusers folder or a checkpoint. Raises `UserError` if it is neither.
    """
    repo, commit, name = hub.split_hub_id(hub_id)
    assert commit
    if name:
        return Model(
            name=hub_id,
            title=f"{repo}:{name}",
            source=repo,
            revision=commit,
            file=name,
            prediction_type=_read_prediction(hub_id),
            licence=_read_licence(hub_id),
        )
    configs = hub.find_cached_folder(repo, commit, CONFIG_PATTERNS) or _fetch_configs(
        hub.fetch_listing(hub_id, "model")
    )
    return Model(
        name=hub_id,
        title=repo,
        source=repo,
        revision=commit,
        variant=_choose_variant(hub_id, configs),
        native_size=_read_native_size(configs, repo),
        licence=_read_licence(hub_id),
    )


def _read_prediction(hub_id: str) -> str | None:
    """Return `v_prediction` for a checkpoint whose header says so; fetches the header alone.

    Raises `UserError` for a file that is no SDXL checkpoint, before it is fetched.
    """
    repo, commit, name = hub.split_hub_id(hub_id)
    assert commit
    assert name
    if there := hub.find_cached_file(repo, commit, name):
        with safe_open(there, framework="pt") as opened:
            keys = set(opened.keys())
    else:
        found = hub.fetch_listing(hub_id, "model")
        name = _choose_file(found, name, ".safetensors", "model")
        tensors = hub.fetch_tensor_shapes(found, name, "model")
        _check_sdxl(tensors, found, name)
        keys = set(tensors)
    return "v_prediction" if V_PREDICTION_KEY in keys else None


def pin_base(hub_id: str) -> str:
    """Return a base model's exact name at its current commit.

    A repository without a diffusers folder is named with its one checkpoint. Raises `UserError` if
    there is none or more than one.
    """
    _, commit, name = hub.split_hub_id(hub_id)
    if commit and (name or hub.find_cached_folder(hub.split_hub_id(hub_id)[0], commit, CONFIG_PATTERNS)):
        return hub_id
    found = hub.fetch_listing(hub_id, "model")
    if name is None and "model_index.json" in found.sizes:
        return found.format_exact_name()
    return found.format_exact_name(_choose_file(found, name, ".safetensors", "model"))


def _choose_file(listing: hub.Listing, name: str | None, ending: str, field: str) -> str:
    """Return the file that is meant. Raises `UserError` if the repository does not have it."""
    there = [file for file in listing.sizes if file.endswith(ending)]
    if name is None and len(there) == 1:
        return there[0]
    if name is None:
        what = (
            f"contains {len(there)} {ending[1:]} files ({', '.join(there[:5])})"
            if there
            else f"contains no {ending[1:]} file"
        )
        raise UserError(field, f"{listing.repo} {what}; name one as {listing.repo}:file{ending}.")
    if name not in there:
        raise UserError(
            field,
            f"{listing.repo} has no {name[:60]}; it has {', '.join(there[:5]) or f'no {ending[1:]} file'}.",
        )
    return name


def _fetch_configs(listing: hub.Listing) -> Path:
    """Fetch the configs and tokenizers of a diffusers folder. Raises `UserError` if it is no SDXL.

    The weights must all be there; the U-Net's are inspected by their headers.
    """
    small = [size for name, size in listing.sizes.items() if name.endswith((".json", ".txt"))]
    if sum(small) > MAX_CONFIG_BYTES or sum(listing.sizes.values()) == 0:
        raise UserError(
            "model", f"{listing.repo}'s configs have {sum(small):,} bytes; the limit is {MAX_CONFIG_BYTES:,}."
        )
    folder = hub.fetch_folder(listing.repo, listing.commit, CONFIG_PATTERNS, "model")
    index = _read_json(folder / "model_index.json", listing.repo)
    if index.get("_class_name") != PIPELINE_CLASS:
        raise UserError(
            "model", f"{listing.repo} is a {str(index.get('_class_name'))[:60]}. Use a {PIPELINE_CLASS}."
        )
    if named := find_custom_code(folder):
        raise UserError("model", f"{listing.repo} contains code ({named}), which is never run here.")
    if said := config_limits.find_excess(folder):
        raise UserError("model", f"{listing.repo} has {said}.")
    for part, start in WEIGHT_FILES.items():
        files = [
            name
            for name in listing.sizes
            if name.startswith(f"{part}/{start}") and name.endswith(".safetensors")
        ]
        if not files:
            raise UserError("model", f"{listing.repo} has no {part}/{start}*.safetensors.")
        if part == "unet":
            for name in files:
                _check_sdxl(hub.fetch_tensor_shapes(listing, name, "model"), listing, name, is_complete=False)
    weights = sum(size for name, size in listing.sizes.items() if name.endswith(".safetensors"))
    if weights > 3 * MAX_BASE_BYTES:  # several precisions of one
        raise UserError(
            "model", f"{listing.repo} has {weights:,} bytes of weights; the limit is {3 * MAX_BASE_BYTES:,}."
        )
    return folder


def _check_sdxl(tensors: Any, listing: hub.Listing, name: str, is_complete: bool = True) -> None:
    """Raise `UserError` unless the tensors are those of a text-to-image SDXL."""
    if listing.sizes[name] > MAX_BASE_BYTES:
        raise UserError(
            "model", f"{name} has {listing.sizes[name]:,} bytes; the limit is {MAX_BASE_BYTES:,}."
        )
    if len(tensors) > config_limits.MAX_TENSORS:
        raise UserError(
            "model", f"{name} has {len(tensors):,} tensors; the limit is {config_limits.MAX_TENSORS:,}."
        )
    first = next((key for key in INPUT_CHANNELS if key in tensors), None)
    if first and tensors[first].shape[1] != INPUT_CHANNELS[first]:
        raise UserError(
            "model",
            f"{name} takes {tensors[first].shape[1]} channels, like an inpainting model. "
            f"Use one with {INPUT_CHANNELS[first]}.",
        )
    if is_complete and not (first and any(key.startswith("conditioner.embedders.1.") for key in tensors)):
        raise UserError("model", f"{listing.repo}'s {name} is not a complete SDXL checkpoint.")


def _choose_variant(hub_id: str, configs: Path) -> str | None:
    """Return `fp16` if the machine would convert to it anyway and the repository has all of it."""
    _, commit, _ = hub.split_hub_id(hub_id)
    assert commit
    half = [f"{part}/{start}.fp16.safetensors" for part, start in WEIGHT_FILES.items()]
    full = [f"{part}/{start}.safetensors" for part, start in WEIGHT_FILES.items()]
    if all((configs / name).exists() for name in full):
        return None
    if all((configs / name).exists() for name in half):
        return "fp16"
    sizes = hub.fetch_listing(hub_id, "model").sizes
    # The CPU computes in float32.
    either = all(name in sizes for name in full) and detect_machine().device == "cpu"
    return "fp16" if all(name in sizes for name in half) and not either else None


def _read_native_size(configs: Path, repo: str) -> int:
    """Return the side in pixels of the pictures that the model was trained on.

    That is the U-Net's sample size times the VAE's 8.
    """
    size = _read_json(configs / "unet/config.json", repo).get("sample_size", 128)
    return 8 * size if isinstance(size, int) and 8 <= size <= 256 else 1024


def _read_licence(hub_id: str) -> str:
    """Return the licence that the card names; `unknown` if it names none or cannot be fetched."""
    try:
        return hub.fetch_listing(hub_id, "model").licence or "unknown"
    except UserError:
        return "unknown"


def _read_json(file: Path, repo: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError("model", f"{repo} has no readable {file.parent.name}/{file.name}.") from error
    if not isinstance(found, dict):
        raise UserError("model", f"{repo}'s {file.parent.name}/{file.name} is not a table.")
    return found
