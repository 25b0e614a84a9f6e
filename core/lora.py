"""LoRAs on a model: put on at any strength, changed in place, taken off bit for bit.

The weight W0 + strength * change (`lorachange` has the kinds) is written over the layer's own, from a copy of W0 that is
kept beside it: exact at every strength, no cost in a denoising step, and nothing drifts however often it is changed. Where
every sample of a batch has a strength of its own, the weight stays W0 and the change is added to what the layer gives.
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

from core import lorafile
from core.blocks import BLOCKS, block_of, weights
from core.digest import Identity, identity, is_settled
from core.lorachange import Change, Layer, adding
from core.lorafile import COMPONENTS, LoraFile
from core.lorakeys import Module
from core.recent import Recent
from core.types import LoraUse, UserError

KEPT_BYTES = 2**28  # of matrices in memory, of the files that were used last
KEPT_FILES = 32  # more than a study's rows: what their headers say; tensors are not kept
_reading = threading.Lock()
# A process that is forked while a file is read, as ZeroGPU's are at any time, must not wait for a thread that it does not have.
os.register_at_fork(before=_reading.acquire, after_in_parent=_reading.release, after_in_child=_reading.release)


_files: Recent[Identity, LoraFile] = Recent(KEPT_FILES)


def file(path: str) -> LoraFile:
    """The LoRA of a path, read once for as long as the file stays as it is. Raises `UserError` as `lorafile.read`."""
    try:
        state = identity(Path(path))
    except OSError as error:
        raise UserError(f"lora: {Path(path).name} is not there.") from error
    if known := _files.get(state):
        return known  # without a wait for a large one that somebody else brought
    with _reading:  # one file at a time in memory, however many visitors ask
        if (known := _files.get(state)) is None:
            known = lorafile.read(Path(path))
            if is_settled(known.state):
                _files[known.state] = known
        return known


class Loaded:
    """Layers of a pipeline that LoRAs change, with pristine copies of their weights."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, files: Sequence[LoraFile]):
        self.changes: dict[Layer, list[tuple[int, Module, Change]]] = {}
        self.hooks: list[RemovableHandle] = []
        for number, found in enumerate(files):
            for module, layer, change in _changes(pipeline, found):
                self.changes.setdefault(layer, []).append((number, module, change))
        self.pristine = {layer: layer.weight.detach().clone() for layer in self.changes}
        self.worn: Sequence[Sequence[LoraUse]] | None = None
        """What is set; `None` while it is not known."""

    @property
    def shape(self) -> Hashable:
        """What the time that it takes depends on: kinds and sizes of all changes, whatever is in them."""
        return tuple(sorted((module.kind, module.rank, module.shape) for changes in self.changes.values() for _, module, _ in changes))

    @property
    def changes_text(self) -> bool:
        """Whether a text encoder is changed, so that a prompt's embeddings depend on the strength."""
        return any(module.component != "unet" for changes in self.changes.values() for _, module, _ in changes)

    @torch.no_grad()
    def set(self, samples: Sequence[Sequence[LoraUse]]) -> None:
        """Change the strengths: for each sample of a batch one use for each file, in the files' order.

        Where all samples have the same, in the weights. Raises `ValueError` for strengths that differ on a text encoder.
        """
        if samples == self.worn:
            return
        self._alone()
        self.worn, uses = None, samples[0]
        if any(sample != uses for sample in samples):
            if self.changes_text:
                raise ValueError("a text encoder has one strength for all samples")
            self._each(samples)
        else:
            self._all(uses)
        self.worn = samples

    def _all(self, uses: Sequence[LoraUse]) -> None:
        """In the weights, the same for all samples."""
        factors = [_factors(use) for use in uses]
        for layer, changes in self.changes.items():
            weight, pristine = layer.weight, self.pristine[layer]
            weight.copy_(pristine)
            flat = weight.flatten(1) if weight.is_contiguous() else weight.reshape(len(weight), -1)
            for number, module, change in changes:
                if strength := factors[number](module):
                    change.add_to(flat, pristine, strength)
            if flat.data_ptr() != weight.data_ptr():  # channels last: what was flattened is a copy
                weight.copy_(flat.view(weight.shape))

    def _each(self, samples: Sequence[Sequence[LoraUse]]) -> None:
        """Pristine weights, and what each sample's strength adds behind the layers."""
        factors = [[_factors(use) for use in sample] for sample in samples]
        for layer, changes in self.changes.items():
            layer.weight.copy_(self.pristine[layer])
            strengths = [(change, torch.tensor([sample[number](module) for sample in factors])) for number, module, change in changes]
            if worn := [(change, each) for change, each in strengths if each.any()]:
                self.hooks.append(layer.register_forward_hook(adding(layer, worn)))

    def _alone(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    @torch.no_grad()
    def off(self) -> None:
        """Every layer as it was."""
        self.worn = None
        self._alone()
        for layer, pristine in self.pristine.items():
            layer.weight.copy_(pristine)


@contextmanager
def loaded(pipeline: StableDiffusionXLPipeline, uses: Sequence[LoraUse]) -> Iterator[Loaded]:
    """The pipeline with LoRAs on it; whatever happens, its weights are afterwards what they were before.

    Raises `UserError` for a file that cannot be used or does not fit the model, before anything is changed.
    """
    made = Loaded(pipeline, [file(use.path) for use in uses])
    try:
        made.set([uses])
        yield made
    finally:
        made.off()


def placed(pipeline: StableDiffusionXLPipeline, found: LoraFile) -> list[tuple[Module, Layer]]:
    """Each module of a file with the model's layer that it changes. Raises `UserError` if one has no layer or another shape."""
    layers = {component: _layers(getattr(pipeline, component)) for component in COMPONENTS}
    pairs = []
    for module in found.modules:
        layer = layers[module.component].get(module.name)
        if layer is None:
            raise UserError(f"lora: {found.path.name} changes {module.name[:80]!r}, which this model does not have; it is made for {found.family}.")
        own = tuple(layer.weight.shape)
        if not module.fits(own):
            raise UserError(
                f"lora: {found.path.name} does not fit this model: {module.name[:80]!r} is {own} here and "
                f"{(*module.shape, *module.kernel)} there; it is made for {found.family}."
            )
        pairs.append((module, layer))
    return pairs


Changes = list[tuple[Module, Layer, Change]]
_ready: WeakKeyDictionary[torch.nn.Module, dict[Identity, Changes]] = WeakKeyDictionary()  # by the U-Net, and gone with it


def _changes(pipeline: StableDiffusionXLPipeline, found: LoraFile) -> Changes:
    """Each module of a file with its layer and what it does to it; all shapes are checked before a tensor is read.

    Kept from job to job where that is little, and not on a GPU, whose memory the pictures need. On torch's thread only.
    """
    ready = _ready.setdefault(pipeline.unet, {})
    if (changes := ready.pop(found.state, None)) is None:
        pairs, tensors, changes = placed(pipeline, found), found.tensors(), []
        for module, layer in pairs:
            parts = {part: tensors[key] for part, key in module.keys.items()}
            changes.append((module, layer, Change(layer, parts, module.scale, module.magnitudes and module.magnitudes[1])))
    if pipeline.unet.device.type == "cpu":
        ready[found.state] = changes  # the last of them
        left = KEPT_BYTES
        for state, each in reversed([*ready.items()]):
            left -= sum(change.nbytes for _, _, change in each)
            if left < 0:
                del ready[state]
    return changes


def norms(pipeline: StableDiffusionXLPipeline, found: LoraFile) -> dict[str, float]:
    """How large the change at strength 1 is beside the weights it changes, by block: |dW| / |W|, Frobenius."""
    changed: dict[str, float] = {}
    whole: dict[str, float] = {}
    for module, layer, change in _changes(pipeline, found):
        block, weight = _block(module) or "other", layer.weight.detach()
        changed[block] = changed.get(block, 0.0) + change.norm(weight) ** 2
        whole[block] = whole.get(block, 0.0) + float(weight.float().square().sum())
    return {block: (changed[block] / whole[block]) ** 0.5 for block in changed}


def inspected(found: LoraFile, pipeline: StableDiffusionXLPipeline | None, why: str = "A job has the model") -> dict[str, Any]:
    """What a file says of itself, as plain data; how large its change is beside the weights of `pipeline`, if it fits that model.

    `None` for a model that cannot be had now, and `why`.

    What a file does not tell, or could not be measured, is `None`; `why` says what was not measured.
    """
    counts = Counter(_block(module) or "other" for module in found.modules)
    try:
        told, why = (norms(pipeline, found), "") if pipeline else (None, f"{why}: how large the change is was not measured.")
    except UserError as error:
        told, why = None, str(error)
    said = found.metadata
    return {
        "format": found.format,
        "kind": found.kind,
        "family": found.family,
        "rank": found.rank,
        "alpha": found.rank * found.scale,
        "scale": found.scale,
        "modules": len(found.modules),
        "text_encoders": [name for name in found.components if name != "unet"],
        "trigger": found.trigger,
        "tags": dict(list(found.tags.items())[:50]),
        "resolution": said.get("modelspec.resolution") or said.get("ss_resolution"),
        "base": said.get("ss_sd_model_name") or said.get("ss_base_model_version") or said.get("modelspec.architecture"),
        "blocks": {name: counts[name] for name in (*BLOCKS, "other") if counts[name]},
        "effective_norm": told and {name: round(value, 6) for name, value in told.items()},
        "why": why or None,
        "expect": expectation(found),
        "metadata": {key: value[:2000] for key, value in said.items()},
    }


def expectation(found: LoraFile) -> str:
    """What its make lets a person expect of its strength, in one sentence."""
    parts = ["U-Net only" if found.components == ("unet",) else "U-Net and text encoders" if "unet" in found.components else "text encoders only"]
    parts += [*([] if found.kind == "LoRA" else [found.kind]), f"alpha/rank {found.scale:g}"]
    if "DoRA" in found.kind:
        start = "at 1 the weights are those of its training, whatever alpha is"
    elif found.scale < 1:
        start = "expect an effective range that starts higher than 1"
    elif found.scale > 1:
        start = "expect it to be strong at 1 already"
    else:
        start = "nothing in its make moves the range away from 1"
    return f"{', '.join(parts)}: {start}; a sweep measures it."


def _layers(model: torch.nn.Module) -> dict[str, Layer]:
    """The layers that a LoRA can change, by flat name."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {name.replace(".", "_").removeprefix("text_model_"): layer for name, layer in model.named_modules() if isinstance(layer, kinds)}


def _block(module: Module) -> str | None:
    return block_of(module.name) if module.component == "unet" else "BASE"


def _factors(use: LoraUse):
    """Module -> the strength that a use asks for it."""
    by_block = weights(use.blocks) if use.blocks else None
    text = use.strength if use.text_strength is None else use.text_strength

    def factor(module: Module) -> float:
        strength = use.strength if module.component == "unet" else text
        if by_block is None:
            return strength
        block = _block(module)
        return strength * (by_block[block] if block else 0.0)  # as block weights have it: what has no place in the list is off

    return factor
