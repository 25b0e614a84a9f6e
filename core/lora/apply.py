"""Apply LoRAs to a model at any strength, change the strength in place, and restore the weights.

W0 + strength * delta (`layer_delta` has the kinds) overwrites the layer's weight, computed from a
pristine copy of W0. So it is exact at every strength, costs nothing in a denoising step, and does
not drift however often it changes. Where each sample of a batch has a strength of its own, the
weight stays W0 and the delta is added to the layer's output.
"""

import os
import threading
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import StableDiffusionXLPipeline
from torch.utils.hooks import RemovableHandle

from core.lora import file as lora_file
from core.lora.blocks import BLOCKS, find_block, parse_block_weights
from core.lora.file import COMPONENTS, LoraFile, LoraState, identify_lora
from core.lora.keys import LoraModule
from core.lora.layer_delta import Layer, LayerDelta, make_delta_hook
from core.schema.errors import UserError
from core.schema.types import LoraUse
from core.system.concurrency import BoundedDict
from core.system.tensor_files import is_settled

DELTA_CACHE_BYTES = 2**28  # bytes of matrices kept in memory, of the most recently used files
FILE_CACHE_SIZE = 32  # files, more than a study has rows; only headers are kept, no tensors
_read_lock = threading.Lock()
# ZeroGPU may fork a process at any time, also while a file is read. The fork must not wait for a
# thread that it does not have.
os.register_at_fork(
    before=_read_lock.acquire, after_in_parent=_read_lock.release, after_in_child=_read_lock.release
)


_cached_files: BoundedDict[LoraState, LoraFile] = BoundedDict(FILE_CACHE_SIZE)


def get_lora_file(path: str) -> LoraFile:
    """Return the LoRA of a path, cached until the file or PEFT's settings beside it change.

    Raises `UserError` if the file does not exist or cannot be used as a LoRA.
    """
    try:
        state = identify_lora(Path(path))
    except OSError as error:
        raise UserError("lora", f"{Path(path).name} does not exist.") from error
    if known := _cached_files.get(state):
        return known  # without waiting for another visitor's large file
    with _read_lock:  # only one file at a time in memory, however many visitors ask
        if (known := _cached_files.get(state)) is None:
            known = lora_file.read_lora_file(Path(path))
            if all(map(is_settled, known.state)):
                _cached_files[known.state] = known
        return known


class AppliedLoras:
    """The layers of a pipeline that LoRAs change, with pristine copies of their weights."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, files: Sequence[LoraFile]):
        self.deltas: dict[Layer, list[tuple[int, LoraModule, LayerDelta]]] = {}
        self.hooks: list[RemovableHandle] = []
        for number, found in enumerate(files):
            for module, layer, change in _get_deltas(pipeline, found):
                self.deltas.setdefault(layer, []).append((number, module, change))
        self.pristine = {layer: layer.weight.detach().clone() for layer in self.deltas}
        self.pristine_biases = {
            layer: layer.bias.detach().clone()
            for layer, changes in self.deltas.items()
            if layer.bias is not None and any(change.bias is not None for _, _, change in changes)
        }
        self.applied: Sequence[Sequence[LoraUse]] | None = None
        """The strengths that are set; `None` while they are unknown."""

    @property
    def cost_key(self) -> Hashable:
        """The kind, rank, block and shape of every change, on which the time of a step depends."""
        return tuple(
            sorted(
                (module.kind, module.rank, module.block_size, module.shape)
                for changes in self.deltas.values()
                for _, module, _ in changes
            )
        )

    @property
    def has_text_encoder_deltas(self) -> bool:
        """Whether a text encoder changes, so that a prompt's embeddings depend on the strength."""
        return any(module.component != "unet" for changes in self.deltas.values() for _, module, _ in changes)

    @torch.no_grad()
    def set_strengths(self, samples: Sequence[Sequence[LoraUse]]) -> None:
        """Set the strengths: for each sample of a batch, one use per file in the files' order.

        If all samples have the same strengths, they are written into the weights.
        Raises `ValueError` if the samples' strengths differ on a text encoder.
        """
        if samples == self.applied:
            return
        self._remove_hooks()
        self.applied, uses = None, samples[0]
        if any(sample != uses for sample in samples):
            if self.has_text_encoder_deltas:
                raise ValueError("a text encoder has one strength for all samples")
            self._add_hooks(samples)
        else:
            self._write_weights(uses)
        self.applied = samples

    def _write_weights(self, uses: Sequence[LoraUse]) -> None:
        """Write the strengths, which are the same for all samples, into the weights."""
        factors = [_make_factor(use) for use in uses]
        for layer, changes in self.deltas.items():
            weight, pristine = layer.weight, self.pristine[layer]
            weight.copy_(pristine)
            flat = weight.reshape(len(weight), -1)
            for number, module, change in changes:
                if strength := factors[number](module):
                    change.add_to(flat, pristine, strength)
            if flat.data_ptr() != weight.data_ptr():  # channels last: `flat` is a copy
                weight.copy_(flat.view(weight.shape))
            if (pristine := self.pristine_biases.get(layer)) is not None and layer.bias is not None:
                layer.bias.copy_(pristine)
                for number, module, change in changes:
                    if change.bias is not None:
                        layer.bias.add_(change.bias, alpha=factors[number](module))

    def _add_hooks(self, samples: Sequence[Sequence[LoraUse]]) -> None:
        """Restore the weights and hook each layer to add the delta at each sample's strength."""
        factors = [[_make_factor(use) for use in sample] for sample in samples]
        self._copy_pristine()
        for layer, changes in self.deltas.items():
            strengths = [
                (change, torch.tensor([sample[number](module) for sample in factors]))
                for number, module, change in changes
            ]
            if worn := [(change, each) for change, each in strengths if each.any()]:
                self.hooks.append(layer.register_forward_hook(make_delta_hook(layer, worn)))

    def _remove_hooks(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    @torch.no_grad()
    def restore_weights(self) -> None:
        """Restore the pristine weight of every layer and remove all hooks."""
        self.applied = None
        self._remove_hooks()
        self._copy_pristine()

    def _copy_pristine(self) -> None:
        for layer, pristine in self.pristine.items():
            layer.weight.copy_(pristine)
        for layer, pristine in self.pristine_biases.items():
            assert layer.bias is not None
            layer.bias.copy_(pristine)


@contextmanager
def apply_loras(pipeline: StableDiffusionXLPipeline, uses: Sequence[LoraUse]) -> Iterator[AppliedLoras]:
    """Apply LoRAs to the pipeline for the duration of a `with` block, then restore its weights.

    The weights are restored whatever happens. Raises `UserError`, before anything is changed, for a
    file that cannot be used or does not fit the model.
    """
    made = AppliedLoras(pipeline, [get_lora_file(use.path) for use in uses])
    try:
        made.set_strengths([uses])
        yield made
    finally:
        made.restore_weights()


def match_layers(pipeline: StableDiffusionXLPipeline, lora_file: LoraFile) -> list[tuple[LoraModule, Layer]]:
    """Pair each module of a file with the model's layer that it changes.

    Raises `UserError` if a module has no layer in the model, or one of another shape.
    """
    layers = {component: _find_layers(getattr(pipeline, component)) for component in COMPONENTS}
    pairs = []
    for module in lora_file.modules:
        layer = layers[module.component].get(module.name)
        if layer is None:
            raise UserError(
                "lora",
                f"{lora_file.path.name} changes {module.name[:80]!r}, which this model does not have; "
                f"it is made for {lora_file.family}.",
            )
        own = tuple(layer.weight.shape)
        has_bias = bool({"diff_b", "b_norm"} & module.keys.keys())
        if not module.can_change(own) or (has_bias and layer.bias is None):
            raise UserError(
                "lora",
                f"{lora_file.path.name} does not fit this model: {module.name[:80]!r} is {own} here "
                f"and {(*module.shape, *module.kernel)} there; it is made for {lora_file.family}.",
            )
        pairs.append((module, layer))
    return pairs


LayerDeltas = list[tuple[LoraModule, Layer, LayerDelta]]
# By the U-Net, and dropped with it.
_cached_deltas: WeakKeyDictionary[torch.nn.Module, dict[LoraState, LayerDeltas]] = WeakKeyDictionary()


def _get_deltas(pipeline: StableDiffusionXLPipeline, lora_file: LoraFile) -> LayerDeltas:
    """Return each module of a file with its layer and its delta.

    All shapes are checked before a tensor is read. The deltas are cached from job to job up to
    `DELTA_CACHE_BYTES`, but not on a GPU, whose memory the pictures need. On torch's thread only.
    """
    ready = _cached_deltas.setdefault(pipeline.unet, {})
    if (changes := ready.pop(lora_file.state, None)) is None:
        pairs, tensors, changes = match_layers(pipeline, lora_file), lora_file.load_tensors(), []
        for module, layer in pairs:
            parts = {part: tensors[key] for part, key in module.keys.items()}
            changes.append(
                (
                    module,
                    layer,
                    LayerDelta(
                        layer,
                        parts,
                        module.scale,
                        module.magnitudes and module.magnitudes[1],
                        module.input_turn,
                    ),
                )
            )
    if pipeline.unet.device.type == "cpu":
        ready[lora_file.state] = changes  # now the most recently used
        left = DELTA_CACHE_BYTES
        for state, each in reversed([*ready.items()]):
            left -= sum(change.nbytes for _, _, change in each)
            if left < 0:
                del ready[state]
    return changes


def measure_norms(pipeline: StableDiffusionXLPipeline, lora_file: LoraFile) -> dict[str, float]:
    """Return the size of the change at strength 1 relative to the weights it changes, by block.

    The size is |dW| / |W| in Frobenius norms.
    """
    changed: dict[str, float] = {}
    whole: dict[str, float] = {}
    for module, layer, change in _get_deltas(pipeline, lora_file):
        block, weight = _get_module_block(module) or "other", layer.weight.detach()
        changed[block] = changed.get(block, 0.0) + change.norm(weight) ** 2
        whole[block] = whole.get(block, 0.0) + float(weight.float().square().sum())
    return {block: (changed[block] / whole[block]) ** 0.5 for block in changed}


def describe_lora_file(
    lora_file: LoraFile,
    pipeline: StableDiffusionXLPipeline | None,
    unavailable_reason: str = "A job is using the model",
) -> dict[str, Any]:
    """Describe a file as plain data: what it stores, and how large its change is.

    The change is measured relative to the weights of `pipeline`, if the file fits that model. Pass
    `None` for a model that is not available now, and the reason as `unavailable_reason`.

    A value that the file does not store, or that could not be measured, is `None`; `why` says what
    was not measured and why.
    """
    counts = Counter(_get_module_block(module) or "other" for module in lora_file.modules)
    try:
        told, unavailable_reason = (
            (measure_norms(pipeline, lora_file), "")
            if pipeline
            else (None, f"{unavailable_reason}, so the size of the change was not measured.")
        )
    except UserError as error:
        told, unavailable_reason = None, str(error)
    said = lora_file.metadata
    return {
        "format": lora_file.format,
        "kind": lora_file.kind,
        "family": lora_file.family,
        "rank": lora_file.rank,
        "alpha": lora_file.rank * lora_file.scale,
        "scale": lora_file.scale,
        "modules": len(lora_file.modules),
        "text_encoders": [name for name in lora_file.components if name != "unet"],
        "trigger": lora_file.trigger,
        "tags": dict(list(lora_file.tags.items())[:50]),
        "resolution": said.get("modelspec.resolution") or said.get("ss_resolution"),
        "base": said.get("ss_sd_model_name")
        or said.get("ss_base_model_version")
        or said.get("modelspec.architecture"),
        "blocks": {name: counts[name] for name in (*BLOCKS, "other") if counts[name]},
        "effective_norm": told and {name: round(value, 6) for name, value in told.items()},
        "why": unavailable_reason or None,
        "notes": list(lora_file.notes),
        "expect": describe_expected_strength(lora_file),
        "metadata": {key: value[:2000] for key, value in said.items()},
    }


def describe_expected_strength(lora_file: LoraFile) -> str:
    """Describe in one sentence which strengths to expect from the file's kind and alpha."""
    parts = [
        "U-Net only"
        if lora_file.components == ("unet",)
        else "U-Net and text encoders"
        if "unet" in lora_file.components
        else "text encoders only"
    ]
    parts += [] if lora_file.kind == "LoRA" else [lora_file.kind]
    parts += [f"alpha/rank {lora_file.scale:g}"] if lora_file.rank else []
    if "DoRA" in lora_file.kind:
        start = "1.0 gives the weights of its training, whatever alpha is"
    elif lora_file.scale < 1:
        start = "probably needs more than 1.0"
    elif lora_file.scale > 1:
        start = "probably already strong at 1.0"
    else:
        start = "nothing in the file suggests a range away from 1.0"
    return " ".join([f"{', '.join(parts)}: {start}. Run a sweep to find out.", *lora_file.notes])


def _find_layers(model: torch.nn.Module) -> dict[str, Layer]:
    """Return the layers that a LoRA can change, by flat name."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm)
    return {
        name.replace(".", "_").removeprefix("text_model_"): layer
        for name, layer in model.named_modules()
        if isinstance(layer, kinds)
    }


def _get_module_block(module: LoraModule) -> str | None:
    return find_block(module.name) if module.component == "unet" else "BASE"


def _make_factor(use: LoraUse):
    """Return a function that maps a module to the strength that a use asks for it."""
    weights = parse_block_weights(use.blocks) if use.blocks else None
    text = use.strength if use.text_strength is None else use.text_strength

    def factor(module: LoraModule) -> float:
        strength = use.strength if module.component == "unet" else text
        return strength * (1.0 if weights is None else weights.get_weight(module.component, module.name))

    return factor
