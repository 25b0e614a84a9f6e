"""Load an upscaler with spandrel, and run it over a picture in tiles that match the untiled result.

Windows and convolutions see a neighbourhood, which the overlap covers. DAT also looks at the whole
picture: its channel attention and its pooled maps are sums over all pixels. A tile alone has other
sums (up to 0.014 in a pixel of 0..1), so the sums are taken over all tiles, and the tiles are run
again with them until nothing changes any more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
from spandrel.architectures.DAT.__arch.DAT import Adaptive_Channel_Attention
from torch import nn

from core.schema.errors import UserError
from core.system.device import GIB, Machine, detect_machine

TILE_OVERLAP = 64
"""Pixels that neighbouring tiles share; half of them on each side are thrown away.

Tiles begin at multiples of that half, on the grid of DATx2's windows.
"""
TILE_TOLERANCE = 1e-3
"""Change of a pixel (in 0..1) between two rounds below which the tiles are one picture."""
MAX_ROUNDS = 6
# Errors of reading and fitting weights: truncated files, objects that are not weights, shapes that
# do not match.
WEIGHT_ERRORS = (
    OSError,
    EOFError,
    UnpicklingError,
    SafetensorError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)
MAX_LAYERS = 200
"""Largest number in a weight's name: spandrel builds as many layers as the largest one says."""


@lru_cache(2)
def load_upscaler(file: Path) -> ImageModelDescriptor:
    """Load the upscaler of a file; the two most recently used are cached.

    A `.pth` is read by spandrel's restricted unpickler, which runs no code. Raises `UserError` for
    a file that is not an upscaler, that contains only half-precision weights or objects other than
    weights, or that does not enlarge.
    """
    name = file.name
    try:
        weights = ModelLoader().load_state_dict_from_file(file)
        if named := next((str(key) for key in weights if not _has_few_layers(str(key))), None):
            raise UserError(
                "upscaler",
                f"{name} names a weight {named[:60]!r}; no upscaler has more than {MAX_LAYERS} layers "
                "of a kind.",
            )
        model = ModelLoader().load_from_state_dict(weights)
    except UnsupportedModelError as error:
        raise UserError("upscaler", f"{name} is not an upscaler that is known here.") from error
    except WEIGHT_ERRORS as error:
        raise UserError(
            "upscaler", f"{name} cannot be read as an upscaler's weights ({type(error).__name__})."
        ) from error
    if all(value.dtype == torch.float16 for value in weights.values() if value.is_floating_point()):
        raise UserError("upscaler", f"{name} contains only half-precision weights. Use the float32 file.")
    if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3 or model.output_channels != 3:
        raise UserError("upscaler", f"{name} does not turn one RGB image into another.")
    if not 2 <= model.scale <= 8:
        raise UserError(
            "upscaler", f"{name} enlarges {model.scale} times. Use one that enlarges 2 to 8 times."
        )
    exact = (
        torch.bfloat16
        if detect_machine().dtype == torch.bfloat16 and model.supports_bfloat16
        else torch.float32
    )
    return model.eval().to(dtype=exact)


def _has_few_layers(name: str) -> bool:
    """Whether the numbers in a weight's name are plain digits up to `MAX_LAYERS`.

    To Python `1_0` is a number, too.
    """
    return all(
        part.isascii() and part.isdigit() and len(part) < 4 and int(part) <= MAX_LAYERS
        for part in name.split(".")
        if _is_number(part)
    )


def _is_number(part: str) -> bool:
    try:
        int(part)
    except ValueError:
        return False
    return True


def tile_side(machine: Machine, low_memory: bool = False) -> int:
    """Side of a tile in pixels; half as many with `low_memory`.

    DATx2 keeps about 15 kB for each pixel in float32.
    """
    usual = (
        256
        if machine.memory < 12 * GIB
        else 512
        if machine.device == "cpu" or machine.memory < 24 * GIB
        else 1024
    )
    return usual // 2 if low_memory else usual


@torch.no_grad()
def upscale_tiled(
    model: ImageModelDescriptor, pixels: torch.Tensor, tile: int, overlap: int = TILE_OVERLAP
) -> torch.Tensor:
    """Upscale pixels (1, 3, h, w) in 0..1 to (1, 3, scale * h, scale * w).

    The model sees at most `tile` pixels a side at once.
    """
    height, width = pixels.shape[-2:]
    if max(height, width) <= tile:
        return model(pixels.to(model.dtype)).to(pixels)
    with _share_sums(model.model) as sums:
        made = _upscale_round(model, pixels, tile, overlap, sums)
        for _ in range(MAX_ROUNDS - 1):
            if not sums.end_round():
                return made
            before, made = made, _upscale_round(model, pixels, tile, overlap, sums)
            if (made - before).abs().max() < TILE_TOLERANCE / 2:
                return made
    return made


def _upscale_round(
    model: ImageModelDescriptor, pixels: torch.Tensor, tile: int, overlap: int, sums: "_TileSums"
) -> torch.Tensor:
    height, width = pixels.shape[-2:]
    scale = model.scale
    out = pixels.new_empty(1, 3, height * scale, width * scale)
    for top, bottom, first, last in split_strips(height, tile, overlap):
        for left, right, begin, end in split_strips(width, tile, overlap):
            y, x = slice(first - top, last - top), slice(begin - left, end - left)
            sums.current_tile = (bottom - top, right - left, y, x)
            made = model(pixels[:, :, top:bottom, left:right].to(model.dtype))
            kept = made[:, :, y.start * scale : y.stop * scale, x.start * scale : x.stop * scale]
            out[:, :, first * scale : last * scale, begin * scale : end * scale] = kept
    return out


def split_strips(length: int, tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Split one side into strips (seen from, seen to, kept from, kept to) in pixels.

    Half of each overlap is thrown away inside, and nothing at the ends.
    """
    if length <= tile:
        return [(0, length, 0, length)]
    many, grid = -(-(length - overlap) // (tile - overlap)), overlap // 2
    starts = [-(-i * (length - tile) // ((many - 1) * grid)) * grid for i in range(many)]
    ends = [min(start + tile, length) for start in starts]
    cuts = [0, *((start + end) // 2 for end, start in zip(ends, starts[1:], strict=False)), length]
    return list(zip(starts, ends, cuts, cuts[1:], strict=False))


class _TileSums:
    """The sums of layers that look at the whole picture.

    They are summed over the tiles of this round so far, and over all tiles of the last round.
    """

    def __init__(self) -> None:
        self.current_tile: tuple[int, int, slice, slice] = (0, 0, slice(0), slice(0))
        """The tile's height, width and the part of it that is kept: every pixel counts once."""
        self.round_sums: dict[nn.Module, tuple[torch.Tensor, ...]] = {}
        self.total_sums: dict[nn.Module, tuple[torch.Tensor, ...]] = {}

    def add(self, layer: nn.Module, *values: torch.Tensor) -> None:
        """Add a tile's values to a layer's sums of this round."""
        before = self.round_sums.get(layer)
        self.round_sums[layer] = (
            values if before is None else tuple(a + b for a, b in zip(before, values, strict=True))
        )

    def end_round(self) -> bool:
        """End a round, and return whether there are layers that look at the whole picture."""
        self.total_sums, self.round_sums = self.round_sums, {}
        return bool(self.total_sums)

    def sum_attention(self, layer: Any, _linear: nn.Module, _given: Any, qkv: torch.Tensor) -> None:
        """Sum the squares of a channel attention's queries and keys, and their products.

        The products are (heads, c, c).
        """
        height, width, y, x = self.current_tile
        each = qkv.double().view(height, width, 3, layer.num_heads, -1)[y, x].flatten(0, 1)
        q, k = each[:, 0], each[:, 1]
        self.add(layer, torch.einsum("nhc,nhd->hcd", q, k), q.square().sum(0), k.square().sum(0))

    def replace_attention(
        self, layer: Any, _dropout: nn.Module, _given: Any, alone: torch.Tensor
    ) -> torch.Tensor:
        """Return the channel attention of the whole picture instead of the tile's.

        It is calculated as in `Adaptive_Channel_Attention.forward`.
        """
        if layer not in self.total_sums:
            return alone
        products, of_q, of_k = self.total_sums[layer]
        cosines = products / (of_q.sqrt()[:, :, None] * of_k.sqrt()[:, None, :]).clamp(min=1e-12)
        return (cosines * layer.temperature).softmax(-1).to(alone)[None]

    def replace_pooling(
        self, layer: nn.Module, inputs: tuple[torch.Tensor], alone: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean over the whole picture, (1, channels, 1, 1), instead of the tile's."""
        _, _, y, x = self.current_tile
        kept = inputs[0][:, :, y, x].double()
        self.add(layer, kept.sum((2, 3), keepdim=True), torch.tensor(kept[0, 0].numel()))
        if layer not in self.total_sums:
            return alone
        total, many = self.total_sums[layer]
        return (total / many).to(alone)


@contextmanager
def _share_sums(model: nn.Module) -> Iterator[_TileSums]:
    """Let the model's picture-wide layers read from sums that all tiles share.

    The hooks are removed after the `with` block, whatever happens.
    """
    sums, hooks = _TileSums(), []
    for layer in model.modules():
        if isinstance(layer, Adaptive_Channel_Attention):
            hooks.append(layer.qkv.register_forward_hook(partial(sums.sum_attention, layer)))
            hooks.append(layer.attn_drop.register_forward_hook(partial(sums.replace_attention, layer)))
        elif isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size == 1:
            hooks.append(layer.register_forward_hook(sums.replace_pooling))
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
