"""Resolves what a person names by its Hub id: a LoRA, an upscaler, a detector, a base model.

Each is inspected before it is fetched.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors import safe_open

from core.hub import client as hub
from core.hub.names import PICKLES, HubName, read_hub_name
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
    asked = read_hub_name(hub_id)
    if asked.commit and asked.file and (there := hub.find_cached_file(asked.repo, asked.commit, asked.file)):
        hub.record_origin(there, asked.format())
        return there
    found = hub.fetch_listing(asked, "lora")
    name = _choose_file(found, asked.file, ".safetensors", "lora")
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
    found, left = hub.fetch_listing(read_hub_name(hub_id), "references"), MAX_GALLERY_BYTES
    files: list[Path] = []
    for name in [name for name in found.gallery if name.lower().endswith(IMAGE_SUFFIXES)]:
        left -= found.sizes[name]
        if left >= 0 and len(files) < limits.REFERENCES:
            files.append(hub.fetch_file(found, name, "references"))
    return files


def pin_tool(kind: str, hub_id: str) -> str:
    """Return the exact name, with its commit, of a tool that a person names. Raises `UserError`."""
    asked = read_hub_name(hub_id)
    if asked.commit and asked.file:
        return asked.format()
    found = hub.fetch_listing(asked, kind)
    return found.format_exact_name(_choose_file(found, asked.file, TOOL_SUFFIXES[kind], kind))


def fetch_hub_tool(kind: str, hub_id: str) -> Path:
    """Return a tool's file by its exact name, fetching it if needed.

    Raises `UserError` for a name that is not exact, and for a file that is missing or too large.
    """
    asked = read_hub_name(hub_id)
    name = asked.file
    if kind not in TOOL_SUFFIXES or not asked.commit or not name or not name.endswith(TOOL_SUFFIXES[kind]):
        raise UserError(
            kind, f"{hub_id[:60]!r} is not valid. Use owner/name:file{TOOL_SUFFIXES.get(kind, '')}."
        )
    if there := hub.find_cached_file(asked.repo, asked.commit, name):
        return there
    found = hub.fetch_listing(asked, kind)
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
    asked = read_hub_name(hub_id)
    repo, commit, name = asked.repo, asked.commit, asked.file
    assert commit
    licence, link = _read_licence(asked)
    if name:
        return Model(
            name=hub_id,
            title=f"{repo}:{name}",
            source=repo,
            revision=commit,
            file=name,
            prediction_type=_read_prediction(asked),
            licence=licence,
            licence_link=link,
        )
    configs = hub.find_cached_folder(repo, commit, CONFIG_PATTERNS) or _fetch_configs(
        hub.fetch_listing(asked, "model")
    )
    return Model(
        name=hub_id,
        title=repo,
        source=repo,
        revision=commit,
        variant=_choose_variant(asked, configs),
        native_size=_read_native_size(configs, repo),
        licence=licence,
        licence_link=link,
    )


def _read_prediction(asked: HubName) -> str | None:
    """Return `v_prediction` for a checkpoint whose header says so; fetches the header alone.

    Raises `UserError` for a file that is no SDXL checkpoint, before it is fetched.
    """
    assert asked.commit
    assert asked.file
    if there := hub.find_cached_file(asked.repo, asked.commit, asked.file):
        with safe_open(there, framework="pt") as opened:
            keys = set(opened.keys())
    else:
        found = hub.fetch_listing(asked, "model")
        name = _choose_file(found, asked.file, ".safetensors", "model")
        tensors = hub.fetch_tensor_shapes(found, name, "model")
        _check_sdxl(tensors, found, name)
        keys = set(tensors)
    return "v_prediction" if V_PREDICTION_KEY in keys else None


def pin_base(hub_id: str) -> str:
    """Return a base model's exact name at its current commit.

    A repository without a diffusers folder is named with its one checkpoint. Raises `UserError` if
    there is none or more than one.
    """
    asked = read_hub_name(hub_id)
    if asked.commit and (asked.file or hub.find_cached_folder(asked.repo, asked.commit, CONFIG_PATTERNS)):
        return asked.format()
    found = hub.fetch_listing(asked, "model")
    if asked.file is None and "model_index.json" in found.sizes:
        return found.format_exact_name()
    return found.format_exact_name(_choose_file(found, asked.file, ".safetensors", "model"))


def _choose_file(listing: hub.Listing, name: str | None, ending: str, field: str) -> str:
    """Return the file that is meant. Raises `UserError` if the repository does not have it."""
    there = [file for file in listing.sizes if file.endswith(ending)]
    if name is None:
        likely = _list_likely_loras(there) if field == "lora" else there
        if len(likely) == 1:
            return likely[0]
    elif name in there:
        return name
    elif name in listing.sizes:
        raise UserError(field, f"{name[:60]} cannot be opened here. Use a {ending} file.")
    if not there:
        pickles = [file for file in listing.sizes if file.endswith(PICKLES)]
        why = f", only pickles ({', '.join(pickles[:5])}), which can run code" if pickles else ""
        raise UserError(field, f"{listing.repo} contains no {ending} file{why}.")
    shown = ", ".join(there[:5]) + (" …" if len(there) > 5 else "")
    if name is None:
        raise UserError(
            field,
            f"{listing.repo} contains {len(there)} {ending} files ({shown}); "
            f"name one as {listing.repo}:file{ending}.",
        )
    raise UserError(field, f"{listing.repo} has no {name[:60]}; it has {shown}.")


def _list_likely_loras(files: Sequence[str]) -> Sequence[str]:
    """Return the files that a repository's name may mean, as diffusers' `load_lora_weights` guesses them.

    Not meant are states of an optimizer or a scheduler, checkpoints of a run, and embeddings that belong to
    a LoRA. Of the rest, what lies in no folder comes first, and there diffusers' own name.
    """
    likely = [
        file
        for file in files
        if not re.search(r"optimizer|scheduler|checkpoint", file)
        and not PurePosixPath(file).stem.endswith("_emb")
    ]
    in_root = [file for file in likely if "/" not in file]
    named = [file for file in in_root or likely if PurePosixPath(file).name == LORA_WEIGHT_NAME_SAFE]
    return named or in_root or likely or files


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
    hub.keep_revision(listing)
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


def _choose_variant(asked: HubName, configs: Path) -> str | None:
    """Return `fp16` if the machine would convert to it anyway and the repository has all of it."""
    half = [f"{part}/{start}.fp16.safetensors" for part, start in WEIGHT_FILES.items()]
    full = [f"{part}/{start}.safetensors" for part, start in WEIGHT_FILES.items()]
    if all((configs / name).exists() for name in full):
        return None
    if all((configs / name).exists() for name in half):
        return "fp16"
    sizes = hub.fetch_listing(asked, "model").sizes
    # The CPU computes in float32.
    either = all(name in sizes for name in full) and detect_machine().device == "cpu"
    return "fp16" if all(name in sizes for name in half) and not either else None


def _read_native_size(configs: Path, repo: str) -> int:
    """Return the side in pixels of the pictures that the model was trained on.

    That is the U-Net's sample size times the VAE's 8.
    """
    size = _read_json(configs / "unet/config.json", repo).get("sample_size", 128)
    return 8 * size if isinstance(size, int) and 8 <= size <= 256 else 1024


def _read_licence(asked: HubName) -> tuple[str, str | None]:
    """Return the licence that the card names, and where it stands; `unknown` if it names none, or offline."""
    try:
        found = hub.fetch_listing(asked, "model")
    except UserError:
        return "unknown", None
    return found.licence or "unknown", found.licence_link


def _read_json(file: Path, repo: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError("model", f"{repo} has no readable {file.parent.name}/{file.name}.") from error
    if not isinstance(found, dict):
        raise UserError("model", f"{repo}'s {file.parent.name}/{file.name} is not a table.")
    return found
