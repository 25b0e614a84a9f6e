"""Read a LoRA file's header and check it before anything is loaded.

Formats: kohya (`lora_unet_`, `lora_te1_`, `lora_te2_` with SAI or diffusers block names, LoCon's
convolutions), LyCORIS' kinds in that layout, diffusers and PEFT (dotted names; alpha in
`lora_adapter_metadata`, or in the `adapter_config.json` beside the file), and ComfyUI
(`diffusion_model.`, `text_encoders.`).
"""

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from core.lora.keys import GAIN_FLAG, SCALED_FLAG, LoraModule, parse_modules
from core.lora.rotation import NEUMANN_TERMS
from core.schema.bounds import FORBIDDEN_CHARACTERS
from core.schema.errors import UserError
from core.system.memory import is_out_of_memory, translate_out_of_memory
from core.system.tensor_files import FileIdentity, identify_file

MAX_FILE_BYTES = 2 * 2**30  # bytes
MAX_METADATA_LENGTH = 2_000_000  # characters of one value; a longer one is ignored
MAX_HEADER_BYTES = 16_000_000  # bytes; safetensors allows 100 MB, but headers are kept in memory

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
UNSUPPORTED_KINDS = {
    ".lambda_layer": "a T-LoRA, whose rank changes with the step",
    ".boft_R": "PEFT's BOFT",
    ".ia3_l": "PEFT's IA3",
}
BUNDLE_PREFIX = "bundle_emb."
"""How the names of embeddings begin that a LoRA brings along: `bundle_emb.WORD.clip_l`."""
EMBEDDING_PARTS = ("clip_g", "clip_l")
MAX_EMBEDDINGS = 64
MAX_WORD_LENGTH = 100  # characters of an embedding's name
ADAPTER_CONFIG = "adapter_config.json"
"""Where PEFT's `save_pretrained` writes alpha, in the folder of `adapter_model.safetensors`."""
MAX_ADAPTER_CONFIG_BYTES = 1_000_000
PEFT_KEY = re.compile(r"\.(lora_[AB]|oft_R)\.")
"""In a key of any layout that takes its settings from PEFT, unless it has an alpha of its own."""
FAMILY_BY_WIDTH = {2048: "SDXL", 768: "SD 1.5", 1024: "SD 2", 160: "nano"}
"""Width of the text embeddings that attn2's keys read -> family of base models."""
OTHER_ARCHITECTURES = {
    "double_blocks": "Flux",
    "single_blocks": "Flux",
    "single_transformer_blocks": "Flux",
    "joint_blocks": "SD 3",
    "diffusion_model.blocks": "Wan",
}


LoraState = tuple[FileIdentity, ...]
"""The identity of a file, and of PEFT's settings beside it."""


def identify_lora(path: Path) -> LoraState:
    """Return what tells one state of a LoRA from all others."""
    config = find_adapter_config(path)
    return (identify_file(path), *([identify_file(config)] if config else []))


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """The contents of a LoRA file. Its tensors are only read by `load_tensors`."""

    path: Path
    format: str
    """`kohya`, `diffusers`, `PEFT` or `ComfyUI`."""
    modules: tuple[LoraModule, ...]
    notes: tuple[str, ...] = ()
    """What a person should know of its alphas and its law of strength, each a sentence."""
    embeddings: tuple[str, ...] = ()
    """Words of the embeddings that it brings along (`core.prompts.embeddings`)."""
    base: str = ""
    """The model that PEFT's settings name as its base: a Hub id or a path; empty without them."""
    metadata: Mapping[str, str] = field(repr=False)
    state: LoraState = field(repr=False)
    """What `identify_lora` told when the file was read and checked."""

    @property
    def family(self) -> str:
        """The family of base models that it is made for, by the text width that its keys read.

        `unknown` if the file changes no such layer, or layers of several widths.
        """
        widths = {
            module.shape[1]
            for module in self.modules
            if module.component == "unet" and re.search(r"attn2_to_[kv]$", module.name) and module.shape[1]
        }
        return FAMILY_BY_WIDTH.get(widths.pop(), "unknown") if len(widths) == 1 else "unknown"

    @property
    def kind(self) -> str:
        """The kinds of its modules (`LoraModule.kind`), the most common first, joined by `and`."""
        return " and ".join(kind for kind, _ in Counter(module.kind for module in self.modules).most_common())

    @property
    def rank(self) -> int:
        """The most common rank among the modules that have one; 0 if none has."""
        ranks = Counter(module.rank for module in self.modules if module.has_alpha)
        return ranks.most_common(1)[0][0] if ranks else 0

    @property
    def scale(self) -> float:
        """The most common alpha / rank among the modules that have one; 1 if none has."""
        scales = Counter(module.scale for module in self.modules if module.has_alpha)
        return scales.most_common(1)[0][0] if scales else 1.0

    @property
    def components(self) -> tuple[str, ...]:
        """The components that the file changes: `unet`, `text_encoder`, `text_encoder_2`."""
        return tuple(name for name in COMPONENTS if any(module.component == name for module in self.modules))

    @property
    def embedding_keys(self) -> tuple[str, ...]:
        """The names of its embeddings' tensors."""
        return tuple(f"{BUNDLE_PREFIX}{word}.{part}" for word in self.embeddings for part in EMBEDDING_PARTS)

    @property
    def trigger(self) -> str | None:
        """The trigger words: modelspec's, else the folder name that kohya trained from."""
        if said := self.metadata.get("modelspec.trigger_phrase"):
            return _clean_text(said, 1000)
        folders = _parse_json_object(self.metadata.get("ss_dataset_dirs"))
        names = [name.partition("_")[2] for name in folders if name.partition("_")[0].isdigit()]
        return _clean_text(names[0]) if names else None

    @property
    def tags(self) -> dict[str, int]:
        """How often each tag occurs in the training captions, the most frequent first."""
        counts: Counter[str] = Counter()
        for folder in _parse_json_object(self.metadata.get("ss_tag_frequency")).values():
            if isinstance(folder, dict):
                counts.update(
                    {_clean_text(tag): n for tag, n in folder.items() if isinstance(n, int) and 0 < n < 10**9}
                )
        return {tag: n for tag, n in counts.most_common() if tag}

    def load_tensors(self) -> dict[str, torch.Tensor]:
        """Read all matrices and embeddings in the precision of the file.

        They are read again on every call, so that nothing large stays in memory.
        Raises `UserError` if the file changed since it was checked, and if memory runs out.
        """
        name = self.path.name
        with translate_out_of_memory(
            "lora", f"{name} does not fit into this machine's memory; use one of a lower rank."
        ):
            try:
                with safe_open(self.path, framework="pt") as file:
                    tensors = {
                        key: widen_float8(file.get_tensor(key))
                        for key in (
                            *(key for module in self.modules for key in module.keys.values()),
                            *self.embedding_keys,
                        )
                    }
                if identify_lora(self.path) == self.state:
                    return tensors
            except (SafetensorError, OSError) as error:
                if is_out_of_memory(error):
                    raise
        raise UserError("lora", f"{name} was changed or removed while it was in use; choose it again.")


def read_lora_file(path: Path) -> LoraFile:
    """Read and check a LoRA file.

    Raises `UserError` with the reason if the file cannot be used, before any model is touched.
    """
    name = path.name
    with translate_out_of_memory(
        "lora", f"{name} does not fit into this machine's memory; use one of a lower rank."
    ):
        found = _parse_header(path, name)
        _check_values(found, name)
        if identify_lora(path) != found.state:
            raise UserError("lora", f"{name} was changed while it was read; choose it again.")
        return found


def read_lora_header(path: Path) -> LoraFile:
    """Read and check a LoRA file's header, and of its tensors only alphas: what a list needs to say of it.

    Raises `UserError` as `read_lora_file` does, except for what is wrong in the matrices.
    """
    return _parse_header(path, path.name)


def _parse_header(path: Path, name: str) -> LoraFile:
    _check_header_length(path, name)
    state = identify_lora(path)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
            scalars = {
                key: file.get_tensor(key)
                for key in shapes
                if key.endswith((".alpha", GAIN_FLAG, SCALED_FLAG)) and math.prod(shapes[key]) == 1
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            "lora", f"{name} is not a complete safetensors file ({type(error).__name__})."
        ) from error
    embeddings = _find_embeddings([key for key in shapes if key.startswith(BUNDLE_PREFIX)], name)
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith(BUNDLE_PREFIX)}
    check_lora_kind(shapes, name)
    if strange := next((key for key, value in scalars.items() if value.is_complex()), None):
        raise UserError("lora", f"{name}: {strange[:80]!r} is a complex number.")
    adapter = _parse_json_object(metadata.get("lora_adapter_metadata"))
    if not adapter and any(key.startswith("base_model.") or PEFT_KEY.search(key) for key in shapes):
        adapter = _read_adapter_config(path)
    changes = tuple(parse_modules(shapes, scalars, adapter, name))
    if not changes and set(EMBEDDING_PARTS) <= shapes.keys():
        raise UserError("lora", f"{name} is an embedding (textual inversion). Put it into models/embeddings.")
    if not changes:
        raise UserError(
            "lora", f"{name} contains no known LoRA format. Use kohya's, diffusers' or PEFT's for SDXL."
        )
    if unread := shapes.keys() - {key for module in changes for key in _list_keys(module)}:
        raise UserError(
            "lora",
            f"{name} contains {min(unread)[:80]!r}, which is not supported; without it, it would be a "
            "different LoRA.",
        )
    layout = _find_layout(changes[0].stem)
    notes = _describe_strength(changes, scalars, layout == "PEFT" and not adapter)
    if embeddings:
        notes += (f"It brings embeddings, which work by their words: {', '.join(embeddings)}.",)
    found = LoraFile(
        path=path,
        format=layout,
        modules=changes,
        notes=notes,
        embeddings=embeddings,
        base=str(adapter.get("base_model_name_or_path") or ""),
        metadata=metadata,
        state=state,
    )
    if found.family in ("SD 1.5", "SD 2"):
        raise UserError("lora", f"{name} is made for {found.family}. Use a LoRA for SDXL.")
    return found


def _list_keys(module: LoraModule) -> Iterator[str]:
    """Yield the keys that are read for a module, whether or not the file has all of them."""
    yield from module.keys.values()
    yield f"{module.stem}.alpha"
    if "gain" in module.keys:
        yield f"{module.stem}{GAIN_FLAG}"
    if module.input_turn is not None and not module.input_turn.is_peft:
        yield f"{module.stem}{SCALED_FLAG}"


def _find_embeddings(keys: Sequence[str], name: str) -> tuple[str, ...]:
    """Return the words of the embeddings that a file brings along, by the names of their tensors.

    Raises `UserError` for one that is not made for both of SDXL's text encoders.
    """
    parts = [key.removeprefix(BUNDLE_PREFIX).rpartition(".") for key in keys]
    words = dict.fromkeys(word for word, _, _ in parts)
    if len(words) > MAX_EMBEDDINGS:
        raise UserError("lora", f"{name} has {len(words):,} embeddings; the limit is {MAX_EMBEDDINGS}.")
    for word in words:
        if not word or word != _clean_text(word, MAX_WORD_LENGTH + 1) or len(word) > MAX_WORD_LENGTH:
            raise UserError("lora", f"{name} has an embedding whose name is not valid: {word[:60]!r}.")
        if (own := sorted(part for each, _, part in parts if each == word)) != list(EMBEDDING_PARTS):
            raise UserError(
                "lora",
                f"{name} has the embedding {word[:60]!r} with {own[0][:40]!r}, which is not for SDXL. "
                "Use one with clip_l and clip_g.",
            )
    return tuple(words)


def _find_layout(stem: str) -> str:
    """Return whose layout a file has, by the beginning of a module's keys."""
    if stem.startswith(("lora_", "lycoris_", "oft_")):
        return "kohya"
    if stem.startswith("base_model."):
        return "PEFT"
    return "ComfyUI" if "diffusion_model." in stem or stem.startswith("text_encoders.") else "diffusers"


def find_adapter_config(path: Path) -> Path | None:
    """Return the `adapter_config.json` of a file's folder or of the one above it.

    `None` without one, and where nobody knows whose it is: among several LoRAs it belongs to
    `adapter_model`, PEFT's own name for its file.
    """
    for folder in (path.parent, path.parent.parent):
        config = folder / ADAPTER_CONFIG
        if config.is_file() and (
            path == folder / "adapter_model.safetensors"
            or not any(file != path for file in folder.glob("*.safetensors"))
        ):
            return config
    return None


def _read_adapter_config(path: Path) -> dict[str, Any]:
    """Return PEFT's settings of a file; empty without any."""
    if (config := find_adapter_config(path)) is None:
        return {}
    with config.open("rb") as opened:
        text = opened.read(MAX_ADAPTER_CONFIG_BYTES + 1)
    if len(text) > MAX_ADAPTER_CONFIG_BYTES:
        raise UserError("lora", f"{config.name} beside {path.name} is too long.")
    return _parse_json_object(text.decode("utf-8", errors="replace"))


def _describe_strength(
    modules: Sequence[LoraModule], alphas: Mapping[str, torch.Tensor], unknown: bool
) -> tuple[str, ...]:
    """Return what a person should know of a file's alphas and its law of strength, each a sentence.

    `unknown` is whether PEFT's settings should stand in an `adapter_config.json` that is not there.
    """
    zero = sum(
        module.has_alpha and f"{module.stem}.alpha" in alphas and float(alphas[f"{module.stem}.alpha"]) == 0
        for module in modules
    )
    negative = sum(module.alpha < 0 for module in modules)
    idle = sum(
        not module.has_alpha and f"{module.stem}.alpha" in alphas and "limit" not in module.keys
        for module in modules
    )
    said = {
        f"alpha is 0 in {zero} layers; the rank is taken for it, as in kohya's and LyCORIS' code.": zero,
        f"alpha is negative in {negative} layers, which work against their training.": negative,
        f"alpha stands beside {idle} layers whose kind has none, and changes nothing there.": idle,
        "alpha stands in an adapter_config.json that is not beside the file; alpha = rank is taken, so the "
        "strength may be off by a factor.": unknown and any(module.has_alpha for module in modules),
        "How the turns are made stands in an adapter_config.json that is not beside the file; PEFT's series "
        f"of {NEUMANN_TERMS} terms is taken.": unknown and any(module.input_turn for module in modules),
        "A BOFT's change is not in proportion to its strength: each of its factors is.": any(
            module.kind == "BOFT" for module in modules
        ),
        "An OFT with rescale is LyCORIS' at strength 1; at strength s it is W + s (V - W), so that 0 is the "
        "base, where LyCORIS keeps the rescale on.": any("rescale" in module.keys for module in modules),
    }
    return tuple(sentence for sentence, applies in said.items() if applies)


def widen_float8(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of 8-bit floats in float16, which holds each of their values; others as they are."""
    return tensor.half() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def check_lora_kind(keys: Iterable[str], name: str) -> None:
    """Check by the tensors' names alone that they belong to a supported kind of LoRA.

    Raises `UserError` for another kind of file; `where` begins its sentence.
    """
    for key in keys:
        for mark, kind in {**UNSUPPORTED_KINDS, **OTHER_ARCHITECTURES}.items():
            if mark in key:
                raise UserError(
                    "lora",
                    f"{name} is {'made for ' + kind if mark in OTHER_ARCHITECTURES else kind}. "
                    "Use LoRA, LoCon, LoHa, LoKr, DoRA, GLoRA, OFT, BOFT, IA3 or a full difference.",
                )


def _check_header_length(path: Path, name: str) -> None:
    """Check the header's length against the file's, before anything allocates that many bytes."""
    if not path.is_file():
        raise UserError("lora", f"{name} does not exist.")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UserError("lora", f"{name} has {size:,} bytes; the limit for a LoRA is {MAX_FILE_BYTES:,}.")
    with path.open("rb") as file:
        start = file.read(8)
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= header <= min(size - 8, MAX_HEADER_BYTES):
        if start[:2] in (b"\x80\x02", b"\x80\x04", b"PK"):  # a valid length may begin so, too
            raise UserError("lora", f"{name} is a pickle, which can contain code. Use safetensors.")
        raise UserError(
            "lora",
            f"{name} is not a complete safetensors file: its header would be {header:,} bytes long, "
            f"the file has {size:,}.",
        )


def _check_values(lora_file: LoraFile, name: str) -> None:
    """Check that all values are finite and that the file changes something.

    Only one tensor at a time is in memory.
    """
    filled: set[str] = set()
    matrices = [key for module in lora_file.modules for key in module.keys.values()]
    with safe_open(lora_file.path, framework="pt") as file:
        for key in (*matrices, *lora_file.embedding_keys):
            tensor = widen_float8(file.get_tensor(key))
            if tensor.is_complex():
                raise UserError("lora", f"{name}: {key[:80]!r} has complex numbers, which no layer has.")
            if not torch.isfinite(tensor).all():
                raise UserError(
                    "lora", f"{name}: {key[:80]!r} contains NaN or infinite numbers; the file is broken."
                )
            filled |= {key} if bool(tensor.any()) else set()
    if not any(_can_act(module, filled) for module in lora_file.modules):
        raise UserError(
            "lora", f"{name} changes nothing: in every layer a matrix is all zeros, as before training."
        )


def _can_act(module: LoraModule, filled: Collection[str]) -> bool:
    """Return whether a module changes its layer, by the keys that are not all zeros.

    What magnitudes change can only be told with a model.
    """
    alone = {"diff_b", "w_norm", "b_norm"} & module.keys.keys()
    rest = module.keys.keys() - alone - {"limit"}
    factors = [rest & {"b1", "b2", "bm"}, rest & {"a1", "a2"}] if "b1" in rest else [rest]
    summands = [*({part} for part in alone), *factors]
    return bool({"magnitude", "rescale"} & rest) or any(
        bool(parts) and all(module.keys[part] in filled for part in parts) for parts in summands
    )


def _clean_text(text: object, max_length: int = 60) -> str:
    """Return metadata text as it may be shown: short, on one line, without forbidden characters."""
    return " ".join(FORBIDDEN_CHARACTERS.sub("", str(text)[:max_length]).split())


def _parse_json_object(text: str | None) -> dict[str, Any]:
    """Parse a metadata value as a JSON object; return an empty one if it is anything else."""
    if text and len(text) > MAX_METADATA_LENGTH:
        return {}
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
